"""Who has the driver's device files open.

psutil lists the open files of a process without its devices (`open_files` keeps regular files only), so the
links in /proc/PID/fd are read here; a mapping outlives its descriptor, so /proc/PID/maps is, too (proc(5)).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Iterator, Optional

from attrs import frozen

from nvdriver_build.loader.host import Host

_DEVICE = re.compile(r"\S*/dev/(?:nvidia(?:\d+|ctl|-\S+)|gdrdrv)(?!\S)")


@frozen
class Holder:
    """A process with files of the driver open; `devices` as the process sees their paths."""

    pid: int
    name: str
    devices: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid}: {', '.join(self.devices)})"


def processes_holding(host: Host) -> tuple[Holder, ...]:
    """The processes that have /dev/nvidia* open or mapped, by pid; without hostPID only this container's."""
    pids = sorted(int(path.name) for path in host.proc.glob("[0-9]*"))
    found = (_holder(host.proc / str(pid)) for pid in pids)
    return tuple(holder for holder in found if holder is not None)


def _holder(folder: Path) -> Optional[Holder]:
    try:
        devices = {path for path in (*_descriptors(folder), *_mappings(folder)) if _DEVICE.fullmatch(path)}
        if not devices:
            return None
        name = (folder / "comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:  # gone meanwhile, or not ours to look into
        return None
    return Holder(int(folder.name), name, tuple(sorted(devices)))


def _descriptors(folder: Path) -> Iterator[str]:
    for link in (folder / "fd").iterdir():
        try:
            yield str(link.readlink())
        except OSError:  # closed meanwhile
            continue


def _mappings(folder: Path) -> Iterator[str]:
    maps = (folder / "maps").read_text(encoding="utf-8", errors="replace")
    return (match.group() for match in _DEVICE.finditer(maps))
