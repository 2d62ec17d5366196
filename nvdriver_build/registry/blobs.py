"""Content of a repository: taken with every byte compared, put there only where it is not."""

from __future__ import annotations

import hashlib
import random
import time
from pathlib import Path
from typing import IO, Any, Optional, Sequence, Tuple, Union
from urllib.parse import quote

from attrs import define, field, frozen

from nvdriver_build.registry.artifacts import MOST_DOCUMENT, OCI_MANIFEST, Blob, digest_of
from nvdriver_build.registry.session import PUSH, Session
from nvdriver_build.registry.transport import Failed, Sink

Parts = Sequence[Tuple[Blob, Union[bytes, Path]]]
_TRIES = 4
PATIENCE = 2
"""Times as long as one transfer of everything may take: a node that gives its set has not loaded it yet."""
_PAUSE = 0.3
"""Seconds before the second try, with jitter; twice that before each next one."""


@define
class _File:
    """A file that is being written, with its digest."""

    file: IO[bytes]
    digest: Any = field(factory=hashlib.sha256)

    def restart(self) -> Sink:
        """Forget what an earlier try has written."""
        self.file.seek(0)
        self.file.truncate()
        self.digest = hashlib.sha256()
        return self.write

    def write(self, data: bytes) -> None:
        """Take what came."""
        self.file.write(data)
        self.digest.update(data)


@frozen(eq=False)
class Content:
    """Blobs and image manifests behind a session. Everything raises StoreError."""

    session: Session

    def before(self, until: float) -> Content:
        """The same, that gives up at `until` of the monotonic clock."""
        return Content(self.session.before(until))

    def document(self, tag: str) -> Optional[bytes]:
        """The image manifest that a tag points at; None where there is no such tag."""
        answer = self.session.ask(
            "GET",
            f"manifests/{tag}",
            wanted=(200, 404),
            headers={"Accept": OCI_MANIFEST},
            most=MOST_DOCUMENT,
        )
        if answer.status == 404:
            return None
        kind = answer.headers.get("content-type", "").partition(";")[0].strip()
        if kind != OCI_MANIFEST:
            raise self.session.lying(f"{tag} is of type {kind[:100]!r}, not {OCI_MANIFEST}")
        self._compare(answer.headers.get("docker-content-digest"), digest_of(answer.body), tag)
        return answer.body

    def publish(self, tag: str, document: bytes, parts: Parts, *, known: bool = False) -> None:
        """Let a tag point at an image manifest, once its parts are there. `known`: they mostly are already.

        A registry may say that it has what somebody else is sending just now, and then not find it, as
        docker-registry does: so parts and manifest are tried again, as long as all of it may take.
        """
        limit = PATIENCE * self.session.limits.seconds(sum(blob.size for blob, _ in parts))
        until = time.monotonic() + limit
        for turn in range(_TRIES):
            for blob, content in parts if turn or not known else ():
                self.put(blob, content)
                if time.monotonic() > until:
                    raise self.session.slow(f"{tag} is not there after {limit:.0f} s")
            answer = self.session.ask(
                "PUT",
                f"manifests/{tag}",
                scope=PUSH,
                wanted=(201, 400, 404),
                headers={"Content-Type": OCI_MANIFEST},
                body=document,
            )
            if answer.status == 201:
                self._compare(answer.headers.get("docker-content-digest"), digest_of(document), tag)
                return
            self.session.transport.pause(_PAUSE * 2**turn * random.uniform(0.5, 1.5))
        raise self.session.refused("PUT", answer, PUSH)

    def read(self, blob: Blob) -> bytes:
        """The bytes of a small blob."""
        answer = self.session.ask(
            "GET", f"blobs/{blob.digest}", wanted=(200, 404), most=blob.size, size=blob.size
        )
        if answer.status == 404:
            raise self.session.lying(f"it has no blob {blob.digest}, which it names")
        self._compare(digest_of(answer.body), blob.digest, "a blob")
        return answer.body

    def save(self, blob: Blob, path: Path) -> None:
        """Write a blob to a new file; OSError where that cannot be written."""
        with path.open("wb") as file:
            into = _File(file)
            self.session.ask(
                "GET", f"blobs/{blob.digest}", most=blob.size, size=blob.size, restart=into.restart
            )
        self._compare(f"sha256:{into.digest.hexdigest()}", blob.digest, blob.title or "a blob")

    def has(self, blob: Blob, scope: str = PUSH) -> bool:
        """Whether the registry has a blob; `scope` is what the login may do."""
        answer = self.session.ask("HEAD", f"blobs/{blob.digest}", scope=scope, wanted=(200, 404))
        return answer.status == 200

    def put(self, blob: Blob, content: Union[bytes, Path]) -> bool:
        """Have a blob there; False where it was there before, and nothing was sent."""
        if self.has(blob):
            return False
        started = self.session.ask("POST", "blobs/uploads/", scope=PUSH, wanted=(202,), body=b"")
        try:
            place = self.session.elsewhere(f"{self.session.place.url}/blobs/uploads/", started)
        except Failed as error:
            raise self.session.lying(str(error)) from error
        self.session.ask(
            "PUT",
            f"{place}{'&' if '?' in place else '?'}digest={quote(blob.digest)}",
            scope=PUSH,
            wanted=(201,),
            headers={"Content-Type": "application/octet-stream", "Content-Length": str(blob.size)},
            body=content,
            size=blob.size,
        )
        return True

    def _compare(self, found: Optional[str], wanted: str, what: str) -> None:
        if found is not None and found != wanted:
            raise self.session.lying(f"{what} has the digest {found[:100]}, {wanted} was meant")
