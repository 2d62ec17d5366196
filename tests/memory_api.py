"""The API as the controller knows it, straight on an `api_store.Store`: no wire, faults at will."""

from __future__ import annotations

from typing import Callable, Iterator, List, Optional, TypeVar

from api_store import Refusal, Store

from nvdriver_build.fleet.controller.api import Document, Event, Listing, refusal
from nvdriver_build.fleet.controller.kinds import POD, Kind
from nvdriver_build.fleet.objects import part, text

T = TypeVar("T")
Fault = Callable[[str, str], Optional[BaseException]]
"""Told verb (with ` done` behind it after the request) and plural: what it returns is raised."""


def path_of(kind: Kind) -> str:
    """The store's name of a kind."""
    return f"{kind.group}/{kind.version}/{kind.plural}" if kind.group else f"{kind.version}/{kind.plural}"


class MemoryApi:
    """An `Api`. `requests` has (verb, plural) of all requests; `blind` kinds tell a watch nothing for now."""

    def __init__(self, store: Store, manager: str = "nvdriver-build") -> None:
        self.store, self.manager = store, manager
        self.requests: List[tuple[str, str]] = []
        self.fault: Fault = lambda verb, plural: None
        self.blind: set[str] = set()

    def get(self, kind: Kind, name: str, namespace: Optional[str] = None) -> Document:
        return self._do("get", kind, lambda: self.store.get(path_of(kind), namespace or "", name))

    def pages(
        self, kind: Kind, namespace: Optional[str] = None, labels: str = "", fields: str = ""
    ) -> Iterator[Listing]:
        def listing() -> Listing:
            found = self.store.list(path_of(kind), namespace or "", labels, fields)
            return Listing(found, str(self.store.version))

        yield self._do("list", kind, listing)

    def watch(
        self, kind: Kind, version: str, namespace: Optional[str] = None, labels: str = ""
    ) -> Iterator[Event]:
        """What changed up to now; then it ends."""
        if kind.plural in self.blind:
            return
        changes = self._do(
            "watch",
            kind,
            lambda: list(self.store.changes(path_of(kind), int(version), namespace or "", labels)),
        )
        for _, what, document in changes:
            yield Event(what, document)
        if int(version) != self.store.version:
            yield Event("BOOKMARK", {"metadata": {"resourceVersion": str(self.store.version)}})

    def apply(self, kind: Kind, document: Document, force: bool = False, dry_run: bool = False) -> Document:
        namespace, name = _place(document)
        return self._do(
            "apply",
            kind,
            lambda: self.store.apply(
                path_of(kind), namespace, name, dict(document), self.manager, force, dry_run
            ),
        )

    def merge(self, kind: Kind, name: str, change: Document, namespace: Optional[str] = None) -> Document:
        return self._do("patch", kind, lambda: self.store.merge(path_of(kind), namespace or "", name, change))

    def create(self, kind: Kind, document: Document) -> Document:
        return self._do(
            "create", kind, lambda: self.store.create(path_of(kind), _place(document)[0], dict(document))
        )

    def replace(self, kind: Kind, document: Document) -> Document:
        namespace, name = _place(document)
        return self._do(
            "update", kind, lambda: self.store.update(path_of(kind), namespace, name, dict(document))
        )

    def delete(
        self, kind: Kind, name: str, namespace: Optional[str] = None, like: Optional[Document] = None
    ) -> None:
        same = {field: text(like, "metadata", field) for field in ("uid", "resourceVersion")} if like else {}
        self._do("delete", kind, lambda: self.store.delete(path_of(kind), namespace or "", name, same))

    def evict(self, name: str, namespace: str, uid: Optional[str] = None) -> None:
        self._do("evict", POD, lambda: self.store.evict(namespace, name, uid))

    def _do(self, verb: str, kind: Kind, what: Callable[[], T]) -> T:
        self.requests.append((verb, kind.plural))
        self._fail(verb, kind.plural)
        try:
            answer = what()
        except Refusal as error:
            raise refusal(f"{verb} {kind.plural}", error.code, error.message, error.retry_after) from error
        self._fail(f"{verb} done", kind.plural)
        return answer

    def _fail(self, verb: str, plural: str) -> None:
        error = self.fault(verb, plural)
        if error is not None:
            raise error


def _place(document: Document) -> tuple[str, str]:
    metadata = part(document, "metadata")
    return metadata.get("namespace") or "", metadata["name"]
