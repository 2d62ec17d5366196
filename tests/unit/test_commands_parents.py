"""A killed process and what it has started: no stray compilers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from processes import living, nap

from nvdriver_build.commands import _dies_with_us

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
NAP = nap(4713)


def test_a_killed_parent_takes_the_program_along() -> None:
    """Where this process is killed, what it has started is told to end, too: no stray compilers."""
    code = "import sys\nfrom nvdriver_build.commands import SystemCommands\n"
    code += "SystemCommands(sys.argv[1]).run(sys.argv[2:], timeout=60)"
    parent = subprocess.Popen((sys.executable, "-c", code, PATH, "sleep", NAP))
    until = time.monotonic() + 60
    while not any(process.name() == "sleep" for process in living(NAP)):
        assert time.monotonic() < until
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    while living(NAP):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_parent_killed_just_before_takes_the_program_along() -> None:
    """Where this process is killed before the one that it started is tied to it, that ends, too."""
    reading, writing = os.pipe()
    parent = os.fork()
    if parent == 0:
        tie, me = _dies_with_us(), os.getpid()
        if os.fork() == 0:
            os.kill(me, signal.SIGKILL)
            while os.getppid() == me:
                time.sleep(0.01)
            tie()
            os.write(writing, b"lives on")
        os._exit(0) if os.getpid() != me else signal.pause()
    os.close(writing)
    os.waitpid(parent, 0)
    assert os.read(reading, 100) == b""
    os.close(reading)
