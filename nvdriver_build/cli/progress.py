"""How far a build is, on standard error."""

from __future__ import annotations

import sys
from typing import Any

import click
import structlog

_EVERY = 5.0
"""Seconds between two lines of progress where there is no terminal."""


class BuildProgress:
    """A bar on a terminal; elsewhere a line every few seconds with done, total, elapsed and an estimate."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._next = 0.0

    def __call__(self, done: int, total: int, elapsed: float) -> None:
        """Show that `done` of about `total` steps are done after `elapsed` seconds."""
        if sys.stderr.isatty():
            self._draw(done, total)
        elif done and not self._next - _EVERY <= elapsed < self._next:
            self._next = elapsed + _EVERY
            left = round(elapsed / done * (total - done))
            structlog.get_logger().info("progress", done=done, total=total, elapsed=round(elapsed), left=left)

    def _draw(self, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = click.progressbar(length=total, label="building", file=sys.stderr)
            self._bar.__enter__()
        self._bar.length = total
        self._bar.update(done - self._bar.pos)

    def __enter__(self) -> BuildProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
