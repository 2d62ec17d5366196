"""Starts one daemon and proves that it is there; ends it again. Both block; the supervisor does not."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Callable, Mapping, Optional

import psutil
import structlog
from attrs import frozen

from nvdriver_build.commands import CommandError, Commands
from nvdriver_build.errors import LoadError
from nvdriver_build.files import remove
from nvdriver_build.userspace.daemons.processes import GRACE, alive, end, marked, named_in, pid_in
from nvdriver_build.userspace.daemons.settings import write_settings
from nvdriver_build.userspace.daemons.table import Daemon

SETTLE = 0.3
"""Seconds that a daemon has to live before it counts as started."""
PID_PATIENCE = 10.0
"""Seconds that a daemon may take to write its pid once the program that started it has ended well."""
_PAUSE = 0.05
_MARK = "NVDRIVER_DAEMON_ROOT"
"""In a daemon's environment: so one is found that never wrote its pid, or whose starter was killed."""
_LINES = 10
"""Lines of output that an error quotes."""
_log = structlog.get_logger()


@frozen
class Launcher:
    """Starts daemons below `root`. `tick` is called many times a second meanwhile, and may raise Stopped."""

    commands: Commands
    root: Path
    settings: Mapping[str, str]
    tick: Callable[[], None]
    grace: float = GRACE
    pid_patience: float = PID_PATIENCE

    def launch(self, daemon: Daemon) -> psutil.Process:
        """Start it and return its process; LoadError, with what it said, where it is not there in its time.

        One that runs already, from a run of ours that was killed, is ended first: how it was configured and
        what state it is in cannot be told. A failed start leaves nothing running.
        """
        if self.end(daemon):
            raise LoadError(f"{daemon.program} runs already, and does not end", hint=daemon.hint)
        if daemon.config:
            write_settings(self.root / daemon.config, self.settings)
        said = _Said.of(daemon, self.root)
        try:
            return self._launch(daemon, said)
        except LoadError:
            self.end(daemon)
            raise

    def _launch(self, daemon: Daemon, said: _Said) -> psutil.Process:
        self.tick()
        self._run(daemon, said)
        process = self._wait_for(daemon, said)
        until = time.monotonic() + SETTLE
        while time.monotonic() < until:
            self._pause()
            if not alive(process):
                raise _ended(process.pid, said)
        _log.info("daemon started", daemon=daemon.program, pid=process.pid)
        return process

    def _run(self, daemon: Daemon, said: _Said) -> None:
        try:
            (self.root / daemon.pid_file).parent.mkdir(parents=True, exist_ok=True)
            finished = self.commands.run(
                daemon.command(self.root),
                timeout=daemon.patience,
                cwd=self.root,
                env={_MARK: str(self.root)},
                log=said.output,
                tick=self.tick,
            )
        except (CommandError, OSError) as error:
            raise said.error(f"{daemon.program} cannot be started: {error}") from error
        if not finished.ok:
            raise said.error(f"{daemon.program} did not start: exit code {finished.exit_code}")

    def _wait_for(self, daemon: Daemon, said: _Said) -> psutil.Process:
        until = time.monotonic() + self.pid_patience
        while True:
            pid = pid_in(self.root / daemon.pid_file)  # first: it may be written between the two looks
            process = self.running(daemon)
            if process is not None:
                return process
            if pid is not None:
                raise _ended(pid, said)
            if time.monotonic() > until:
                raise said.error(
                    f"{daemon.program} said that it started, but wrote no pid to "
                    f"{self.root / daemon.pid_file} within {self.pid_patience:g} s"
                )
            self._pause()

    def _pause(self) -> None:
        self.commands.check()
        self.tick()
        time.sleep(_PAUSE)

    def running(self, daemon: Daemon) -> Optional[psutil.Process]:
        """The daemon that its pid file names, if it lives."""
        return named_in(self.root / daemon.pid_file, daemon.program)

    def end(self, daemon: Daemon) -> tuple[psutil.Process, ...]:
        """End it where it runs, whoever of us started it, and remove its pid file; what does not end."""
        named = self.running(daemon)
        found = set(marked(daemon.program, f"{_MARK}={self.root}")) | ({named} if named else set())
        left = end(found, self.grace)
        for process in left:
            _log.warning("daemon does not end", daemon=daemon.program, pid=process.pid)
        for process in found.difference(left):
            _log.info("daemon stopped", daemon=daemon.program, pid=process.pid)
        if not left:
            remove(self.root / daemon.pid_file)
        return left


@frozen
class _Said:
    """What a daemon says of itself from now on: its output, and what it adds to its own log."""

    daemon: Daemon
    output: Path
    log: Optional[Path]
    size: int

    @classmethod
    def of(cls, daemon: Daemon, root: Path) -> _Said:
        output = root / "var" / "run" / "nvdriver-build" / f"{daemon.program}.log"
        output.parent.mkdir(parents=True, exist_ok=True)
        remove(output)
        log = root / daemon.log if daemon.log else None
        return cls(daemon, output, log, log.stat().st_size if log and log.is_file() else 0)

    def error(self, message: str) -> LoadError:
        lines = [*_lines(self.output, 0), *(_lines(self.log, self.size) if self.log else ())]
        quoted = "".join(f"\n  {line}" for line in lines[-_LINES:])
        return LoadError(f"{message}{':' if quoted else ''}{quoted}", hint=self.daemon.hint)


def _lines(file: Path, start: int) -> list[str]:
    """The last lines of a file, looked for in its last 4 KiB, but not before `start`."""
    with contextlib.suppress(OSError), file.open("rb") as opened:
        size = file.stat().st_size
        opened.seek(max(size - 4096, start if start <= size else 0))
        return opened.read().decode("utf-8", "replace").splitlines()
    return []


def _ended(pid: int, said: _Said) -> LoadError:
    return said.error(f"{said.daemon.program} (pid {pid}) ended right after its start")
