"""What a plan means for the API: the writes that bring the cluster there, and no others.

Each write stands alone: one that fails does not keep the others, and is told. Nothing is touched that does
not say it is ours. A DaemonSet goes only when the API itself says that no pod of it is left.
"""

from __future__ import annotations

import json
from typing import Any, Callable, Collection, Optional

import structlog
from attrs import define, field, frozen

from nvdriver_build.errors import ClusterError
from nvdriver_build.fleet.controller.api import Api, Conflict, Document, Missing
from nvdriver_build.fleet.controller.kinds import CONFIG_MAP, DAEMONSET, JOB, NODE, POD, Kind
from nvdriver_build.fleet.controller.looking import pods_on
from nvdriver_build.fleet.controller.view import Live, Pod, View, live
from nvdriver_build.fleet.names import COMPONENT, DRIVER, DRIVER_NOTE, LABEL, PARAMETERS, TEMPLATE_NOTE
from nvdriver_build.fleet.objects import text, texts
from nvdriver_build.fleet.plan import Plan
from nvdriver_build.fleet.upgrade import in_use
from nvdriver_build.fleet.versions import digest, label_value

_log = structlog.get_logger()
_KINDS = {kind.name: kind for kind in (CONFIG_MAP, DAEMONSET, JOB)}
Guard = Callable[[], None]
"""Raises where we may not write any more: another one leads."""


@frozen
class Done:
    """A write that was made: a reason for an Event, a sentence, and the object that it is about."""

    code: str
    message: str
    kind: Kind
    name: str


@frozen
class Failed:
    """A write that failed."""

    what: str
    error: ClusterError
    kind: Kind
    name: str


@define
class Applied:
    """What we applied last, by object: a digest of it, and the marks that the object had afterwards.

    Only to spare requests: without it (after a restart) everything is applied once more.
    """

    known: dict[tuple[str, str], tuple[str, str, str]] = field(factory=dict)

    def holds(self, kind: Kind, document: Document, there: Optional[Live]) -> bool:
        """Whether the object is as we applied it, as far as is known."""
        told = self.known.get((kind.plural, _name(document)))
        if told is None or there is None:
            return False
        made, uid, mark = told
        return made == _digest(document) and uid == there.uid and _not_newer(there.mark, mark)

    def keep(self, kind: Kind, document: Document, answer: Document) -> None:
        """What the API made of it."""
        found = live(answer, "", None)
        if found is not None:
            self.known[kind.plural, found.name] = (_digest(document), found.uid, found.mark)


