"""A content-addressed store of module sets on a local path.

    ROOT/sets/KEY/           a published set: modules and manifest.json; appears whole, by one rename
    ROOT/work/.tmp-X/        somebody's work; its lock file beside it tells whether they still live
    ROOT/logs/KEY.log        the log of the last build of that key
    ROOT/locks/KEY           held while that key is built

A crash leaves at most a private folder under `work`, which the next user of the store removes. A published
set is never changed; one whose bytes differ from its manifest is dropped as soon as it is seen.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path
from typing import Collection, Iterator, Optional

import structlog
from attrs import frozen

from nvdriver_build.errors import StoreError, UsageError
from nvdriver_build.files import LockedError, lock, private_folder, publish_folder
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
        if not folder.is_dir():
            _log.info("not in the store", key=recipe.key[:12], why=explain_miss(recipe, self._recipes()))
            return None
        try:
            found = open_set(folder)
        except StoreError as error:
            _log.warning("a damaged set is dropped from the store", key=recipe.key[:12], reason=error.message)
            self.drop(recipe.key)
            return None
        with contextlib.suppress(OSError):  # a read-only store serves as well
            os.utime(folder)
        return found

    def add(self, private: Path, key: str) -> ModuleSet:
        """Publish the filled folder `private` (of `workspace`); a set that is there already stays."""
        try:
            publish_folder(private, self._folder(key))
        except OSError as error:
            raise StoreError(
                f"cannot publish set {key[:12]} in {self.root}: {error.strerror}",
                hint="is there space left, and is the store writable?",
            ) from error
        return open_set(self._folder(key))

    @contextlib.contextmanager
    def workspace(self) -> Iterator[Path]:
        """A private folder on the store's own file system, gone afterwards."""
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            with private_folder(self.root / "work") as folder:
                yield folder
        except PermissionError as error:
            raise StoreError(
                f"the store {self.root} is not writable: {error}", hint="mount it writable"
            ) from error
        except OSError as error:
            if error.errno is None or not str(error.filename or "").startswith(str(self.root / "work")):
                raise
            raise StoreError(
                f"the store {self.root} cannot be used: {error}", hint="is there space left?"
            ) from error

    @contextlib.contextmanager
    def building(self, key: str, timeout: float) -> Iterator[None]:
        """Hold the right to build `key`; StoreError where another process holds it for `timeout` seconds."""
        try:
            with lock(self.root / "locks" / key, timeout):
                yield
        except LockedError as error:
            raise StoreError(
                f"another process has been building {key[:12]} for {timeout:g} s", hint="look at its log"
            ) from error

    def log(self, key: str) -> Path:
        """Where the log of a build goes."""
        return self.root / "logs" / f"{key}.log"

    def entries(self) -> tuple[Entry, ...]:
        """Every set, the last used first; damaged ones with what is wrong (their bytes are not read)."""
        entries = [self._entry(folder) for folder in self._folders()]
        return tuple(sorted(entries, key=lambda entry: -entry.used))

    def get(self, prefix: str) -> ModuleSet:
        """The set whose key starts with `prefix`, every byte checked."""
        keys = [folder.name for folder in self._folders() if folder.name.startswith(prefix)]
        if len(keys) != 1:
            raise UsageError(
                f"{len(keys)} sets in {self.root} have a key that starts with {prefix!r}",
                hint="nvdriver-build store list shows the keys",
            )
        return open_set(self._folder(keys[0]))

    def check(self) -> tuple[Entry, ...]:
        """Every set with every byte compared; nothing is dropped."""
        return tuple(self._entry(folder, check=True) for folder in self._folders())

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
        with self.workspace() as private, contextlib.suppress(FileNotFoundError):
            self._folder(key).rename(private / key)
        self.log(key).unlink(missing_ok=True)

    def _entry(self, folder: Path, *, check: bool = False) -> Entry:
        size = sum(path.stat().st_size for path in folder.glob("*"))
        used = folder.stat().st_mtime
        try:
            found = open_set(folder, check=check)
            if found.key != folder.name:
                raise StoreError(f"the set in {folder} is {found.key}")
            return Entry(folder.name, found, size, used, None)
        except StoreError as error:
            return Entry(folder.name, None, size, used, error.message)

    def _recipes(self) -> list[Recipe]:
        return [entry.set.manifest.recipe for entry in self.entries() if entry.set]

    def _folders(self) -> list[Path]:
        sets = self.root / "sets"
        if not sets.is_dir():
            return []
        return [folder for folder in sorted(sets.iterdir()) if _KEY.fullmatch(folder.name)]

    def _folder(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise StoreError(f"{key!r} is no key of a set", hint=f"keys are in {MANIFEST}")
        return self.root / "sets" / key
