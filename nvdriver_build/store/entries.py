"""What lies in a store: the folder of a set."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

from attrs import frozen

from nvdriver_build.errors import StoreError
from nvdriver_build.sets import ModuleSet, open_set


@frozen
class Entry:
    """A line of `store list`: `problem` is None for a set that can be read, `used` is in epoch seconds."""

    key: str
    set: Optional[ModuleSet]
    size: int
    used: float
    problem: Optional[str]


def open_entry(folder: Path, *, check: bool = True) -> ModuleSet:
    """The set in a store's folder, which has to be the one that the folder's name says."""
    found = open_set(folder, check=check)
    if found.key != folder.name:
        raise StoreError(f"module set {folder} is damaged: it is {found.key}", hint="it is built anew")
    return found


def last_used(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0


def read_entry(folder: Path, check: bool) -> Entry:
    used, size = folder.stat().st_mtime, sum(path.lstat().st_size for path in folder.glob("*"))
    try:
        return Entry(folder.name, open_entry(folder, check=check), size, used, None)
    except StoreError as error:
        return Entry(folder.name, None, size, used, error.message)
