"""The options that set the logs up, which go to standard error."""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import Any, Callable, MutableMapping, TextIO, TypeVar, cast

import click
from click.core import ParameterSource

from nvdriver_build.cli import printable
from nvdriver_build.config import LOG_FORMATS, wants_color

Function = TypeVar("Function", bound=Callable[..., object])


def log_options(command: Function) -> Function:
    """The options --log-format and -v."""
    command = click.option(
        "--log-format",
        metavar=f"[{'|'.join(LOG_FORMATS)}]",
        envvar="NVDRIVER_LOG_FORMAT",
        default=LOG_FORMATS[0],
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
        configure(str(context.meta["log_format"]), logging.DEBUG)


def _set_format(context: click.Context, parameter: click.Parameter, value: str) -> None:
    if value not in LOG_FORMATS:
        if context.get_parameter_source(str(parameter.name)) is not ParameterSource.ENVIRONMENT:
            raise click.BadParameter(f"{value!r} is not one of {', '.join(LOG_FORMATS)}.", context, parameter)
        value = LOG_FORMATS[0]  # it is refused like every setting, once what `run` had announced is withdrawn
    context.meta["log_format"] = value
    configure(value, logging.INFO)


class _Stderr:
    """Standard error, where it can be written: a log that is full, closed or unread ends nothing."""

    def write(self, text: str) -> None:
        """Write, or not."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stderr.write(text)

    def flush(self) -> None:
        """Flush, or not."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stderr.flush()


def _is_colored() -> bool:
    return sys.stderr is not None and sys.stderr.isatty() and wants_color()


def _escaped(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Texts of others cannot steer the terminal, nor fake a line."""
    return {name: printable(value) if isinstance(value, str) else value for name, value in event.items()}


def configure(form: str, level: int) -> None:
    """Write logs of `level` and above to standard error, as text or as a JSON document a line.

    Where no room of the command has imported structlog, nothing is logged: its import would take longer than
    all that `verify` does.
    """
    if "structlog" not in sys.modules:
        return
    import structlog

    last: structlog.typing.Processor = structlog.processors.JSONRenderer()
    if form == "console":
        last = structlog.dev.ConsoleRenderer(colors=_is_colored(), pad_level=False)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso" if form == "json" else "%H:%M:%S", utc=form == "json"),
            structlog.processors.format_exc_info,
            *((_escaped,) if form == "console" else ()),
            last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, _Stderr())),
    )
