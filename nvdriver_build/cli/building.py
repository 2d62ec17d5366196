"""`build`: a checked set in a folder, from a source and kernel headers."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any, Optional

import click

from nvdriver_build.cli import emit, say
from nvdriver_build.cli.logs import log_options
from nvdriver_build.cli.progress import BuildProgress
from nvdriver_build.cli.signals import StopFlag
from nvdriver_build.commands import SystemCommands
from nvdriver_build.config import MOST_JOBS, Config, read_config
from nvdriver_build.errors import StoreError, UsageError
from nvdriver_build.files import exchange, private_folder, publish_folder, sync
from nvdriver_build.kernel import find_headers, target_from_headers
from nvdriver_build.node.stores import outside, own_store
from nvdriver_build.obtain import Obtained, Wish, modules_to_build, obtain, opened_source
from nvdriver_build.sets import ModuleSet, open_set
from nvdriver_build.source import AUTO, OPEN, PROPRIETARY, split_names

_PATH = click.Path(path_type=Path)
_ORIGINS = {"built": "built", "store": "taken from the store", "registry": "taken from the registry"}
_ELSEWHERE = "not compared: the modules are for a kernel that was named, not for the one that runs here"


@click.command()
@click.option("--source", type=_PATH, required=True, help="NVIDIA's tree, an archive of it, or a .run file.")
@click.option("--headers", type=_PATH, required=True, help="A build tree, a Debian pair, or a DTK root.")
@click.option("--output", type=_PATH, required=True, help="The folder that the set is written to.")
@click.option("--kernel-release", help="The kernel that is meant, where the headers hold several.")
@click.option("--kind", type=click.Choice([OPEN, PROPRIETARY, AUTO]), default=AUTO, show_default=True)
@click.option("--modules", help="Names, comma-separated. Default: all but nvidia-peermem.")
@click.option(
    "--jobs",
    type=click.IntRange(1, MOST_JOBS),
    help="Compilers at once. Default: what cgroup and memory allow.",
)
@click.option("--debug-info", is_flag=True, help="Keep debug information.")
@click.option("--run-sha256", help="What the .run file's sha256 has to be: it is executed.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
@log_options
def build(
    source: Path,
    headers: Path,
    output: Path,
    kernel_release: Optional[str],
    kind: str,
    modules: Optional[str],
    jobs: Optional[int],
    debug_info: bool,
    run_sha256: Optional[str],
    as_json: bool,
) -> None:
    """Build modules, check that they fit, and write them with their manifest.json."""
    started = time.monotonic()
    config = read_config()
    commands = SystemCommands(config.path, StopFlag().check)
    asked = split_names(modules or "")
    place = _check_output(output)
    found = find_headers(headers, kernel_release)
    target = target_from_headers(found)
    store = own_store(config, commands)
    with opened_source(source, kind, store, commands, run_sha256) as tree, BuildProgress() as progress:
        wish = Wish(
            source=tree,
            target=target,
            headers=found,
            proof=_ELSEWHERE,
            modules=modules_to_build(tree, asked),
            jobs=jobs or config.jobs,
            job_memory=config.job_memory,
            debug_info=debug_info,
            allow_compiler_mismatch=config.compiler_mismatch,
        )
        obtained = obtain(wish, store, commands, progress=progress, outside=outside(config, commands))
    _write(obtained.set, place)
    document = _document(obtained, output, time.monotonic() - started)
    if as_json:
        emit(document)
    else:
        _print(obtained, document, config)


def _check_output(output: Path) -> Path:
    """Where the set will be, links followed. Told before anything is built: what stands in the way."""
    place = Path(os.path.realpath(output))
    if place == Path.cwd():
        raise UsageError(
            f"{output} is the current folder, and the output is put in place as a whole",
            hint="name a folder in it",
        )
    _require_replaceable(place)
    parent = next(path for path in place.parents if path.exists())
    if place.is_mount() or not parent.is_dir() or not os.access(parent, os.W_OK):
        raise _not_written(output, f"{parent} takes no new folder of this name")
    return place


def _require_replaceable(place: Path) -> None:
    """What is replaced is gone: so only a set and nothing else, or nothing at all, may be there."""
    if not os.path.lexists(place) or (place.is_dir() and not any(place.iterdir())):
        return
    hint = "give a new folder, or an empty one"
    try:
        files = {path.name for path in open_set(place, check=False).files}
    except StoreError as error:
        raise UsageError(f"{place} exists and is no module set", hint=hint) from error
    foreign = sorted({path.name for path in place.iterdir()} - files)
    if foreign:
        raise UsageError(f"{place} is a module set and holds {foreign[0]}, too", hint=hint)


def _write(built: ModuleSet, place: Path) -> None:
    """Put a copy of the set in place of what was there, which stays whole until the copy is."""
    try:
        with private_folder(place.parent) as private:
            (private / "set").mkdir()
            for path in built.files:
                shutil.copyfile(path, private / "set" / path.name)
            sync(private)
            _require_replaceable(place)  # a build takes minutes
            if not publish_folder(private / "set", place):
                exchange(private / "set", place)
                _require_ours(private / "set", place)
    except OSError as error:
        raise _not_written(place, error.strerror or str(error)) from error


def _require_ours(taken: Path, place: Path) -> None:
    """What was taken from `place` goes in a moment: where it is no set, it goes back, and that is told."""
    try:
        _require_replaceable(taken)
    except UsageError as error:
        exchange(taken, place)
        raise _not_written(place, "another process has written there meanwhile") from error


def _not_written(output: Path, why: str) -> StoreError:
    return StoreError(
        f"cannot write {output}: {why}",
        hint="give a name in a writable folder with space left; a mount point cannot be replaced",
    )


def _document(obtained: Obtained, output: Path, seconds: float) -> dict[str, Any]:
    return {
        "key": obtained.set.key,
        "output": str(output),
        "modules": [{**file.facts, "path": str(output / file.file)} for file in obtained.set.manifest.files],
        "seconds": round(seconds, 3),
        "jobs": obtained.jobs,
        "from": obtained.origin,
    }


def _print(obtained: Obtained, document: dict[str, Any], config: Config) -> None:
    recipe = obtained.set.manifest.recipe
    say(f"driver {recipe.driver_version} ({recipe.kind}) for {recipe.kernel_release} {recipe.arch}")
    for module in obtained.fit.modules:
        say(f"  {module.name:<16} {module.fit}")
    say(
        f"{_ORIGINS[obtained.origin]} in {document['seconds']:.1f} s;"
        f" key {recipe.key[:12]}; in {document['output']}"
    )
