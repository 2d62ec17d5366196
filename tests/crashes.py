"""Processes that are killed: at a random moment, or before each of their steps on the file system."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from typing import Any, Callable, Iterator

STEPS = (
    "open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "os.utime", "os.symlink", "os.link",
    "os.truncate", "fcntl.flock", "fsync", "shutil.rmtree",
)  # fmt: skip
"""Audit events (https://docs.python.org/3/library/audit_events.html) before which a process is killed."""


def killed_at_each_step(prepare: Callable[[], None], act: Callable[[], object]) -> Iterator[int]:
    """Run `act` in a child that is killed before its first step, then before its second, until it survives.

    `prepare` runs before each child, here; the caller looks at what is left after each yield.
    """
    step = 1
    while True:
        prepare()
        status = _in_child(lambda: _kill_before(step, act))  # noqa: B023
        assert status in (0, -signal.SIGKILL), f"the child ended with {status}"
        yield step
        if status == 0:
            return
        step += 1


def killed_after(seconds: float, act: Callable[[], object]) -> None:
    """Run `act` in a child that is killed some seconds after its start, wherever it is then."""
    reading, writing = os.pipe()

    def announced() -> None:
        os.write(writing, b"1")
        act()

    child = _fork(announced)
    os.read(reading, 1)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reading)
    os.close(writing)


def _kill_before(step: int, act: Callable[[], object]) -> None:
    left = step
    fsync = os.fsync

    def count(event: str, _: Any) -> None:
        nonlocal left
        if event in STEPS:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def counted_fsync(fd: Any) -> None:
        count("fsync", ())
        fsync(fd)

    os.fsync = counted_fsync
    sys.addaudithook(count)
    act()


def _in_child(act: Callable[[], object]) -> int:
    _, status = os.waitpid(_fork(act), 0)
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _fork(act: Callable[[], object]) -> int:
    """A child that runs `act` and nothing of the test framework."""
    child = os.fork()
    if child != 0:
        return child
    try:
        act()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(3)
