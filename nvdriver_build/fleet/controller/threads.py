"""Steps that are made again and again, each in a thread of its own, slower while they fail."""

from __future__ import annotations

import threading
import time
from typing import Callable, Optional

import structlog
from attrs import define, field

from nvdriver_build.errors import ClusterError
from nvdriver_build.fleet.controller.patience import Patience

_log = structlog.get_logger()
_SHORT = 1.0
"""Seconds: what ends sooner is not begun again at once, though it ended well."""


@define
class Threads:
    """Threads that end with `end`. A bug in one is raised by `check`."""

    retry: float = 1.0
    clock: Callable[[], float] = time.monotonic
    _ending: threading.Event = field(factory=threading.Event)
    _bug: Optional[Exception] = None

    def start(self, step: Callable[[], None], every: float, most: float = 60.0) -> None:
        """Make these steps, `every` so many seconds; after failures up to `most` seconds apart."""
        patience = Patience(self.retry, most)
        threading.Thread(target=self._for_ever, args=(step, every, patience), daemon=True).start()

    def check(self) -> None:
        """Raise what went wrong in a thread and is a bug."""
        if self._bug is not None:
            raise self._bug

    def wait(self, seconds: float) -> None:
        """Let time pass, unless the end comes."""
        self._ending.wait(max(0.0, seconds))

    def end(self) -> None:
        """No more steps; the one that is being made ends when its connection does."""
        self._ending.set()

    def _for_ever(self, step: Callable[[], None], every: float, patience: Patience) -> None:
        while not self._ending.is_set():
            began = self.clock()
            try:
                step()
                pause = every if self.clock() - began > _SHORT else max(every, 0.1)
                patience.forget()
            except ClusterError as error:
                if not self._ending.is_set():
                    _log.info("the API failed", error=error.message)
                pause = patience.after(error)
            except Exception as error:
                if not self._ending.is_set():
                    self._bug = error
                return
            self._ending.wait(pause)
