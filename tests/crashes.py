"""Processes that are killed: at a random moment, before each of their steps on the file system, or, by
strace, at each of their system calls that change it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Callable, Iterator, Tuple

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


CALLS = (
    "write", "pwrite64", "sendfile", "copy_file_range", "fsync", "fdatasync", "rename", "renameat2", "link",
    "unlink", "unlinkat", "mkdir", "rmdir", "chmod", "fchmod", "utimensat", "ftruncate",
)  # fmt: skip
"""System calls that change a file system; at each one in turn a process is killed."""


def killed_at_each_call(
    prepare: Callable[[], None], act: Callable[[], object]
) -> Iterator[Tuple[str, int, bool]]:
    """Run `act` in a child; strace kills it, or a program that it started, at its first write, its second...

    Yields the call, its number, and whether the child itself was killed, or lived to tell of the program.
    """
    for call in CALLS:
        number, met = 1, True
        while met:
            prepare()
            met, killed = _killed_at(call, number, act)
            if met:
                yield call, number, killed
            number += 1


def _killed_at(call: str, number: int, act: Callable[[], object]) -> Tuple[bool, bool]:
    """Whether the call was met, and whether the child was killed by it."""
    reading, writing = os.pipe()

    def stopped() -> None:
        os.kill(os.getpid(), signal.SIGSTOP)  # until strace is there
        act()

    child = _fork(stopped, quiet=True)
    os.waitpid(child, os.WUNTRACED)
    argv = ["strace", "-f", "-qq", "-o", f"/dev/fd/{writing}", "-e", f"trace={call}"]
    argv += ["-e", f"inject={call}:signal=KILL:when={number}", "-p", str(child)]
    with subprocess.Popen(argv, pass_fds=[writing]) as tracer, os.fdopen(reading) as log:
        os.close(writing)
        while "TracerPid:\t0" in Path(f"/proc/{child}/status").read_text():
            assert tracer.poll() is None, "strace cannot trace here"
            time.sleep(0.001)
        os.kill(child, signal.SIGCONT)
        met = "killed by SIGKILL" in log.read()
        _, status = os.waitpid(child, 0)
    return met, os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


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


def _fork(act: Callable[[], object], *, quiet: bool = False) -> int:
    """A child that runs `act` and nothing of the test framework; `quiet`: what it raises is expected."""
    child = os.fork()
    if child != 0:
        return child
    try:
        act()
        os._exit(0)
    except BaseException:
        if not quiet:
            traceback.print_exc()
        os._exit(3)
