"""`Api`: what the controller asks of a Kubernetes API, and how it is refused.

Documents are plain mappings, as the wire has them: `inventory` reads them whatever shape they have.
"""

from __future__ import annotations

from typing import Any, Iterator, Mapping, Optional, Protocol, Sequence

from attrs import frozen

from nvdriver_build.errors import ClusterError
from nvdriver_build.fleet.controller.kinds import Kind

Document = Mapping[str, Any]
ADDED, MODIFIED, DELETED, BOOKMARK = "ADDED", "MODIFIED", "DELETED", "BOOKMARK"


@frozen
class Listing:
    """A page of a list, and the resourceVersion from which a watch goes on."""

    items: Sequence[Document]
    version: str


@frozen
class Event:
    """What a watch says; of a BOOKMARK only the resourceVersion counts."""

    type: str
    object: Document


class ApiError(ClusterError):
    """What the API did to a request; for documents all of them are one kind."""

    @property
    def kind(self) -> str:
        """That of contracts.md."""
        return ClusterError.__name__


class Refused(ApiError):
    """The API's answer was an error: HTTP's `status`, and for how many seconds it asked for patience."""

    def __init__(
        self, message: str, *, status: int, hint: Optional[str] = None, retry_after: Optional[float] = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.retry_after = retry_after


class Missing(Refused):
    """404: there is no such object, or no such kind."""


class Conflict(Refused):
    """409: another one was there before, a stale resourceVersion, or another field manager."""


class Gone(Refused):
    """410: the resourceVersion is too old, so that a watch has to begin with a list."""


class Unreachable(ApiError):
    """No answer, or half of one."""


_HINTS = {
    401: "is the token or certificate of the kubeconfig still valid?",
    403: "does its role allow this? 'fleet render' writes the role that is needed",
    429: "the API asks for patience, or a PodDisruptionBudget forbids it now; it is tried again",
}
_CLASSES = {404: Missing, 409: Conflict, 410: Gone}


def refusal(what: str, status: int, message: str, retry_after: Optional[float] = None) -> Refused:
    """The error that an answer of this HTTP status is; `what` was asked for."""
    kind = _CLASSES.get(status, Refused)
    text = f"{what}: {status} {message[:500]}"
    return kind(text, status=status, hint=_HINTS.get(status), retry_after=retry_after)


class Api(Protocol):
    """A Kubernetes API. Every method may raise `Refused` or `Unreachable`."""

    def get(self, kind: Kind, name: str, namespace: Optional[str] = None) -> Document:
        """One object."""

    def pages(
        self, kind: Kind, namespace: Optional[str] = None, labels: str = "", fields: str = ""
    ) -> Iterator[Listing]:
        """All objects, page by page; `labels` is a label selector, `fields` one of fields."""

    def watch(
        self, kind: Kind, version: str, namespace: Optional[str] = None, labels: str = ""
    ) -> Iterator[Event]:
        """What changes after `version`, with bookmarks, until the server ends it."""

    def apply(self, kind: Kind, document: Document, force: bool = False, dry_run: bool = False) -> Document:
        """Server-side apply, as our field manager; `Conflict` names another manager."""

    def merge(self, kind: Kind, name: str, change: Document, namespace: Optional[str] = None) -> Document:
        """A JSON merge patch (RFC 7386)."""

    def create(self, kind: Kind, document: Document) -> Document:
        """A new object; `Conflict` where it is there."""

    def replace(self, kind: Kind, document: Document) -> Document:
        """Put in place of that resourceVersion; `Conflict` where it is another one now."""

    def delete(
        self, kind: Kind, name: str, namespace: Optional[str] = None, like: Optional[Document] = None
    ) -> None:
        """Delete it, and in the background what belongs to it; only the very object and version of `like`."""

    def evict(self, name: str, namespace: str, uid: Optional[str] = None) -> None:
        """Ask a pod to go, that very one; 429 where a PodDisruptionBudget forbids it now."""
