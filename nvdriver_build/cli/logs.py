"""Logs and progress, on standard error."""

from __future__ import annotations

import logging
import sys
from typing import Callable, Optional, TypeVar

import click
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

Function = TypeVar("Function", bound=Callable[..., object])
_EVERY = 5.0
"""Seconds between two lines of progress where there is no terminal."""


def log_options(command: Function) -> Function:
    """The options --log-format and -v, which set the logs up."""
    command = click.option(
        "--log-format",
        type=click.Choice(["console", "json"]),
        envvar="NVDRIVER_LOG_FORMAT",
        default="console",
        expose_value=False,
        is_eager=True,
        callback=_set_format,
        help="How logs are written.",
    )(command)
    return click.option(
        "-v", "--verbose", is_flag=True, expose_value=False, callback=_set_level, help="More of the log."
    )(command)


def _set_level(context: click.Context, _: click.Parameter, verbose: bool) -> None:
    if verbose:
        configure(_format_of(context), logging.DEBUG)


def _set_format(context: click.Context, _: click.Parameter, value: str) -> None:
    context.meta["log_format"] = value
    configure(value, logging.INFO)


def _format_of(context: click.Context) -> str:
    return str(context.meta.get("log_format", "console"))


def configure(form: str, level: int) -> None:
    """Write logs of `level` and above to standard error, as text or as a JSON document a line."""
    colors = sys.stderr.isatty()
    last: structlog.typing.Processor = structlog.processors.JSONRenderer()
    if form == "console":
        last = structlog.dev.ConsoleRenderer(colors=colors, pad_event=0, pad_level=False)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso" if form == "json" else "%H:%M:%S", utc=form == "json"),
            structlog.processors.format_exc_info,
            last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


class BuildProgress:
    """A bar on a terminal; elsewhere a line every few seconds with done, total, elapsed and an estimate."""

    def __init__(self) -> None:
        self._bar: Optional[Progress] = None
        self._next = 0.0

    def __call__(self, done: int, total: int, elapsed: float) -> None:
        """Show that `done` of about `total` steps are done after `elapsed` seconds."""
        if sys.stderr.isatty():
            self._draw(done, total)
        elif elapsed >= self._next:
            self._next = elapsed + _EVERY
            left = round(elapsed / done * (total - done)) if done else None
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
