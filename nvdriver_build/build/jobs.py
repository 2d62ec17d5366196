"""How many compilers may run at once: what the cgroup, the cpuset and the memory allow.

`nproc` and `os.cpu_count()` do not see a container's quota (gpu-operator 570).
Files: kernel Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Iterator, Optional

from attrs import frozen

GIB = 1024**3
JOB_MEMORY = GIB
"""Bytes of memory reckoned for a job."""
_UNLIMITED = 1 << 60
"""cgroup v1 says 'no limit' with a number near 2**63."""


@frozen
class Capacity:
    """What there is: processors of the cpuset, processors of the quota, bytes of memory to be had."""

    cpus: int
    quota: Optional[float]
    memory: Optional[int]

    def jobs(self, job_memory: int = JOB_MEMORY) -> int:
        """At least one, at most one for each processor and each `job_memory` bytes."""
        bounds = [float(self.cpus)]
        if self.quota is not None:
            bounds.append(math.ceil(self.quota))
        if self.memory is not None:
            bounds.append(self.memory // job_memory)
        return max(1, int(min(bounds)))


def measure(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> Capacity:
    """The capacity of this process, from its cgroups (v1 and v2), its cpuset and the memory available."""
    places = list(_places(proc, cgroups))
    return Capacity(
        cpus=len(os.sched_getaffinity(0)),
        quota=min((quota for place in places if (quota := _quota(place)) is not None), default=None),
        memory=min(
            [*(left for place in places if (left := _memory_left(place)) is not None), *_available(proc)],
            default=None,
        ),
    )


def _places(proc: Path, cgroups: Path) -> Iterator[Path]:
    """The folders of this process's cgroups and of all their ancestors, since each may have a limit."""
    for line in _read(proc / "self/cgroup", "").splitlines():
        _, controllers, path = line.split(":", 2)
        for mount in _mounts(cgroups, controllers):
            folder = mount / path.lstrip("/")
            while True:
                if folder.is_dir():
                    yield folder
                if folder == mount or mount not in folder.parents:
                    break
                folder = folder.parent


def _mounts(cgroups: Path, controllers: str) -> list[Path]:
    if not controllers:
        return [cgroups, cgroups / "unified"]
    return [cgroups / controllers, *(cgroups / name for name in controllers.split(","))]


def _quota(folder: Path) -> Optional[float]:
    words = _read(folder / "cpu.max", "").split()
    if not words:
        words = [_read(folder / "cpu.cfs_quota_us", ""), _read(folder / "cpu.cfs_period_us", "")]
    try:
        quota, period = int(words[0]), int(words[1])
    except (ValueError, IndexError):  # 'max', or no such file
        return None
    return quota / period if quota > 0 and period > 0 else None


def _memory_left(folder: Path) -> Optional[int]:
    for limit_name, usage_name in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        limit, usage = _number(folder / limit_name), _number(folder / usage_name)
        if limit is not None and limit < _UNLIMITED:
            return max(0, limit - (usage or 0) + _reclaimable(folder))
    return None


def _reclaimable(folder: Path) -> int:
    """Page cache counts as used memory, but gives way; in cgroup v1 only `total_` counts the children too."""
    stat = dict(line.partition(" ")[::2] for line in _read(folder / "memory.stat", "").splitlines())
    text = stat.get("total_inactive_file", stat.get("inactive_file", ""))
    return int(text) if text.isdecimal() else 0


def _available(proc: Path) -> list[int]:
    for line in _read(proc / "meminfo", "").splitlines():
        if line.startswith("MemAvailable:"):
            return [int(line.split()[1]) * 1024]
    return []


def _number(path: Path) -> Optional[int]:
    try:
        return int(_read(path, ""))
    except ValueError:
        return None


def _read(path: Path, default: str) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return default
