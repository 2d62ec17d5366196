"""`fleet watch`: follow the cluster, and make a round after each burst of changes, until a signal.

Threads follow one kind each and renew the Lease; rounds are made by the one that called. A restart at any
point does the same: nothing is remembered but what the API says.
"""

from __future__ import annotations

import datetime
import functools
import threading
import time
from typing import Callable, Mapping, Optional

import structlog
from attrs import define, field

from nvdriver_build.errors import ClusterError
from nvdriver_build.fleet.controller.api import Api, Missing
from nvdriver_build.fleet.controller.election import EVERY, Deposed, Election, utc
from nvdriver_build.fleet.controller.following import Follower, followers
from nvdriver_build.fleet.controller.metrics import Metrics
from nvdriver_build.fleet.controller.patience import Patience
from nvdriver_build.fleet.controller.reporting import Reporter, status_name
from nvdriver_build.fleet.controller.rounds import Outcome, Rounds
from nvdriver_build.fleet.controller.secrets import Secrets
from nvdriver_build.fleet.controller.telling import Teller
from nvdriver_build.fleet.controller.threads import Threads
from nvdriver_build.fleet.controller.upgrading import AGAIN
from nvdriver_build.fleet.controller.view import View
from nvdriver_build.fleet.manifests import Driver
from nvdriver_build.fleet.plan import Sets

_log = structlog.get_logger()
_TICK = 0.25


@define
class Pace:
    """Seconds: a burst has settled after so long without a change, or `most` after it began; a round is made
    every `resync` even if nothing changed, and `again` after one that asks for it; kinds that are not there
    are looked for every `absent`; no round for `hung` is a hang.
    """

    settled: float = 0.5
    most: float = 3.0
    resync: float = 300.0
    again: float = AGAIN
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
    overrides: Mapping[str, str] = field(factory=dict)
    pace: Pace = field(factory=Pace)
    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], datetime.datetime] = utc
    sets: Optional[Sets] = None
    view: View = field(init=False)
    election: Election = field(init=False)
    followers: tuple[Follower, ...] = field(init=False)
    last: Optional[Outcome] = field(init=False, default=None)
    _changed: threading.Event = field(init=False, factory=threading.Event)
    _threads: Threads = field(init=False)
    _alive: float = field(init=False, default=0.0)
    _retry: float = field(init=False, default=0.0)

    def __attrs_post_init__(self) -> None:
        self.view = View(self.driver.name, self._changed.set)
        self.followers = followers(self.api, self.view, self.driver.namespace)
        self.election = Election(self.api, self.driver.namespace, f"{self.driver.name}-fleet", self.identity)
        self._threads = Threads(self.pace.retry, self.clock)
        self._alive, self._retry = self.clock(), self.pace.resync

    def run(self) -> None:
        """Until `stop` raises. What ends the threads is closing the API, which the caller does."""
        try:
            for each in self.followers:
                self._threads.start(functools.partial(self._follow, each), 0.0)
            self._threads.start(self._renew, EVERY, EVERY)
            self._loop()
        finally:
            self._threads.end()
            self.election.release()

    def wake(self) -> None:
        """Something else than the cluster has changed."""
        self._changed.set()

    def healthy(self) -> tuple[int, bytes]:
        """Of /healthz: whether the loop goes round."""
        silent = self.clock() - self._alive
        return (200, b"ok\n") if silent < self.pace.hung else (503, f"hangs for {silent:.0f} s\n".encode())

    def ready(self) -> tuple[int, bytes]:
        """Of /readyz: whether everything has been read; one that does not lead is ready, too."""
        missing = [each.kind.plural for each in self.followers if not each.cache.synced]
        return (503, f"not read yet: {', '.join(missing)}\n".encode()) if missing else (200, b"ok\n")

    def _loop(self) -> None:
        rounds = Rounds(
            self.api,
            self.view,
            self.driver,
            self.overrides,
            self.sets,
            guard=self.election.guard,
            wall=self.wall,
        )
        telling = Telling(self.api, self.driver, self.wall, self.clock)
        patience, pause = Patience(self.pace.retry), 0.0
        while True:
            self._wait(pause)
            started, outcome = self.clock(), None
            try:
                self.last = outcome = telling.round(rounds)
                self._retry = self._after(outcome, patience)
                pause = patience.asked(each.error for each in outcome.failed)
            except Deposed:
                pause = 0.0
                self._changed.set()  # nothing is done: whoever leads next begins with it
            except ClusterError as error:
                _log.warning("round failed", error=error.message, hint=error.hint)
                pause = patience.after(error)
                self._changed.set()
            self.metrics.round(outcome, self.clock() - started)

    def _after(self, outcome: Outcome, patience: Patience) -> float:
        """Until when a round is made though nothing changes: one write that fails holds up no other."""
        usual = self.pace.again if outcome.again else self.pace.resync
        if outcome.failed:
            return min(usual, patience.after())
        patience.forget()
        return usual

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
        return self._changed.is_set() or waited > self._retry

    def _sleep(self, seconds: float) -> None:
        until = self.clock() + seconds
        while self.clock() < until:
            self._tick(until - self.clock())

    def _tick(self, most: float = _TICK) -> None:
        self.stop()
        self._threads.check()
        self._alive = self.clock()
        self.metrics.leads(self.election.leads)
        self._threads.wait(min(_TICK, most))

    def _follow(self, follower: Follower) -> None:
        if follower.version is None or follower.stale:
            self.metrics.listed(follower.kind)
        try:
            follower.once()
        except Missing:
            if not follower.optional:
                raise
            self._threads.wait(self.pace.absent)

    def _renew(self) -> None:
        self.election.step()


@define
class Telling:
    """A round, and what is told of it: Events and the status ConfigMap."""

    api: Api
    driver: Driver
    wall: Callable[[], datetime.datetime]
    clock: Callable[[], float]
    _teller: Teller = field(init=False)
    _reporter: Reporter = field(init=False)
    _secrets: Secrets = field(init=False)

    def __attrs_post_init__(self) -> None:
        name = status_name(self.driver)
        self._teller = Teller(self.api, self.driver.namespace, name, self.wall)
        self._reporter = Reporter(self.api, self.driver, self.wall)
        self._secrets = Secrets(self.api, self.driver, self.clock)

    def round(self, rounds: Rounds) -> Outcome:
        """Raises what the API raises where nothing could be planned or reported."""
        rounds.contents = self._secrets.digests()
        outcome = rounds.run()
        self._teller.tell(outcome)
        self._reporter.report(outcome)
        return outcome


def apply_once(
    api: Api,
    driver: Driver,
    overrides: Mapping[str, str],
    sets: Optional[Sets] = None,
    wall: Callable[[], datetime.datetime] = utc,
) -> Outcome:
    """`fleet apply`: read everything, make one round, report it. It replaces no driver that runs."""
    view = read_view(api, driver.name, driver.namespace)
    return Telling(api, driver, wall, time.monotonic).round(
        Rounds(api, view, driver, overrides, sets, upgrades=False)
    )


def read_view(api: Api, manager: str, namespace: str) -> View:
    """The whole cluster, read once."""
    view = View(manager, lambda: None)
    for each in followers(api, view, namespace):
        try:
            each.list()
        except Missing:
            if not each.optional:
                raise
    return view
