"""`doctor` and `support-bundle`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Optional

import attrs
import click

from nvdriver_build.cli import emit, say
from nvdriver_build.cli.driver import host_of
from nvdriver_build.cli.logs import log_options
from nvdriver_build.commands import SystemCommands
from nvdriver_build.config import read_config
from nvdriver_build.errors import UsageError
from nvdriver_build.node.bundle import write_bundle
from nvdriver_build.node.doctor import Check, examine

_PATH = click.Path(path_type=Path)
_MARKS = {True: "ok  ", False: "BAD ", None: "    "}


@click.command()
@click.option("--headers", type=_PATH, help="Look at these headers instead of the configured ones.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
@log_options
def doctor(headers: Optional[Path], as_json: bool) -> None:
    """What this machine has, and what `run` would do on it. Changes nothing."""
    config = read_config()
    checks = examine(config, host_of(config), os.uname().machine, SystemCommands(config.path), headers)
    bad = [check for check in checks if check.ok is False]
    if as_json:
        code = bad[0].code if bad else 0
        document = {"checks": [attrs.asdict(check) for check in checks]}
        emit({**document, "would_exit": code if headers is None else None})
        return
    for check in checks:
        _print(check)
    say(
        _verdict(bad)
        if headers is None
        else f"run would not use {headers}: without --headers its end is told"
    )


def _print(check: Check) -> None:
    say(f"{_MARKS[check.ok]}{check.name:<9} {check.detail}")
    if check.hint:
        say(f"              hint: {check.hint}")


def _verdict(bad: list[Check]) -> str:
    if not bad:
        return "run would go on from here"
    return f"run would end at {bad[0].name} (exit {bad[0].code})"


@click.command()
@click.option("--output", type=_PATH, default=Path("nvdriver-support.tar.gz"), show_default=True)
@log_options
def support_bundle(output: Path) -> None:
    """One tar with facts, logs and status, without secrets."""
    config = read_config()
    commands = SystemCommands(config.path)
    place = Path(os.path.realpath(output))
    if os.path.lexists(place) and not place.is_file():  # a device, say: it would be gone
        raise UsageError(f"{output} is there, and no file", hint="give the name of a new file")
    try:
        names = write_bundle(place, config, host_of(config), os.uname().machine, commands)
    except OSError as error:
        raise UsageError(f"cannot write {output}: {error.strerror}", hint="give another --output") from error
    say(f"{output}: {len(names)} files")
