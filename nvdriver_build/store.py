"""A content-addressed store of module sets on a local path.

    ROOT/sets/KEY/                 a published set: modules and manifest.json; appears whole, by one rename
    ROOT/work/.nvdriver-build-X/   somebody's work; a lock in it tells whether they still live
    ROOT/logs/KEY.log              the log of the last build of that key
    ROOT/locks/KEY                 held while that key is built

A crash leaves at most a private folder under `work`, which the next user of the store removes. A published
set is never changed; one whose bytes differ from its manifest is dropped as soon as it is seen.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path
from typing import Callable, Collection, Iterator, Optional

import structlog
from attrs import frozen

from nvdriver_build.errors import StoreError, UsageError
from nvdriver_build.files import FULL, LockedError, lock, private_folder, publish_folder, sweep
from nvdriver_build.sets import MANIFEST, ModuleSet, Recipe, explain_miss, open_set

DAY = 86400.0
_KEY = re.compile(r"[0-9a-f]{64}")
_log = structlog.get_logger()


@frozen
class Entry:
    """A line of `store list`: `problem` is None for a set that can be read, `used` is in epoch seconds."""

    key: str
    set: Optional[ModuleSet]
    size: int
    used: float
    problem: Optional[str]


@frozen
class Store:
    """The store below `root`; the folder is made, for its owner only, when something is first put in."""

    root: Path

    def find(self, recipe: Recipe) -> Optional[ModuleSet]:
        """The set of exactly this recipe, every byte checked; a damaged one is dropped, told, and None."""
        folder = self._folder(recipe.key)
        with self._translated():
            try:
                folder.lstat()
            except FileNotFoundError:
                return None
        try:
            found = _open(folder)
        except StoreError as error:
            _log.warning("a damaged set is dropped from the store", key=recipe.key[:12], reason=error.message)
            self.drop(recipe.key)
            return None
        with contextlib.suppress(OSError):  # a read-only store serves as well
            os.utime(folder)
        sweep(self.root / "work")  # a hit needs no workspace, which would sweep
        return found

    def add(self, private: Path, key: str) -> ModuleSet:
        """Publish the filled folder `private` (of `workspace`); a set that is there already stays."""
        with self._translated(f"cannot take set {key[:12]}"):
            publish_folder(private, self._folder(key))
        return _open(self._folder(key))

    @contextlib.contextmanager
    def workspace(self) -> Iterator[Path]:
        """A private folder on the store's own file system, gone afterwards."""
        with contextlib.ExitStack() as stack:
            with self._translated():
                self._make_root()
                folder = stack.enter_context(private_folder(self.root / "work"))
            try:
                yield folder
            except OSError as error:
                if error.errno not in FULL:
                    raise
                raise self._unusable("is full", error) from error

    @contextlib.contextmanager
    def building(self, key: str, timeout: float, check: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold the right to build `key`; StoreError where another process holds it for `timeout` seconds.

        `check` is called again and again while waiting; what it raises ends the wait.
        """
        place = self.root / "locks" / key
        with contextlib.ExitStack() as stack:
            try:
                with self._translated():
                    self._make_root()
                    try:
                        stack.enter_context(lock(place, 0, check))
                    except LockedError:
                        _log.info("another process builds this set: waiting", its_log=str(self.log(key)))
                        stack.enter_context(lock(place, timeout, check))
            except LockedError as error:
                raise StoreError(
                    f"another process has been building {key[:12]} for {timeout:g} s",
                    hint=f"look at {self.log(key)}",
                ) from error
            yield

    def log(self, key: str) -> Path:
        """Where the log of a build goes."""
        return self.root / "logs" / f"{key}.log"

    def entries(self) -> tuple[Entry, ...]:
        """Every set, the last used first; damaged ones with what is wrong (their bytes are not read)."""
        return tuple(sorted(self._entries(check=False), key=lambda entry: -entry.used))

    def get(self, prefix: str) -> ModuleSet:
        """The set whose key starts with `prefix`, every byte checked."""
        keys = [folder.name for folder in self._folders() if folder.name.startswith(prefix)]
        if len(keys) != 1:
            raise UsageError(
                f"{len(keys)} sets in {self.root} have a key that starts with {prefix!r}",
                hint="nvdriver-build store list shows the keys",
            )
        return _open(self._folder(keys[0]))

    def check(self) -> tuple[Entry, ...]:
        """Every set with every byte compared; nothing is dropped."""
        return tuple(self._entries(check=True))

    def prune(self, keep: Collection[str], older_than_days: float) -> tuple[str, ...]:
        """Drop the sets that nobody used for some days, and damaged ones, but never a key of `keep`."""
        limit = time.time() - older_than_days * DAY
        dropped = [
            entry.key
            for entry in self.entries()
            if entry.key not in keep and (entry.problem is not None or entry.used < limit)
        ]
        for key in dropped:
            self.drop(key)
        return tuple(dropped)

    def drop(self, key: str) -> None:
        """Take a set out: first out of sight by a rename, then off the disk."""
        with self._translated(), self.workspace() as private:
            with contextlib.suppress(FileNotFoundError):
                self._folder(key).rename(private / key)
            self.log(key).unlink(missing_ok=True)

    def _entries(self, *, check: bool) -> Iterator[Entry]:
        for folder in self._folders():
            with self._translated(), contextlib.suppress(FileNotFoundError):  # dropped by somebody meanwhile
                entry = _entry(folder, check)
                if entry.problem is None or os.path.lexists(folder):
                    yield entry

    def explain_miss(self, recipe: Recipe) -> str:
        """Why no set is the one of `recipe`: the first field in which the nearest differs."""
        there = [entry.set.manifest.recipe for entry in self.entries() if entry.set]
        return explain_miss(recipe, there)

    def _make_root(self) -> None:
        """The store is its owner's alone, whatever is put in first."""
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)

    def _folders(self) -> list[Path]:
        with self._translated(), contextlib.suppress(FileNotFoundError):
            return [
                folder for folder in sorted((self.root / "sets").iterdir()) if _KEY.fullmatch(folder.name)
            ]
        return []

    def _folder(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise StoreError(f"{key!r} is no key of a set", hint=f"keys are in {MANIFEST}")
        return self.root / "sets" / key

    @contextlib.contextmanager
    def _translated(self, what: str = "cannot be used") -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._unusable(what, error) from error

    def _unusable(self, what: str, error: OSError) -> StoreError:
        return StoreError(
            f"the store {self.root} {what}: {error.strerror or error}",
            hint="it has to be readable and writable, with space left; NVDRIVER_STORE names another place",
        )


def _open(folder: Path, *, check: bool = True) -> ModuleSet:
    """The set in a store's folder, which has to be the one that the folder's name says."""
    found = open_set(folder, check=check)
    if found.key != folder.name:
        raise StoreError(f"module set {folder} is damaged: it is {found.key}", hint="it is built anew")
    return found


def _entry(folder: Path, check: bool) -> Entry:
    used, size = folder.stat().st_mtime, sum(path.lstat().st_size for path in folder.glob("*"))
    try:
        return Entry(folder.name, _open(folder, check=check), size, used, None)
    except StoreError as error:
        return Entry(folder.name, None, size, used, error.message)
