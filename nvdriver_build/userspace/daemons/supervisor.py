"""Keeps the daemons running: told when one dies, started again a bounded number of times."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from signal import SIGTERM
from typing import Mapping, Optional

import psutil
import structlog
from attrs import define, field

from nvdriver_build.commands import Commands
from nvdriver_build.errors import LoadError, Stopped
from nvdriver_build.loader.host import Host
from nvdriver_build.userspace.daemons.launch import PID_PATIENCE, Launcher
from nvdriver_build.userspace.daemons.processes import GRACE, alive
from nvdriver_build.userspace.daemons.table import DAEMONS, Daemon, refuse_nvlink5

PAUSES = (0.0, 1.0, 2.0, 4.0, 8.0)
"""Seconds before each restart of a daemon; one that needs more of them within WINDOW stays down."""
WINDOW = 600.0
"""Seconds in which restarts count."""
_log = structlog.get_logger()


@define
class _Watched:
    """A daemon of ours: up, being started again, waiting for that, or given up."""

    daemon: Daemon
    process: Optional[psutil.Process]
    attempt: Optional[Future[psutil.Process]] = None
    restarts: list[float] = field(factory=list)
    due: Optional[float] = None
    why: str = ""


@define
class Supervisor:
    """The daemons of `daemons` that this node wants. All paths of theirs are below `root`.

    A restart runs on a thread of its own, so that `check` never waits for a daemon.
    """

    host: Host
    commands: Commands
    root: Path = Path("/")
    fabric_manager_config: Mapping[str, str] = field(factory=dict)
    daemons: tuple[Daemon, ...] = DAEMONS
    pauses: tuple[float, ...] = PAUSES
    grace: float = GRACE
    pid_patience: float = PID_PATIENCE
    _watched: list[_Watched] = field(factory=list, init=False)
    _leaving: threading.Event = field(factory=threading.Event, init=False)
    _workers: Optional[ThreadPoolExecutor] = field(default=None, init=False)

    def start(self) -> tuple[str, ...]:
        """Start the daemons that are wanted, in the table's order; the names of those that run now.

        LoadError for one that does not start, or is not there in its time, and for a required one that the
        image lacks; UsageError for a system or a setting that is not supported. `stop` is due even then.
        """
        refuse_nvlink5(self.host)
        self._leaving.clear()
        self._watched = []
        for daemon in self.daemons:
            if daemon.wanted(self.host) and self._has(daemon):
                self._watched.append(_Watched(daemon, self._launcher.launch(daemon)))
        return tuple(watched.daemon.program for watched in self._watched)

    def check(self) -> tuple[str, ...]:
        """A sentence for each daemon that is down now. Restarts what died; never waits for it."""
        for watched in self._watched:
            self._look(watched)
        return tuple(watched.why for watched in self._watched if watched.process is None)

    def stop(self) -> None:
        """End every daemon of the table that runs, of this run or of one that was killed."""
        self._leaving.set()
        if self._workers is not None:
            attempts = [watched.attempt for watched in self._watched if watched.attempt is not None]
            wait(attempts, timeout=2 * self.grace)
            self._workers.shutdown(wait=False)
            self._workers = None
        self._watched = []
        for daemon in reversed(self.daemons):
            self._launcher.end(daemon)

    @property
    def _launcher(self) -> Launcher:
        return Launcher(
            self.commands, self.root, self.fabric_manager_config, self._tick, self.grace, self.pid_patience
        )

    def _tick(self) -> None:
        if self._leaving.is_set():
            raise Stopped(SIGTERM)

    def _has(self, daemon: Daemon) -> bool:
        if self.commands.find(daemon.program):
            return True
        if daemon.required:
            raise LoadError(
                f"this node's GPUs do not work without {daemon.program}, which the image does not have",
                hint="build the driver image with it, in the driver's version",
            )
        _log.warning("the image does not have a daemon that the driver can do without", daemon=daemon.program)
        return False

    def _look(self, watched: _Watched) -> None:
        if watched.attempt is not None and watched.attempt.done():
            self._conclude(watched, watched.attempt)
        elif watched.process is not None and not alive(watched.process):
            self._died(watched, watched.process)
        if watched.due is not None and time.monotonic() >= watched.due:
            watched.due = None
            watched.attempt = self._pool().submit(self._launcher.launch, watched.daemon)

    def _pool(self) -> ThreadPoolExecutor:
        self._workers = self._workers or ThreadPoolExecutor(max_workers=len(self.daemons))
        return self._workers

    def _conclude(self, watched: _Watched, attempt: Future[psutil.Process]) -> None:
        watched.attempt = None
        try:
            watched.process = attempt.result()
        except LoadError as error:
            self._plan(watched, error.message)
        else:
            _log.info("daemon runs again", daemon=watched.daemon.program, pid=watched.process.pid)

    def _died(self, watched: _Watched, process: psutil.Process) -> None:
        """Somebody may have started it anew; else plan to do so."""
        watched.process = self._launcher.running(watched.daemon)
        if watched.process is None:
            self._plan(watched, f"pid {process.pid} died")

    def _plan(self, watched: _Watched, why: str) -> None:
        name, now, most = watched.daemon.program, time.monotonic(), len(self.pauses)
        watched.restarts = [moment for moment in watched.restarts if now - moment < WINDOW]
        count = len(watched.restarts)
        if count >= most:
            watched.why = f"{name} stays down after {count} restarts in {WINDOW:g} s: {why}"
            _log.error("daemon stays down", daemon=name, why=watched.why)
            return
        watched.why = f"{name} is down, restart {count + 1} of at most {most} follows: {why}"
        watched.due = now + self.pauses[count]
        watched.restarts.append(watched.due)
        _log.warning("daemon is down", daemon=name, why=watched.why)
