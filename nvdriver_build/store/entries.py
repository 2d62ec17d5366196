"""What lies in a store: the folder of a set."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Callable, Optional

from attrs import frozen

from nvdriver_build.errors import CannotRead, CannotVerify, SigningError, StoreError
from nvdriver_build.sets import ModuleSet, not_read, open_set
from nvdriver_build.signing import TRUST_HINT

Vouch = Callable[[ModuleSet], None]
"""Asks for the signature of a set of others: SigningError where nobody trusted has signed it."""


@frozen
class Entry:
    """A line of `store list`: `problem` is None for a set that can be read, `used` is in epoch seconds.

    `unread`: it could not be read now, and may be good; else one with a problem is damaged.
    """

    key: str
    set: Optional[ModuleSet]
    size: int
    used: float
    problem: Optional[str]
    unread: bool = False


def refuse_foreign(found: ModuleSet) -> None:
    """SigningError: nobody is trusted but this node itself."""
    raise SigningError(
        f"it came from {found.foreign}, and no certificate is configured that could have signed it",
        hint=TRUST_HINT,
    )


def open_entry(folder: Path, *, check: bool = True, vouch: Optional[Vouch] = None) -> ModuleSet:
    """The set in a store's folder, which has to be the one that the folder's name says.

    With `vouch`, a set of others is asked for its signature.
    """
    found = open_set(folder, check=check)
    if found.key != folder.name:
        raise StoreError(f"module set {folder} is damaged: it is {found.key}", hint="it is built anew")
    try:
        if vouch is not None and found.foreign is not None:
            vouch(found)
    except OSError as error:
        raise not_read(folder, "where it came from, and who signed it,", error) from error
    return found


def is_refused(folder: Path, vouch: Optional[Vouch] = None) -> bool:
    """Whether what is there is damaged, or nobody vouches for it; False where that cannot be told now."""
    try:
        open_entry(folder, vouch=vouch)
    except (CannotRead, CannotVerify):
        return False
    except (StoreError, SigningError):
        return os.path.lexists(folder)
    return False


def last_used(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0


def still_goes(entry: Entry, place: Path) -> bool:
    """Whether nobody has used it since, who would have said so first, and what was wrong still is."""
    return last_used(place) <= entry.used and (entry.problem is None or is_refused(place))


def read_entry(folder: Path, check: bool) -> Entry:
    used, size = folder.stat().st_mtime, sum(path.lstat().st_size for path in folder.glob("*"))
    try:
        return Entry(folder.name, open_entry(folder, check=check), size, used, None)
    except StoreError as error:
        return Entry(folder.name, None, size, used, error.message, isinstance(error, CannotRead))
