"""Signals become a flag that is looked at between steps and four times a second while a program runs."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Optional

from nvdriver_build.errors import Stopped


class StopFlag:
    """Set by SIGTERM, SIGINT or SIGHUP; `check` then raises Stopped."""

    def __init__(self) -> None:
        self.signal: Optional[int] = None
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._set)

    def _set(self, number: int, _: Optional[FrameType]) -> None:
        self.signal = self.signal or number

    def check(self) -> None:
        """Raise Stopped where a signal came."""
        if self.signal is not None:
            raise Stopped(self.signal)
