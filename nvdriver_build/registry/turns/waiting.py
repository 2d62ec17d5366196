"""Taking turns at a board."""

from __future__ import annotations

import contextlib
import math
import random
import secrets
import threading
import time
from typing import Callable, Iterator, Optional, TypeVar

import structlog
from attrs import define, field, frozen

from nvdriver_build.errors import Stopped
from nvdriver_build.registry.turns.board import Board, NoBoard, Sight

T = TypeVar("T")
_EVERY = 4
"""Looks after which the set itself is looked for, although somebody still seems to build it."""
_MOST_HOLDERS = 3
"""So many may have had their turn and left no set; then it is not worth waiting for the next."""
_MOST_FAILURES = 3
"""Times in a row that a board may fail: one that many write to at once does so now and then."""
_GLANCE = 0.2
_GROWTH = 1.5
_log = structlog.get_logger()


@frozen
class Waits:
    """Seconds. A holder who gives no sign of life for `dead` is; they give one each `beat`.

    Others look after `first`, then more and more seldom, up to each `last`, and wait for at most `most`.
    """

    dead: float = 45.0
    beat: float = 10.0
    first: float = 1.0
    last: float = 15.0
    most: float = 600.0


@define
class _Watch:
    """Whether what stands at a board lives: judged by our own clock since it last changed."""

    dead: float
    seen: Optional[Sight] = None
    since: float = 0.0
    holders: set[str] = field(factory=set)

    def lives(self, sight: Optional[Sight]) -> bool:
        """Whether somebody holds it, and has given a sign of life lately."""
        now = time.monotonic()
        if sight != self.seen:
            self.seen, self.since = sight, now
        if sight is None or not sight.holder:
            return False
        if sight.settled:
            self.holders.add(sight.holder)
        return now - self.since < self.dead


@frozen
class Turns:
    """Turns at a board. `name` is told to others; `check` is called while waiting and may raise."""

    board: Board
    name: str
    waits: Waits = field(factory=Waits)
    check: Callable[[], None] = lambda: None

    @contextlib.contextmanager
    def turn(
        self, key: str, there: Callable[[], Optional[T]], *, builds: bool = True, until: float = math.inf
    ) -> Iterator[Optional[T]]:
        """What somebody else has built, as `there` gives it; None: build it, it is our turn meanwhile.

        Or nobody's, where waiting any longer is not worth it. One who does not build for others (`builds`)
        waits for those who do, but takes no turn. Nobody is waited for after `until` of the monotonic clock.
        """
        name = f"{self.name}-{secrets.token_hex(4)}"
        found, ours = self._wait(key, name, there, builds, until)
        if not ours:
            yield found
            return
        stop = threading.Event()
        keeper = threading.Thread(target=self._keep, args=(key, name, stop), daemon=True)
        keeper.start()
        try:
            yield found
        finally:
            stop.set()
            keeper.join(self.waits.beat)
            self._release(key, name)

    def _wait(
        self, key: str, name: str, there: Callable[[], Optional[T]], builds: bool, until: float
    ) -> tuple[Optional[T], bool]:
        """What is there by now, and whether it is our turn."""
        until = min(until, time.monotonic() + self.waits.most)
        board = self.board.before(until)
        watch, pause, looks, failures = _Watch(self.waits.dead), self.waits.first, 0, 0
        while len(watch.holders) <= _MOST_HOLDERS and time.monotonic() + pause <= until:
            try:
                sight = board.look(key)
                lives = watch.lives(sight)
                if looks and (not lives or looks % _EVERY == 0):
                    found = there()
                    if found is not None:
                        return found, False
                if not lives and not builds:
                    return None, False
                if not lives and board.claim(key, name, sight):
                    return self._last_look(key, name, there), True
                failures = 0
            except NoBoard as error:
                failures += 1
                if failures == _MOST_FAILURES:
                    _log.info("nobody can be asked who builds this set", key=key[:12], reason=str(error))
                    return None, False
            if not looks:
                _log.info("another node builds this set: waiting", key=key[:12])
            self._pause(pause * random.uniform(0.5, 1.5))
            pause, looks = min(pause * _GROWTH, self.waits.last), looks + 1
        _log.warning("waited for others to build the set: now it is built here", key=key[:12])
        return None, False

    def _last_look(self, key: str, name: str, there: Callable[[], Optional[T]]) -> Optional[T]:
        """What came between the last look and our turn."""
        try:
            return there()
        except BaseException:
            self._release(key, name)
            raise

    def _release(self, key: str, name: str) -> None:
        with contextlib.suppress(NoBoard):
            self.board.release(key, name)

    def _keep(self, key: str, name: str, stop: threading.Event) -> None:
        """Give signs of life until it is done, or somebody else has taken it."""
        pause = min(self.waits.first, self.waits.beat)  # soon at first: it may be claimed late
        while not stop.wait(pause):
            pause = min(pause * _GROWTH, self.waits.beat)
            try:
                if not self.board.renew(key, name):
                    _log.info(
                        "another node has taken this turn, too: the set may be built twice", key=key[:12]
                    )
                    return
            except NoBoard as error:
                _log.info("no sign of life could be given", key=key[:12], reason=str(error))
            except Stopped:  # told to the main thread, too
                return

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.check()
            time.sleep(min(left, _GLANCE))
