"""A content-addressed store of module sets on a local path.

    ROOT/sets/KEY/                 a published set: modules and manifest.json; appears whole, by one rename
    ROOT/index/                    which of them might fit another kernel (`index`)
    ROOT/work/.nvdriver-build-X/   somebody's work; a lock in it tells whether they still live
    ROOT/logs/KEY.log              the log of the last build of that key
    ROOT/kept/KEY                  what the compiler answered in that build, for others (`build.kept`)
    ROOT/locks/KEY                 held while that key is built

A crash leaves at most a private folder under `work`, which the next user of the store removes. A published
set is never changed; one whose bytes differ from its manifest is dropped as soon as it is seen. One that
cannot be read now may be good: it stays until there is another of its key.

Who can write here decides what the kernel runs: the store is its node's own. Sets of others come in through
`obtain` alone, say so in a file `foreign`, and are asked for their signature each time.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from functools import partial
from pathlib import Path
from typing import Callable, Collection, Iterator, Optional, Sequence

import structlog
from attrs import frozen

from nvdriver_build.build.kept import forget
from nvdriver_build.errors import (
    CannotRead,
    CannotVerify,
    ModuleFormatError,
    NvdriverError,
    SigningError,
    StoreError,
    UsageError,
)
from nvdriver_build.files import FULL, LockedError, lock, private_folder, publish_folder, sweep
from nvdriver_build.kernel import KernelTarget
from nvdriver_build.sets import MANIFEST, ModuleSet, Recipe, explain_miss
from nvdriver_build.store.entries import (
    Entry,
    Vouch,
    is_refused,
    last_used,
    open_entry,
    read_entry,
    refuse_foreign,
    still_goes,
)
from nvdriver_build.store.index import Index
from nvdriver_build.store.owner import make_root, require_own
from nvdriver_build.store.pruning import Rules, unwanted
from nvdriver_build.store.remote import Offer, Remote, Unbelievable
from nvdriver_build.store.shared import SharedStore

__all__ = ["Entry", "Offer", "Remote", "Rules", "SharedStore", "Store", "Unbelievable"]

_KEY = re.compile(r"[0-9a-f]{64}")
_EXPLAINED = 16
"""Sets that are opened to explain a miss."""
_LOOKS, _PAUSE = 10, 0.1
"""So often, with so many seconds between, a set is looked for that went out of sight while it was read."""
_log = structlog.get_logger()


@frozen
class Store:
    """The store below `root`; the folder is made, for its owner only, when something is first put in."""

    root: Path
    vouch: Vouch = refuse_foreign

    def find(self, recipe: Recipe) -> Optional[ModuleSet]:
        """The set of exactly this recipe, every byte checked; a damaged one is dropped, told, and None."""
        return self.take(recipe.key)

    def fitting(self, recipe: Recipe, target: KernelTarget) -> Iterator[ModuleSet]:
        """Sets like that of `recipe` but of other kernels whose symbols `target` has, the last used first.

        Every byte of each is checked. Whether one fits is `check_fit`'s to say.
        """
        with self._translated():
            keys = [key for key in self._index.candidates(recipe, target) if _KEY.fullmatch(key)]
        for key in sorted(keys, key=lambda key: -last_used(self._folder(key))):
            found = self.take(key)
            if found is not None:
                yield found
            elif not os.path.lexists(self._folder(key)):  # one that was left alone stays in the index
                with contextlib.suppress(OSError):  # a read-only store serves as well
                    self._index.drop(key)

    def take(self, key: str) -> Optional[ModuleSet]:
        """The set of a key, every byte checked; a damaged one is dropped, told, and None.

        One that cannot be looked at now is left alone, told, and None.
        """
        folder = self._folder(key)
        for look in range(_LOOKS):
            if not self._is_there(folder):
                if look == 0:
                    return None
                time.sleep(_PAUSE)
                continue
            with contextlib.suppress(OSError):  # a read-only store serves as well
                os.utime(folder)  # first of all: what is used now is not pruned
            try:
                found = open_entry(folder, vouch=self.vouch)
            except (CannotRead, CannotVerify) as error:  # it may be good: another start may tell
                self._told(key, "a set that cannot be looked at is left alone", error)
                return None
            except (StoreError, SigningError) as error:
                if look > 0 and self._drop_refused(key, error):
                    return None
                continue
            self._note(found)
            sweep(self.root / "work")  # a hit needs no workspace, which would sweep
            return found
        return None

    def _is_there(self, folder: Path) -> bool:
        with self._translated():
            try:
                folder.lstat()
            except FileNotFoundError:
                return False
            require_own(self.root)
            return True

    def _drop_refused(self, key: str, error: NvdriverError) -> bool:
        what = "a set that nobody vouches for" if isinstance(error, SigningError) else "a damaged set"
        self._told(key, f"{what} is dropped from the store", error)
        return self._drop(key, partial(is_refused, vouch=self.vouch))

    def _told(self, key: str, event: str, error: NvdriverError) -> None:
        _log.warning(event, key=key[:12], reason=error.message, hint=error.hint)

    def _note(self, found: ModuleSet) -> None:
        """Let other kernels find it, too; where that is not to be had, this one is served all the same."""
        with contextlib.suppress(OSError, ModuleFormatError):
            self._index.note(found)

    def add(self, private: Path, key: str) -> ModuleSet:
        """Publish the filled folder `private` (of `workspace`); a good set that is there already stays."""
        with self._translated(f"cannot take set {key[:12]}"):
            if not publish_folder(private, self._folder(key)):
                there = self.take(key)
                if there is not None:
                    return there
                self.drop(key)  # one that could not be looked at was left alone
                publish_folder(private, self._folder(key))
        found = open_entry(self._folder(key))
        self._note(found)
        return found

    @contextlib.contextmanager
    def workspace(self) -> Iterator[Path]:
        """A private folder on the store's own file system, gone afterwards."""
        with contextlib.ExitStack() as stack:
            with self._translated():
                make_root(self.root)
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
                    make_root(self.root)
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

    def kept(self, key: str) -> Path:
        """Where what a build has learned goes, for later ones."""
        return self.root / "kept" / key

    def entries(self) -> tuple[Entry, ...]:
        """Every set, the last used first; damaged ones with what is wrong (their bytes are not read)."""
        return tuple(sorted(self._entries(self._folders(), check=False), key=lambda entry: -entry.used))

    def get(self, prefix: str) -> ModuleSet:
        """The set whose key starts with `prefix`, every byte checked."""
        keys = [folder.name for folder in self._folders() if folder.name.startswith(prefix)]
        if len(keys) != 1:
            raise UsageError(
                f"{len(keys)} sets in {self.root} have a key that starts with {prefix!r}",
                hint="nvdriver-build store list shows the keys",
            )
        return open_entry(self._folder(keys[0]))

    def check(self) -> tuple[Entry, ...]:
        """Every set with every byte compared; nothing is dropped."""
        return tuple(self._entries(self._folders(), check=True))

    def prune(self, keep: Collection[str], rules: Rules) -> tuple[str, ...]:
        """Drop the sets that `rules` tell to go, never a key of `keep`, nor one that is used meanwhile.

        Every byte of each is read: what `check` calls damaged goes.
        """
        with self._translated():
            sweep(self.root / "work")
            forget(self.root / "kept", time.time() - rules.unused)
        gone = unwanted(self.check(), keep, rules, time.time())
        return tuple(entry.key for entry in gone if self._drop(entry.key, partial(still_goes, entry)))

    def drop(self, key: str) -> None:
        """Take a set out: first out of sight by a rename, then off the disk."""
        self._drop(key, lambda place: True)

    def _drop(self, key: str, goes: Callable[[Path], bool]) -> bool:
        """Drop a set if it `goes`: asked before, and again where nobody else can reach it.

        What was used between the two, or came there, is put back: who is reading it looks again (`take`).
        """
        place = self._folder(key)
        with self._translated(), self.workspace() as private:
            if not goes(place):
                return False
            with contextlib.suppress(FileNotFoundError):
                place.rename(private / key)
            if not goes(private / key):
                with contextlib.suppress(FileNotFoundError):
                    publish_folder(private / key, place, durable=False)  # at once: it is on the disk already
                return False
            self._index.drop(key)
            self.log(key).unlink(missing_ok=True)
            return True

    def _entries(self, folders: Sequence[Path], *, check: bool) -> Iterator[Entry]:
        for folder in folders:
            with self._translated(), contextlib.suppress(FileNotFoundError):  # dropped by somebody meanwhile
                entry = read_entry(folder, check)
                if entry.problem is None or os.path.lexists(folder):
                    yield entry

    def explain_miss(self, recipe: Recipe) -> str:
        """Why none is the set of `recipe`: the first field in which the nearest of the last used differs."""
        last = sorted(self._folders(), key=last_used)[-_EXPLAINED:]
        there = [entry.set.manifest.recipe for entry in self._entries(last, check=False) if entry.set]
        return explain_miss(recipe, there)

    @property
    def _index(self) -> Index:
        return Index(self.root)

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
