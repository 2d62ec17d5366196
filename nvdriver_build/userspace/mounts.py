"""What is mounted where, from /proc/PID/mountinfo (the kernel's Documentation/filesystems/proc.rst, 3.5)."""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Iterable, Optional, Sequence

from attrs import frozen

from nvdriver_build.errors import LoadError

_OCTAL = re.compile(rb"\\([0-3][0-7]{2})")
_SHARED = b"shared:"


@frozen
class Mount:
    """One mount: `root` is the folder of its file system that `point` shows.

    What is mounted on one member of a `group` is mounted on all of them, in this mount namespace and others;
    None where the mount is private or only receives.
    """

    id: int
    parent: int
    root: str
    point: str
    group: Optional[str]

    def within(self, place: Path) -> bool:
        """Whether it is mounted at `place` or below."""
        return self.point == str(place) or self.point.startswith(f"{place}/")


def read_mounts(proc: Path) -> tuple[Mount, ...]:
    """All mounts of this mount namespace, hidden ones too, in the kernel's order; LoadError without /proc."""
    path = proc / "self" / "mountinfo"
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise LoadError(
            f"cannot read {path}: {error.strerror}", hint="mount a proc file system there"
        ) from error
    return tuple(_mount(line.split(b" ")) for line in lines)


def _mount(fields: Sequence[bytes]) -> Mount:
    groups = (field[len(_SHARED) :].decode() for field in fields[6:] if field.startswith(_SHARED))
    return Mount(int(fields[0]), int(fields[1]), _path(fields[3]), _path(fields[4]), next(groups, None))


def _path(field: bytes) -> str:
    """A path as it is: the kernel writes blank, tab, newline, backslash and `#` in octal."""
    return os.fsdecode(_OCTAL.sub(lambda found: bytes((int(found.group(1), 8),)), field))


def holder(place: Path, mounts: Iterable[Mount]) -> Optional[Mount]:
    """The mount that `place` is on: the last one of the longest path."""
    found = [mount for mount in mounts if place == Path(mount.point) or Path(mount.point) in place.parents]
    return max(reversed(found), key=lambda mount: len(mount.point), default=None)


def taken_along(place: Path, mounts: Sequence[Mount]) -> tuple[str, ...]:
    """What unmounting all within `place` would unmount elsewhere.

    A tree that was bound from shared mounts shares its groups with them: what goes from it goes from them.
    """
    by_id = {mount.id: mount for mount in mounts if mount.group}
    going = {_spot(mount, by_id) for mount in mounts if mount.within(place) and _inside(mount, place, by_id)}
    others = (mount for mount in mounts if not mount.within(place) and mount.parent in by_id)
    return tuple(mount.point for mount in others if _spot(mount, by_id) in going)


def _inside(mount: Mount, place: Path, by_id: dict[int, Mount]) -> bool:
    return mount.parent in by_id and by_id[mount.parent].within(place)


def _spot(mount: Mount, by_id: dict[int, Mount]) -> tuple[Optional[str], str]:
    """Where a mount is, whatever member of its parent's group one looks at: the group, the folder in it."""
    parent = by_id[mount.parent]
    return parent.group, posixpath.join(parent.root, posixpath.relpath(mount.point, parent.point))
