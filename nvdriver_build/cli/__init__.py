"""Arguments, output, exit codes, signals. No logic.

Each command's module is imported when it is called: `--help` and `probe` answer at once.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, Optional

import click

from nvdriver_build import __version__
from nvdriver_build.errors import NvdriverError, Stopped, StoreError, UsageError
from nvdriver_build.files import FULL

_COMMANDS = {
    "run": ("driver", "The entrypoint: the whole life of the driver on this node, until a signal."),
    "build": ("building", "Build, check and write a set of modules."),
    "sign": ("signing", "Sign the modules of a set, or attach signatures that were made elsewhere."),
    "prebuild": ("prebuilding", "Build for kernels that do not run here, and publish it."),
    "verify": ("modules", "Do these modules fit that kernel?"),
    "inspect": ("modules", "What the ELF of modules says."),
    "doctor": ("support", "What this machine has and what would happen. Changes nothing."),
    "load": ("driver", "Load a set of modules that fits the running kernel."),
    "unload": ("driver", "Unload the driver."),
    "status": ("driver", "What is loaded, from which set, ready or not."),
    "probe": ("probe", "Exit 0 or 1 with one line why, for Kubernetes."),
    "dtk-build": ("toolkit", "The Driver Toolkit container's end: builds what the driver's asks for."),
    "peermem": ("peermem", "nvidia-peermem, in a container of its own beside the driver's."),
    "store": ("storage", "The store of module sets."),
    "fleet": ("fleet", "The cluster side: one driver DaemonSet for each RHCOS version."),
    "support-bundle": ("support", "One tar with facts, logs and status, without secrets."),
}


class _Lazy(click.Group):
    def list_commands(self, context: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, context: click.Context, name: str) -> Optional[click.Command]:
        if name not in _COMMANDS:
            return None
        module = importlib.import_module(f"nvdriver_build.cli.{_COMMANDS[name][0]}")
        command: click.Command = getattr(module, name.replace("-", "_"))
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.command(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="nvdriver-build")
def group() -> None:
    """NVIDIA kernel modules for exactly this kernel: built, proven, loaded and announced."""


def main(arguments: Optional[list[str]] = None) -> None:
    """The command `nvdriver-build`: exits with the codes of docs/contracts.md."""
    words = sys.argv[1:] if arguments is None else arguments
    os.umask(0o022)  # root loads what is written here: nobody else may write to it
    if sys.stderr is None:  # closed by whoever started us
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - for as long as we live
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files are bytes of any kind
    code, lost = _run(words), _lost_output()
    sys.exit(code or lost or 0)


def _run(words: list[str]) -> int:
    try:
        return group.main(args=words, standalone_mode=False) or 0  # click returns the code of an Exit
    except (click.Abort, KeyboardInterrupt):
        return 128 + signal.SIGINT
    except click.ClickException as error:
        return _wrong_usage(error, "--json" in words)
    except NvdriverError as error:
        return _report(error, "--json" in words)
    except Stopped as end:
        return 128 + end.signal
    except SystemExit:  # of click, where the reader of standard output is gone
        return 128 + signal.SIGPIPE
    except Exception as error:
        if {"-v", "--verbose"} & set(words):
            traceback.print_exc()
        return _lost_output(error) or _report(_translated(error), "--json" in words)


def _lost_output(error: Optional[Exception] = None) -> Optional[int]:
    """The exit code where standard output cannot be written: its reader is gone, or the disk is full.

    It is muted then: the interpreter tries once more on its way out, and would print a traceback. Without a
    buffer (PYTHONUNBUFFERED) what was lost is not tried again: then `error`, of click's echo, tells it.
    """
    try:
        if isinstance(error, OSError) and Path(_place(error)[0]).parent.name == "click":
            raise error
        if sys.stdout is not None:
            sys.stdout.flush()
        return None
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        click.echo(f"error: cannot write to standard output: {error.strerror}", err=True)
        return NvdriverError.exit_code


def _report(error: NvdriverError, as_json: bool) -> int:
    with contextlib.suppress(OSError):  # the exit code tells it, too
        first, *others = error.message.split("\n")  # the last lines of a program, say
        say(f"error: {first}", err=True)
        for line in others:
            say(f"       {line}", err=True)
        if error.hint:
            say(f"hint: {error.hint}", err=True)
    _tell(error, as_json)
    return error.exit_code


def _wrong_usage(error: click.ClickException, as_json: bool) -> int:
    """Click's own words say how a command is used."""
    words = io.StringIO()
    error.show(words)
    for line in words.getvalue().splitlines():
        say(line, err=True)
    _tell(UsageError(error.format_message(), hint="see --help"), as_json)
    return UsageError.exit_code


def _tell(error: NvdriverError, as_json: bool) -> None:
    if as_json:
        with contextlib.suppress(OSError):  # the error is told on standard error, too
            click.echo(json.dumps({"schema": 1, "error": error.document()}))


def _translated(error: Exception) -> NvdriverError:
    """A file that the system refuses is what the user named, or a node that is not as it should be."""
    if isinstance(error, OSError) and isinstance(error.filename, (str, bytes)):
        return UsageError(
            f"{os.fsdecode(error.filename)}: {error.strerror}",
            hint="is that the name, and may this user read and write there?",
        )
    if isinstance(error, OSError) and error.errno in FULL:
        hint = "make some where it writes: the output, the store (NVDRIVER_STORE), /tmp"
        return StoreError("there is no space left on a disk, or in a quota", hint=hint)
    if isinstance(error, FileNotFoundError) and not _in_a_folder():
        return UsageError("the current folder does not exist any more", hint="change into one that does")
    return _bug(error)


def _in_a_folder() -> bool:
    try:
        return Path.cwd().is_dir()
    except OSError:
        return False


def _bug(error: Exception) -> NvdriverError:
    """A traceback is no message: its last place is, and -v shows the rest."""
    file, line = _place(error)
    return NvdriverError(
        f"{type(error).__name__}: {error} (at {file}:{line})",
        hint="this is a bug of nvdriver-build: please report it",
    )


def _place(error: Exception) -> tuple[str, int]:
    """File and line where it was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return (trace.tb_frame.f_code.co_filename, trace.tb_lineno) if trace else ("?", 0)


def say(text: str, *, err: bool = False) -> None:
    """Print a line for people. Names and texts of others cannot steer the terminal, nor fake a line."""
    click.echo(printable(text), err=err)


def printable(text: str) -> str:
    """The text with escapes such as \\x1b for what does not print."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def emit(document: dict[str, Any]) -> None:
    """Print one JSON document on standard output."""
    click.echo(json.dumps({"schema": 1, **document}, indent=1))
