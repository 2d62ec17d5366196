"""Real small daemons under NVIDIA's names, that do what a test tells them to."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Callable, List

import psutil
from attrs import frozen

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
SCRIPT = """#!{python} -IS
import os, signal, sys, time
name, root = os.path.basename(sys.argv[0]), {root!r}
def told(word):
    return os.path.exists(f"{{root}}/plan/{{name}}.{{word}}")
with open(f"{{root}}/{{name}}.starts", "a") as file:
    print(*sys.argv[1:], file=file)
os.write(1, b"looking for GPUs\\n")
if told("fail"):
    os.write(2, b"no devices\\n")
    sys.exit(3)
if told("hang"):
    time.sleep(60)
ready, done = os.pipe()
if os.fork():
    os.close(done)
    sys.exit(0 if os.read(ready, 1) else 4)
os.setsid()
for number in 0, 1, 2:
    os.close(number)
with open(f"{{root}}/{{name}}.pids", "a") as file:
    print(os.getpid(), file=file)
def end(*_):
    os.unlink({pid_file!r})
    os._exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN if told("deaf") else end)
if told("log"):
    os.makedirs(f"{{root}}/var/log", exist_ok=True)
    with open(f"{{root}}/var/log/fabricmanager.log", "a") as file:
        print("version mismatch", file=file)
if not told("no-pid"):
    file = os.open({pid_file!r}, os.O_RDWR | os.O_CREAT)
    os.write(file, b"%d\\n" % os.getpid())
if told("hang-late"):
    time.sleep(60)
os.write(done, b"1")
if told("die"):
    os._exit(5)
if told("die-soon"):
    time.sleep(0.1)
    os._exit(5)
while True:
    signal.pause()
"""


@frozen
class FakeDaemon:
    """A program `program` on the PATH of `folder`; `pid_file` is its own, as NVIDIA's is."""

    root: Path
    program: str
    pid_file: Path

    def install(self) -> None:
        """Put it on the PATH."""
        program = self.root / "bin" / self.program
        program.parent.mkdir(exist_ok=True)
        program.write_text(
            SCRIPT.format(python=sys.executable, root=str(self.root), pid_file=str(self.pid_file))
        )
        program.chmod(0o755)

    def plan(self, word: str, *, on: bool = True) -> None:
        """What it does at its next start: fail, hang, hang-late, no-pid, die, die-soon, deaf, log."""
        file = self.root / "plan" / f"{self.program}.{word}"
        file.parent.mkdir(exist_ok=True)
        file.touch() if on else file.unlink()

    @property
    def starts(self) -> List[str]:
        """Its arguments, a line for each time that it was started."""
        file = self.root / f"{self.program}.starts"
        return file.read_text().splitlines() if file.exists() else []

    @property
    def pid(self) -> int:
        """What its pid file says."""
        return int(self.pid_file.read_text().split()[0])

    @property
    def living(self) -> List[int]:
        """The pids of all that run."""
        file = self.root / f"{self.program}.pids"
        pids = [int(line) for line in file.read_text().split()] if file.exists() else []
        return [pid for pid in pids if runs(pid)]

    def clean(self) -> None:
        """Let nothing of it run on."""
        for pid in self.living:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def runs(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def eventually(condition: Callable[[], object], seconds: float = 60.0) -> float:
    """Wait until `condition` holds; the seconds that it took. A busy machine gets some patience."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, "waited in vain"
        time.sleep(0.02)
    return time.monotonic() - started
