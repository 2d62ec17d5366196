"""Mount namespaces for tests: a host, and containers on it, in which anything may be mounted.

    def host():
        run_folder = shared_folder(tmp_path / "run")
        in_container(container)
        assert ...
    in_host(host)

All of it is gone when `in_host` returns.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Callable, Tuple

_CLONE_NEWNS = 0x20000
"""Linux include/uapi/linux/sched.h."""
Act = Callable[[], object]


def mount(*words: object) -> None:
    """Run mount."""
    subprocess.run(("mount", *map(str, words)), check=True)


def mountinfo() -> str:
    """What is mounted in this namespace."""
    return Path("/proc/self/mountinfo").read_text()


def points(place: Path) -> Tuple[str, ...]:
    """What is mounted at `place` or below, in the kernel's spelling; for paths without blanks."""
    found = (line.split()[4] for line in mountinfo().splitlines())
    above = str(place).rstrip("/")
    return tuple(point for point in found if point == str(place) or point.startswith(f"{above}/"))


def shared_folder(path: Path) -> Path:
    """An empty folder that is a shared mount, as /run of a node."""
    path.mkdir(parents=True)
    mount("-t", "tmpfs", "host", path)
    mount("--make-shared", path)
    return path


def in_host(act: Act) -> None:
    """Run `act` in a child that has all mounts of this process, tied to none of them."""

    def inside() -> None:
        _unshare()
        mount("--make-rprivate", "/")
        _forget_others()
        act()

    assert _wait(_fork(inside)) == 0


def in_container(act: Act, *, shared_root: bool = False) -> int:
    """Run `act` in a child whose shared mounts are the caller's too; its exit status, negative for a signal.

    With `shared_root` its others are shared as well, as in a pod that has a Bidirectional mount.
    """

    def inside() -> None:
        _unshare()
        for point in ("/", "/proc", "/sys", "/dev") if shared_root else ():
            mount("--make-shared", point)
        act()

    return _wait(_fork(inside))


def _forget_others() -> None:
    """Let go of what other tests have mounted: it goes from every namespace once its folder is removed."""
    theirs = (point for point in points(Path("/")) if "/pytest-of-" in point or "/podman/" in point)
    for point in sorted(theirs, key=len, reverse=True):
        subprocess.run(("umount", "-l", point), check=False, stderr=subprocess.DEVNULL)


def _unshare() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")


def _fork(act: Act) -> int:
    child = os.fork()
    if child == 0:
        try:
            act()
            status = 0
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return child


def _wait(child: int) -> int:
    _, status = os.waitpid(child, 0)
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
