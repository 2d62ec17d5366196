"""What a Kubernetes API server keeps, as far as tests need it, without any wire.

Objects are never changed in place. Every write has the next resourceVersion and goes to a log that watches
read from; `compact` forgets the log, so that older watches are Gone. rig.md's findings on a real server are
what it follows. Not here: schemas, defaults, admission, field-level merge, controllers.
"""

from __future__ import annotations

import uuid
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple

Doc = Dict[str, Any]
Key = Tuple[str, str, str]
"""Of an object: the path of its kind (`apps/v1/daemonsets`), namespace, name."""
LOG_LIMIT = 100_000


class Refusal(Exception):
    """An answer that is an error: an API Status."""

    def __init__(self, code: int, reason: str, message: str, retry_after: Optional[int] = None) -> None:
        super().__init__(message)
        self.code, self.reason, self.message, self.retry_after = code, reason, message, retry_after

    def status(self) -> Doc:
        return {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        }  # fmt: skip


class Change(NamedTuple):
    """One line of the log: `old` is None for what was added, `new` None for what is deleted."""

    version: int
    plural: str
    namespace: str
    old: Optional[Doc]
    new: Optional[Doc]


class Store:
    """Objects by kind, namespace and name."""

    def __init__(self) -> None:
        self.objects: Dict[str, Dict[Tuple[str, str], Doc]] = {}
        self.version = 1
        self.log: List[Change] = []
        self.oldest = 1
        """Watches from before this version are Gone."""
        self.applied: Dict[Tuple[Key, str], Doc] = {}
        self.uids = iter(range(1, 1 << 60))
        self.listeners: List[Callable[[], None]] = []

    # reading

    def get(self, plural: str, namespace: str, name: str) -> Doc:
        found = self.objects.get(plural, {}).get((namespace, name))
        if found is None:
            raise Refusal(404, "NotFound", f'{plural.rpartition("/")[2]} "{name}" not found')
        return found

    def list(self, plural: str, namespace: str = "", labels: str = "", fields: str = "") -> List[Doc]:
        chosen = selector(labels, fields)
        there = self.objects.get(plural, {})
        return [each for (space, _), each in list(there.items()) if namespace in ("", space) and chosen(each)]

    def changes(
        self, plural: str, since: int, namespace: str = "", labels: str = "", fields: str = ""
    ) -> Iterator[Tuple[int, str, Doc]]:
        """What a watch from `since` says, up to now: (resourceVersion, type, object)."""
        if since < self.oldest:
            message = f"too old resource version: {since} ({self.oldest})"
            raise Refusal(410, "Expired", message)
        chosen = selector(labels, fields)
        for change in self._after(since):
            if change.plural == plural and namespace in ("", change.namespace):
                told = _told(change, chosen)
                if told is not None:
                    yield (change.version, *told)

    def _after(self, since: int) -> List[Change]:
        low, high = 0, len(self.log)
        while low < high:
            middle = (low + high) // 2
            if self.log[middle].version <= since:
                low = middle + 1
            else:
                high = middle
        return self.log[low:]

    def compact(self) -> None:
        """Forget what was: every watch from before now is Gone."""
        self.log, self.oldest = [], self.version

    # writing

    def create(self, plural: str, namespace: str, document: Doc) -> Doc:
        metadata = dict(document.get("metadata") or {})
        if "name" not in metadata and "generateName" in metadata:
            metadata["name"] = metadata["generateName"] + uuid.uuid4().hex[:5]
        name = metadata.get("name")
        if not name:
            raise Refusal(422, "Invalid", "metadata.name: Required value")
        if (namespace, name) in self.objects.get(plural, {}):
            raise Refusal(409, "AlreadyExists", f'{plural.rpartition("/")[2]} "{name}" already exists')
        metadata.update(uid=f"uid-{next(self.uids)}", generation=1)
        if namespace:
            metadata["namespace"] = namespace
        return self._write(plural, namespace, name, None, {**document, "metadata": metadata})

    def update(self, plural: str, namespace: str, name: str, document: Doc) -> Doc:
        old = self.get(plural, namespace, name)
        given = (document.get("metadata") or {}).get("resourceVersion")
        if given and given != old["metadata"]["resourceVersion"]:
            raise Refusal(
                409, "Conflict", f'Operation cannot be fulfilled on "{name}": the object has been modified'
            )
        return self._replace(plural, namespace, name, old, document)

    def merge(self, plural: str, namespace: str, name: str, change: Mapping[str, Any]) -> Doc:
        old = self.get(plural, namespace, name)
        given = (change.get("metadata") or {}).get("resourceVersion")
        if given and given != old["metadata"]["resourceVersion"]:
            raise Refusal(409, "Conflict", f'"{name}": the object has been modified')
        return self._replace(plural, namespace, name, old, merge_patch(old, change))

    def apply(
        self, plural: str, namespace: str, name: str, document: Doc, manager: str, force: bool, dry_run: bool
    ) -> Doc:
        old, key = self.objects.get(plural, {}).get((namespace, name)), (plural, namespace, name)
        others = sorted(who for (what, who) in self.applied if what == key and who != manager)
        if old is not None and others and not force:
            message = f'Apply failed with 2 conflicts: conflicts with "{others[0]}":\n- .metadata\n- .spec'
            raise Refusal(409, "Conflict", message)
        if old is None:
            made = {**document, "metadata": {**document["metadata"], "name": name}}
            if dry_run:
                return made
            self.applied[key, manager] = document
            return self.create(plural, namespace, made)
        new: Doc = merge_patch(without(old, self.applied.get((key, manager), {}), document), document)
        if dry_run:
            return new
        for who in others:
            del self.applied[key, who]
        self.applied[key, manager] = document
        return self._replace(plural, namespace, name, old, new)

    def delete(self, plural: str, namespace: str, name: str, preconditions: Mapping[str, Any] = {}) -> None:
        old = self.get(plural, namespace, name)
        for field, wanted in preconditions.items():
            if wanted is not None and old["metadata"].get(field) != wanted:
                raise Refusal(409, "Conflict", f"Precondition failed: {field} in precondition: {wanted}")
        self.version += 1
        del self.objects[plural][namespace, name]
        for key in [key for key in self.applied if key[0] == (plural, namespace, name)]:
            del self.applied[key]
        gone = {**old, "metadata": {**old["metadata"], "resourceVersion": str(self.version)}}
        self._log(Change(self.version, plural, namespace, gone, None))

    def evict(self, namespace: str, name: str, uid: Optional[str] = None) -> None:
        """The eviction of a pod: 429 where a PodDisruptionBudget of its namespace has none left for it."""
        self.may_evict(namespace, name, uid)
        self.delete("v1/pods", namespace, name)

    def may_evict(self, namespace: str, name: str, uid: Optional[str] = None) -> None:
        """What is in the way of an eviction."""
        pod = self.get("v1/pods", namespace, name)
        if uid is not None and uid != pod["metadata"]["uid"]:
            raise Refusal(409, "Conflict", f"Precondition failed: UID in precondition: {uid}")
        for budget in self.list("policy/v1/poddisruptionbudgets", namespace):
            wanted = budget["spec"]["selector"]["matchLabels"]
            labels = pod["metadata"].get("labels") or {}
            if wanted.items() <= labels.items() and not budget.get("status", {}).get("disruptionsAllowed"):
                message = "Cannot evict pod as it would violate the pod's disruption budget."
                raise Refusal(429, "TooManyRequests", message)

    def put(self, plural: str, document: Doc) -> Doc:
        """As a test sets the world: created or replaced, status too, whatever was there."""
        metadata = document["metadata"]
        namespace, name = metadata.get("namespace", ""), metadata["name"]
        old = self.objects.get(plural, {}).get((namespace, name))
        if old is None:
            return self.create(plural, namespace, document)
        return self._replace(plural, namespace, name, old, document)

    def _replace(self, plural: str, namespace: str, name: str, old: Doc, document: Mapping[str, Any]) -> Doc:
        kept = {field: old["metadata"].get(field) for field in ("uid", "resourceVersion", "generation")}
        metadata = {**document["metadata"], **kept}
        if namespace:
            metadata["namespace"] = namespace
        new = {**document, "metadata": metadata}
        if new == old:
            return old
        if any(old.get(part) != new.get(part) for part in {*old, *new} - {"metadata", "status"}):
            metadata["generation"] = (old["metadata"].get("generation") or 0) + 1
        return self._write(plural, namespace, name, old, new)

    def _write(self, plural: str, namespace: str, name: str, old: Optional[Doc], new: Doc) -> Doc:
        self.version += 1
        new["metadata"]["resourceVersion"] = str(self.version)
        self.objects.setdefault(plural, {})[namespace, name] = new
        self._log(Change(self.version, plural, namespace, old, new))
        return new

    def _log(self, change: Change) -> None:
        self.log.append(change)
        if len(self.log) > LOG_LIMIT:
            del self.log[: LOG_LIMIT // 2]
            self.oldest = self.log[0].version
        for listener in self.listeners:
            listener()


def _told(change: Change, chosen: Callable[[Doc], bool]) -> Optional[Tuple[str, Doc]]:
    """The event that a watch with this selector sees of a change."""
    before = change.old is not None and chosen(change.old)
    after = change.new is not None and chosen(change.new)
    if after:
        assert change.new is not None
        return ("MODIFIED" if before else "ADDED"), change.new
    if before:
        assert change.old is not None
        version = {"resourceVersion": str(change.version)}
        return "DELETED", {**change.old, "metadata": {**change.old["metadata"], **version}}
    return None


def merge_patch(old: Any, change: Any) -> Any:
    """RFC 7386."""
    if not isinstance(change, Mapping):
        return change
    new = dict(old) if isinstance(old, dict) else {}
    for name, value in change.items():
        if value is None:
            new.pop(name, None)
        else:
            new[name] = merge_patch(new.get(name), value)
    return new


def without(old: Any, applied: Any, wanted: Any) -> Any:
    """`old` less what was applied and is not wanted any more."""
    if not (isinstance(old, dict) and isinstance(applied, Mapping) and isinstance(wanted, Mapping)):
        return old
    gone = {name for name in applied if name not in wanted}
    return {
        name: without(value, applied.get(name), wanted.get(name))
        for name, value in old.items()
        if name not in gone
    }


def selector(labels: str = "", fields: str = "") -> Callable[[Doc], bool]:
    """Label selectors `a=b`, `a!=b`, `a`, `!a`; field selectors of metadata.name, spec.nodeName."""
    if not labels and not fields:
        return lambda _: True
    tests = [_label_test(part.strip()) for part in labels.split(",") if part.strip()]
    tests += [_field_test(part.strip()) for part in fields.split(",") if part.strip()]
    return lambda each: all(test(each) for test in tests)


def _label_test(part: str) -> Callable[[Doc], bool]:
    def labels(each: Doc) -> Mapping[str, str]:
        return each["metadata"].get("labels") or {}

    if "!=" in part:
        name, _, value = part.partition("!=")
        return lambda each: labels(each).get(name) != value
    if "=" in part:
        name, _, value = part.partition("=")
        value = value.lstrip("=")
        return lambda each: labels(each).get(name) == value
    if part.startswith("!"):
        return lambda each: part[1:] not in labels(each)
    return lambda each: part in labels(each)


def _field_test(part: str) -> Callable[[Doc], bool]:
    path, _, wanted = part.partition("=")

    def test(each: Doc) -> bool:
        value: Any = each
        for name in path.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return bool(value == wanted.lstrip("="))

    return test
