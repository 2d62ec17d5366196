"""How far a build is, on standard error."""

from __future__ import annotations

import sys
from typing import Optional

import structlog
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_EVERY = 5.0
"""Seconds between two lines of progress where there is no terminal."""


class BuildProgress:
    """A bar on a terminal; elsewhere a line every few seconds with done, total, elapsed and an estimate."""

    def __init__(self) -> None:
        self._bar: Optional[Progress] = None
        self._next = 0.0

    def __call__(self, done: int, total: int, elapsed: float) -> None:
        """Show that `done` of about `total` steps are done after `elapsed` seconds."""
        if sys.stderr.isatty():
            self._draw(done, total)
        elif done and elapsed >= self._next:
            self._next = elapsed + _EVERY
            left = round(elapsed / done * (total - done))
            structlog.get_logger().info("progress", done=done, total=total, elapsed=round(elapsed), left=left)

    def _draw(self, done: int, total: int) -> None:
        if self._bar is None:
            columns = (
                TextColumn("building"),
                BarColumn(),
                TaskProgressColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.add_task("building", total=total)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done, total=total)

    def __enter__(self) -> BuildProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
