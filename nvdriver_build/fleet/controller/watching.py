"""`fleet watch`: follow the cluster, and make a round after each burst of changes, until a signal.

Threads follow one kind each and renew the Lease; rounds are made by the one that called. A restart at any
point does the same: nothing is remembered but what the API says.
"""

from __future__ import annotations

import datetime
import threading
import time
from typing import Callable, Optional

import structlog
from attrs import define, field

from nvdriver_build.errors import ClusterError
from nvdriver_build.fleet.controller.api import Api, Missing
from nvdriver_build.fleet.controller.election import EVERY, Deposed, Election
from nvdriver_build.fleet.controller.following import Follower, followers
from nvdriver_build.fleet.controller.metrics import Metrics
from nvdriver_build.fleet.controller.patience import Patience
from nvdriver_build.fleet.controller.reporting import Reporter, status_name
from nvdriver_build.fleet.controller.rounds import Outcome, Rounds
from nvdriver_build.fleet.controller.secrets import Secrets
from nvdriver_build.fleet.controller.telling import Teller
from nvdriver_build.fleet.controller.view import View
from nvdriver_build.fleet.manifests import Driver

_log = structlog.get_logger()
_TICK = 0.25


@define
class Pace:
    """Seconds: a burst has settled after so long without a change, or `most` after it began; a round is made
    every `resync` even if nothing changed; kinds that are not there are looked for every `absent`; no
    round for `hung` is a hang.
    """

    settled: float = 0.5
    most: float = 3.0
    resync: float = 300.0
    absent: float = 120.0
    retry: float = 1.0
    hung: float = 900.0


@define
class Watcher:
    """One controller. `stop` is called between steps and raises where a signal came."""

    api: Api
    driver: Driver
    identity: str
    stop: Callable[[], None]
    metrics: Metrics = field(factory=Metrics)
    overrides: dict[str, str] = field(factory=dict)
    pace: Pace = field(factory=Pace)
    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.timezone.utc)
    view: View = field(init=False)
    election: Election = field(init=False)
    followers: tuple[Follower, ...] = field(init=False)
    last: Optional[Outcome] = field(init=False, default=None)
    _changed: threading.Event = field(init=False, factory=threading.Event)
    _ending: threading.Event = field(init=False, factory=threading.Event)
    _bug: Optional[BaseException] = field(init=False, default=None)
    _alive: float = field(init=False, default=0.0)

    def __attrs_post_init__(self) -> None:
        self.view = View(self.driver.name, self._changed.set)
        self.followers = followers(self.api, self.view, self.driver.namespace)
        self.election = Election(self.api, self.driver.namespace, f"{self.driver.name}-fleet", self.identity)
        self._alive = self.clock()

    def run(self) -> None:
        """Until `stop` raises. What ends the threads is closing the API, which the caller does."""
        threads = [
            threading.Thread(target=self._follow, args=(each,), daemon=True) for each in self.followers
        ]
        threads.append(threading.Thread(target=self._renew, daemon=True))
        try:
            for thread in threads:
                thread.start()
            self._loop()
        finally:
            self._ending.set()
            self.election.release()

    def healthy(self) -> tuple[int, bytes]:
        """Of /healthz: whether the loop goes round."""
        silent = self.clock() - self._alive
        return (200, b"ok\n") if silent < self.pace.hung else (503, f"hangs for {silent:.0f} s\n".encode())

    def ready(self) -> tuple[int, bytes]:
        """Of /readyz: whether everything has been read; one that does not lead is ready, too."""
        missing = [each.kind.plural for each in self.followers if not each.cache.synced]
        return (503, f"not read yet: {', '.join(missing)}\n".encode()) if missing else (200, b"ok\n")

    def _loop(self) -> None:
        rounds = Rounds(self.api, self.view, self.driver, self.overrides, guard=self.election.guard)
        teller = Teller(self.api, self.driver.namespace, status_name(self.driver), self.wall)
        secrets = Secrets(self.api, self.driver, self.clock)
        reporter, patience = Reporter(self.api, self.driver, self.wall), Patience(self.pace.retry)
        pause = 0.0
        while True:
            self._wait(pause)
            started = self.clock()
            try:
                rounds.contents = secrets.digests()
                self.last = outcome = rounds.run()
                teller.tell(outcome)
                reporter.report(outcome)
            except Deposed:
                continue
            except ClusterError as error:
                _log.warning("round failed", error=error.message, hint=error.hint)
                self.metrics.round(None, self.clock() - started)
                pause = patience.after(error)
                self._changed.set()
                continue
            self.metrics.round(outcome, self.clock() - started)
            pause = self._after(outcome, patience)

    def _after(self, outcome: Outcome, patience: Patience) -> float:
        """How long to wait before the next round at least."""
        if not outcome.failed:
            patience.forget()
            return 0.0
        self._changed.set()
        return max(patience.after(each.error) for each in outcome.failed[:1])

    def _wait(self, pause: float) -> None:
        """Until there is something to do, we lead, and a burst of changes has settled."""
        began = self.clock()
        while not self._due(began, pause):
            self._tick()
        until = self.clock() + self.pace.most
        while self._changed.is_set() and self.clock() < until:
            self._changed.clear()
            self._sleep(self.pace.settled)
        self._changed.clear()

    def _due(self, began: float, pause: float) -> bool:
        waited = self.clock() - began
        if waited < pause or not self.view.synced or not self.election.leads:
            return False
        return self._changed.is_set() or waited > self.pace.resync

    def _sleep(self, seconds: float) -> None:
        until = self.clock() + seconds
        while self.clock() < until:
            self._tick(until - self.clock())

    def _tick(self, most: float = _TICK) -> None:
        self.stop()
        if self._bug is not None:
            raise self._bug
        self._alive = self.clock()
        self.metrics.leads(self.election.leads)
        self._ending.wait(max(0.0, min(_TICK, most)))

    def _follow(self, follower: Follower) -> None:
        self._for_ever(lambda: self._follow_once(follower), Patience(self.pace.retry), 0.05)

    def _follow_once(self, follower: Follower) -> None:
        if follower.version is None or follower.stale:
            self.metrics.listed(follower.kind)
        try:
            follower.once()
        except Missing:
            if not follower.optional:
                raise
            self._ending.wait(self.pace.absent)

    def _renew(self) -> None:
        self._for_ever(self._step, Patience(self.pace.retry, EVERY), EVERY)

    def _step(self) -> None:
        self.election.step()

    def _for_ever(self, step: Callable[[], None], patience: Patience, every: float) -> None:
        """Steps until the end, slower while they fail; a bug ends the whole program."""
        while not self._ending.is_set():
            began = self.clock()
            try:
                step()
                pause = every if self.clock() - began > self.pace.retry else every * 2.0
                patience.forget()
            except ClusterError as error:
                _log.info("the API failed", error=error.message)
                pause = patience.after(error)
            except Exception as error:
                if not self._ending.is_set():
                    self._bug = error
                return
            self._ending.wait(pause)
