"""A folder that many nodes share, on a network file system, say: laid out as a store, believed in nothing."""

from __future__ import annotations

import contextlib
import math
import os
import time
from pathlib import Path
from typing import Callable, Iterator, Optional

from attrs import evolve, field, frozen

from nvdriver_build.errors import ModuleFormatError, StoreError
from nvdriver_build.files import (
    copy_plain,
    exchange,
    private_folder,
    publish_folder,
    put_plain,
    read_plain,
    same_plain,
    sync,
)
from nvdriver_build.kernel import KernelTarget
from nvdriver_build.sets import (
    MANIFEST,
    MANIFEST_LIMIT,
    SIGNATURE,
    TELLING,
    ModuleSet,
    Recipe,
    parse_manifest,
)
from nvdriver_build.store.index import Index
from nvdriver_build.store.remote import Unbelievable, required_signature


@frozen
class FolderOffer:
    """A set in a folder where others may write at any time: what is looked at is what was read once."""

    folder: Path
    manifest: bytes = field(repr=False)
    signature: Optional[bytes] = field(repr=False)
    check: Callable[[], None] = lambda: None

    def fetch(self, place: Path) -> None:
        """See `Offer.fetch`; the digests are compared by whoever opens the set."""
        place.mkdir()
        (place / MANIFEST).write_bytes(self.manifest)
        if self.signature is not None:
            (place / SIGNATURE).write_bytes(self.signature)
        for file in parse_manifest(self.manifest, self.folder).files:
            try:
                copy_plain(self.folder / file.file, place / file.file, file.size, self.check)
            except OSError as error:
                raise _unusable(self.folder / file.file, error) from error


@frozen
class SharedStore:
    """The folder. It is written to like a store of one node, but never cleaned up: others may be slow.

    `check` is called while it is read, until `until` of the monotonic clock, and may raise.
    """

    root: Path
    check: Callable[[], None] = lambda: None
    until: float = math.inf

    def __str__(self) -> str:
        return str(self.root)

    def before(self, until: float) -> SharedStore:
        """See `Remote.before`."""
        return evolve(self, until=until)

    def offer(self, key: str) -> Optional[FolderOffer]:
        """See `Remote.offer`."""
        self._check()
        folder = self.root / "sets" / key
        try:
            manifest = read_plain(folder / MANIFEST, MANIFEST_LIMIT)
        except FileNotFoundError:
            return None
        except OSError as error:
            damaged = error.errno in TELLING
            raise _unusable(folder / MANIFEST, error, Unbelievable if damaged else StoreError) from error
        signature = None
        with contextlib.suppress(OSError):
            signature = read_plain(folder / SIGNATURE, MANIFEST_LIMIT)
        return FolderOffer(folder, manifest, signature, self._check)

    def candidates(self, recipe: Recipe, target: KernelTarget) -> Iterator[str]:
        """See `Remote.candidates`."""
        try:
            yield from Index(self.root).candidates(recipe, target, self._check)
        except OSError as error:
            raise _unusable(self.root, error) from error

    def _check(self) -> None:
        self.check()
        if time.monotonic() > self.until:
            raise StoreError(
                f"{self.root}: all the time that it gets is over", hint="is it slow, or full of sets?"
            )

    def push(self, found: ModuleSet) -> bool:
        """See `Remote.push`."""
        required_signature(found)
        place = self.root / "sets" / found.key
        try:
            new = not _is_at(place, found)
            if new:
                self._put(found, place)
            with contextlib.suppress(ModuleFormatError):
                Index(self.root).note(found)
        except OSError as error:
            raise _unusable(self.root, error) from error
        return new

    def _put(self, found: ModuleSet, place: Path) -> None:
        with private_folder(self.root / "work") as private:
            for path in found.files:
                put_plain(path, self.root, private / "set" / path.name)
            if not os.path.lexists(place):
                publish_folder(private / "set", place)
            else:
                sync(private / "set")
                exchange(private / "set", place)


def _is_at(place: Path, found: ModuleSet) -> bool:
    """Whether it is there already, byte by byte."""
    with contextlib.suppress(OSError):
        return all(same_plain(place / path.name, path) for path in found.files)
    return False


def _unusable(place: Path, error: OSError, kind: type[StoreError] = StoreError) -> StoreError:
    return kind(
        f"the shared store cannot be used: {place}: {error.strerror or error}",
        hint="is it mounted, and may this node read it (and write, where it builds for others)?",
    )