@define
class Acting:
    """The writes of one round. `done` and `failed` tell what came of them."""

    api: Api
    view: View
    namespace: str
    applied: Applied
    guard: Guard
    failing: bool = False
    """Whether the driver that is wanted does not become ready somewhere."""
    unbuilt: Collection[str] = ()
    """Nodes whose modules a Job has still to build."""
    done: list[Done] = field(factory=list)
    failed: list[Failed] = field(factory=list)

    def act(self, plan: Plan, objects: list[dict[str, Any]]) -> None:
        """Everything that the plan needs."""
        for document in objects:
            self._try(self._apply, _KINDS[document["kind"]], _name(document), document)
        for label in plan.labels:
            self._try(self._label, NODE, label.node, label.value)
        self._replace_pods(objects)
        for name in plan.remove_jobs:
            self._try(self._remove, JOB, name)
        for name in plan.remove:
            self._try(self._remove_daemonset, DAEMONSET, name)
        self._remove_config_maps(objects)

    def _try(self, what: Callable[..., Optional[str]], kind: Kind, name: str, *more: Any) -> None:
        self.guard()
        try:
            told = what(kind, name, *more)
        except ClusterError as error:
            _log.warning("write failed", kind=kind.name, name=name, error=error.message)
            self.failed.append(Failed(what.__name__.strip("_"), error, kind, name))
            return
        if told is not None:
            code, _, message = told.partition(": ")
            _log.info(message, kind=kind.name, name=name)
            self.done.append(Done(code, message, kind, name))

    def _apply(self, kind: Kind, name: str, document: dict[str, Any]) -> Optional[str]:
        there = self.view.live(kind.plural).get(name)
        if there is not None and not there.ours:
            raise ClusterError(
                f"{kind.name} {self.namespace}/{name} is there and is not ours: it stays as it is",
                hint="rename or delete it, or give this driver another name in its settings",
            )
        if self.applied.holds(kind, document, there) or (kind is JOB and there is not None):
            return None  # a Job's template cannot be changed; another one has another name
        try:
            answer, code = self.api.apply(kind, document), "Created" if there is None else "Changed"
        except Conflict:
            if there is None:
                raise
            answer, code = self.api.apply(kind, document, force=True), "TakenBack"
        self.applied.keep(kind, document, answer)
        found = live(answer, "", None)
        if there is not None and found is not None and found.mark == there.mark:
            return None
        return f"{code}: {kind.name} {name} {_WORDS[code]}"

    def _label(self, kind: Kind, name: str, value: Optional[str]) -> Optional[str]:
        try:
            self.api.merge(kind, name, {"metadata": {"labels": {LABEL: value}}})
        except Missing:
            return None
        return f"NodeLabelled: {LABEL} of {name} is {value or 'taken away'}"

    def _replace_pods(self, objects: list[dict[str, Any]]) -> None:
        """Pods of an older template whose driver is not up: OnDelete would leave them so for ever. Of an
        older driver they stay where the new one fails elsewhere, or is still to be built: after a reboot
        theirs will be ready again. So they do on a node that is not heard of: there the driver and what uses
        it may well run. Where something uses an older driver the node is drained first (`fleet.upgrade`).
        """
        templates = {version: notes for version, *notes in map(_template, objects) if version}
        away = {node.name for node in self.view.nodes.values.values() if not node.ready}
        for pod in list(self.view.pods.values.values()):
            wanted, driver = templates.get(pod.version or "", (None, None))
            other = pod.driver != driver
            held = other and (self.failing or pod.node in away or pod.node in self.unbuilt)
            if wanted and pod.template != wanted and not pod.up and not pod.ending and not held:
                self._try(self._delete_pod, POD, pod.name, pod, other)

    def _delete_pod(self, kind: Kind, name: str, seen: Pod, other: bool) -> Optional[str]:
        if other and seen.node is not None and in_use(pods_on(self.api, seen.node)):
            return None  # its container has only started again
        try:
            self.api.delete(kind, name, self.namespace, seen.document())
        except (Missing, Conflict):  # gone, or not as it was seen: it may be ready by now
            return None
        return f"PodReplaced: {name} was not up, and of an older template"

    def _remove_config_maps(self, objects: list[dict[str, Any]]) -> None:
        """Parameters of drivers before, once no pod reads them."""
        used = {name for pod in list(self.view.pods.values.values()) for name in pod.config_maps}
        used |= {_name(each) for each in objects if each["kind"] == CONFIG_MAP.name}
        for name in sorted(self.view.live(CONFIG_MAP.plural).keys() - used):
            if name.startswith(f"{self.view.manager}-{PARAMETERS}-"):
                self._try(self._remove, CONFIG_MAP, name)

    def _remove(self, kind: Kind, name: str) -> Optional[str]:
        there = self.view.live(kind.plural).get(name)
        if there is None or not there.ours:
            return None
        try:
            self.api.delete(kind, name, self.namespace, there.document())
        except Missing:
            return None
        return f"Removed: {kind.name} {name} is not needed any more"

    def _remove_daemonset(self, kind: Kind, name: str) -> Optional[str]:
        there = self.view.live(kind.plural).get(name)
        if there is None or not there.ours or there.fact is None or there.fact.version is None:
            return None
        chosen = f"{COMPONENT}={DRIVER},{LABEL}={label_value(there.fact.version)}"
        if any(page.items for page in self.api.pages(POD, self.namespace, chosen)):
            return None  # its status does not know yet
        return self._remove(kind, name)


_WORDS = {
    "Created": "made",
    "Changed": "changed",
    "TakenBack": "is as it was again: another manager had changed it",
}


def _template(document: Document) -> tuple[Optional[str], Optional[str], Optional[str]]:
    """Version, digest of the template, and of its driver."""
    notes = texts(document, "spec", "template", "metadata", "annotations")
    return (
        texts(document, "metadata", "labels").get(LABEL),
        notes.get(TEMPLATE_NOTE),
        notes.get(DRIVER_NOTE),
    )


def _name(document: Document) -> str:
    return text(document, "metadata", "name") or ""


def _digest(document: Document) -> str:
    return digest(json.dumps(document, sort_keys=True))


def _not_newer(mark: str, than: str) -> bool:
    """A cache may be behind what an apply answered; a generation that is ahead of it is somebody's change."""
    return int(mark) <= int(than) if mark.isdigit() and than.isdigit() else mark == than
