"""A daemon's process: found, looked at, ended; never another one that has its pid by now.

A pid in a file proves nothing: /run/nvidia-fabricmanager is the node's and outlives the pod, and with hostPID
the pid may be anybody's since. A process counts where the program that it executes is the daemon's, or the
kernel's name for it, which is the name of what was executed, for a script too (fs/exec.c, `begin_new_exec`).
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Iterable, Iterator, Optional

import psutil

from nvdriver_build.loader.patience import repeat_while

_PID = re.compile(rb"[1-9][0-9]{0,6}")
"""PID_MAX_LIMIT is 2^22 (include/linux/threads.h)."""
_COMM = 15
"""Bytes of a name that the kernel keeps: TASK_COMM_LEN without its end (include/linux/sched.h)."""
GRACE = 5.0
"""Seconds from SIGTERM to SIGKILL, and from there until it is told; NVIDIA's container waits as long."""


def pid_in(pid_file: Path) -> Optional[int]:
    """The pid that a file holds; None where there is none.

    Only its first line counts: nvidia-persistenced writes over a longer one without cutting it.
    """
    try:
        with pid_file.open("rb") as file:
            pid = _PID.match(file.read(64))
    except OSError:
        return None
    return int(pid.group()) if pid else None


def named_in(pid_file: Path, program: str) -> Optional[psutil.Process]:
    """The living process of `program` whose pid `pid_file` holds; None for all else that it may hold."""
    pid = pid_in(pid_file)
    try:
        process = psutil.Process(pid) if pid is not None else None
    except psutil.NoSuchProcess:
        return None
    return process if process is not None and _executes(process, program) else None


def marked(program: str, mark: str) -> Iterator[psutil.Process]:
    """The living processes of `program` that were started with `mark` (NAME=VALUE) in their environment."""
    name, _, value = mark.partition("=")
    for pid in psutil.pids():
        with contextlib.suppress(psutil.Error, OSError):
            process = psutil.Process(pid)
            if _executes(process, program) and process.environ().get(name) == value:
                yield process


def _executes(process: psutil.Process, program: str) -> bool:
    try:
        is_it = process.name()[:_COMM] == program[:_COMM] or Path(process.exe()).name == program
        return is_it and alive(process)
    except psutil.Error:
        return False


def alive(process: psutil.Process) -> bool:
    """Whether it still runs. A zombie does not; it is reaped where it is our child, as all are to a pid 1."""
    try:
        if not process.is_running():
            return False
        if process.status() != psutil.STATUS_ZOMBIE:
            return True
    except psutil.NoSuchProcess:
        return False
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process.pid, os.WNOHANG)
    return False


def end(processes: Iterable[psutil.Process], grace: float = GRACE) -> tuple[psutil.Process, ...]:
    """SIGTERM, and SIGKILL `grace` seconds later; those that live even so, as long again after it."""
    living = tuple(processes)
    for ask in (psutil.Process.terminate, psutil.Process.kill):
        for process in living:
            with contextlib.suppress(psutil.Error):  # psutil itself signals no reused pid
                ask(process)
        living = repeat_while(bool, grace, _living, living)
    return living


def _living(processes: Iterable[psutil.Process]) -> tuple[psutil.Process, ...]:
    return tuple(process for process in processes if alive(process))
