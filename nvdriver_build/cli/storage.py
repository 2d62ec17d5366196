"""`store`: list, show, verify, prune, push, pull."""

from __future__ import annotations

import datetime
import os
import re
from pathlib import Path
from typing import Any, Optional

import attrs
import cattrs
import click

from nvdriver_build.cli import emit, say
from nvdriver_build.cli.logs import log_options
from nvdriver_build.cli.signals import StopFlag
from nvdriver_build.commands import Commands, SystemCommands
from nvdriver_build.config import Config, read_config
from nvdriver_build.errors import StoreError, UsageError
from nvdriver_build.loader.host import Host
from nvdriver_build.node.status import loaded_keys
from nvdriver_build.node.stores import outside, own_store
from nvdriver_build.obtain import Outside
from nvdriver_build.sets import open_set
from nvdriver_build.store import Entry, Rules, Store

DAY = 86400.0
_KEY = re.compile("[0-9a-f]{1,64}")
"""A key, or the beginning of one."""
_json = click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")


@click.group()
def store() -> None:
    """The store of module sets, at NVDRIVER_STORE."""


def _store() -> Store:
    return Store(read_config().store)


@store.command(name="list")
@_json
@log_options
def list_(as_json: bool) -> None:
    """The sets, the last used first."""
    place = _store()
    entries = place.entries()
    if as_json:
        emit({"store": str(place.root), "sets": [_document(entry) for entry in entries]})
        return
    rows = [("key", "driver", "kind", "kernel", "MiB", "last used", ""), *map(_row, entries)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def _row(entry: Entry) -> tuple[str, ...]:
    used = datetime.datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d %H:%M")
    size = f"{entry.size / 2**20:.1f}"
    if entry.set is None:
        problem = entry.problem if entry.unread else f"damaged: {entry.problem}"
        return (entry.key[:12], "-", "-", "-", size, used, problem or "")
    recipe = entry.set.manifest.recipe
    return (entry.key[:12], recipe.driver_version, recipe.kind, recipe.kernel_release, size, used, "")


def _document(entry: Entry) -> dict[str, Any]:
    recipe = attrs.asdict(entry.set.manifest.recipe) if entry.set else None
    return {
        "key": entry.key,
        "recipe": recipe,
        "size": entry.size,
        "used": entry.used,
        "problem": entry.problem,
    }


@store.command()
@click.argument("key")
@_json
@log_options
def show(key: str, as_json: bool) -> None:
    """The manifest of the set whose key starts with KEY."""
    found = _store().get(key)
    manifest = found.manifest
    if as_json:
        emit({"folder": str(found.folder), "manifest": cattrs.unstructure(manifest)})
        return
    say(manifest.key)
    say(f"  folder: {found.folder}")
    for name, value in (*attrs.asdict(manifest.recipe).items(), *attrs.asdict(manifest.provenance).items()):
        say(f"  {name}: {' '.join(value) if isinstance(value, tuple) else value}")
    for file in manifest.files:
        say(f"  {file.file}: {file.size} bytes, sha256 {file.sha256}")


@store.command()
@_json
@log_options
def verify(as_json: bool) -> None:
    """Compare every byte with the manifests; exit 17 if anything is damaged. Drops nothing."""
    entries = _store().check()
    if as_json:
        emit({"sets": [_document(entry) for entry in entries]})
    else:
        for entry in entries:
            say(f"{entry.key[:12]}  {entry.problem or 'good'}")
    damaged = [entry for entry in entries if entry.problem is not None]
    if damaged and not as_json:
        raise StoreError(
            f"{len(damaged)} of {len(entries)} sets are damaged or cannot be read",
            hint="what is damaged is dropped and built anew when it is needed, 'store prune' drops it now; "
            "what cannot be read now stays",
        )
    if damaged:
        raise click.exceptions.Exit(StoreError.exit_code)


@store.command()
@click.option(
    "--older-than",
    "days",
    type=click.FloatRange(min=0),
    default=90.0,
    show_default=True,
    help="Days unused; an hour at least, whatever the options.",
)
@click.option("--larger-than", "mebibytes", type=click.IntRange(min=0), help="MiB of the sets used last.")
@click.option(
    "--keep-kernel",
    "kernels",
    metavar="R",
    multiple=True,
    help="Drop sets of other kernels than this (repeat it), the running one and the last before that.",
)
@_json
@log_options
def prune(days: float, mebibytes: Optional[int], kernels: tuple[str, ...], as_json: bool) -> None:
    """Drop sets that nobody used for some days, and damaged ones; never what is loaded or was just used."""
    place = _store()
    size = None if mebibytes is None else mebibytes * 2**20
    rules = Rules(days * DAY, size, kernels, os.uname().release)
    dropped = place.prune(loaded_keys(place.entries(), Host()), rules)
    if as_json:
        emit({"dropped": list(dropped)})
    else:
        say(f"dropped {len(dropped)} of the sets in {place.root}")


@store.command()
@click.argument("names", metavar="SETS...", nargs=-1, required=True)
@_json
@log_options
def push(names: tuple[str, ...], as_json: bool) -> None:
    """Put signed sets, by key or by folder, into NVDRIVER_REGISTRY."""
    config = read_config()
    remote, place = _outside(config, SystemCommands(config.path, StopFlag().check)).remote, _store()
    done = {}
    for found in [place.get(name) if _KEY.fullmatch(name) else open_set(Path(name)) for name in names]:
        done[found.key] = remote.push(found)
        if not as_json:
            say(f"{found.key[:12]}  {'put into' if done[found.key] else 'already in'} {remote}")
    if as_json:
        emit({"registry": str(remote), "sets": [{"key": key, "new": new} for key, new in done.items()]})


@store.command()
@click.argument("key")
@_json
@log_options
def pull(key: str, as_json: bool) -> None:
    """Take the set of KEY, which a trusted certificate has signed, from NVDRIVER_REGISTRY."""
    if not re.fullmatch("[0-9a-f]{64}", key):
        raise UsageError(f"{key!r} is no key", hint="a registry is asked for whole keys, of 64 hex digits")
    config = read_config()
    commands = SystemCommands(config.path, StopFlag().check)
    place = own_store(config, commands)
    found = place.take(key) or _outside(config, commands).pull(key, place)
    if as_json:
        emit({"key": found.key, "folder": str(found.folder)})
    else:
        say(f"{found.key[:12]}  in {found.folder}")


def _outside(config: Config, commands: Commands) -> Outside:
    found = outside(config, commands)
    if found is None:
        raise UsageError("no registry is given", hint="NVDRIVER_REGISTRY names it: HOST[:PORT]/REPOSITORY")
    return found
