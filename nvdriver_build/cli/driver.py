"""`run`, `load`, `unload` and `status`."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any, Callable, Optional

import click

from nvdriver_build.cli import emit, say
from nvdriver_build.cli.logs import log_options
from nvdriver_build.cli.progress import BuildProgress
from nvdriver_build.cli.signals import StopFlag
from nvdriver_build.commands import SystemCommands
from nvdriver_build.config import Config, host_modules, read_config, run_dir
from nvdriver_build.errors import UsageError
from nvdriver_build.loader.host import Host, driver_modules
from nvdriver_build.loader.kernel_log import KernelLog
from nvdriver_build.node.getting import Ways
from nvdriver_build.node.life import Node
from nvdriver_build.node.peermem import MofedPlace
from nvdriver_build.node.userland import NodeUserland, Places
from nvdriver_build.readiness import Features, Readiness
from nvdriver_build.toolkit import Shared, Sidecar
from nvdriver_build.userspace.daemons import Supervisor

_QUIET = 10.0
"""Seconds without a heartbeat after which `status` says so; there is one a second."""
_json = click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")


def host_of(config: Config) -> Host:
    """The node as this process sees it."""
    return Host(lib_modules=host_modules())


def _node(config: Config, flag: StopFlag, progress: BuildProgress) -> Node:
    readiness = _readiness(config)

    def check() -> None:
        flag.check()
        readiness.beat()

    commands, leaving = SystemCommands(config.path, check), SystemCommands(config.path, readiness.beat)
    host = host_of(config)
    supervisor = Supervisor(host, commands, fabric_manager_config=config.fabric_manager)
    return Node(
        config=config,
        host=host,
        machine=os.uname().machine,
        commands=commands,
        leaving=leaving,
        journal=KernelLog().follow,
        stop=flag.check,
        progress=progress,
        readiness=readiness,
        ways=Ways(config, commands, MofedPlace(host, on_host=config.host_mofed), _sidecar(config, check)),
        userland=NodeUserland(host, commands, leaving, supervisor, Places(config.driver_root)),
    )


def _sidecar(config: Config, check: Callable[[], None]) -> Optional[Sidecar]:
    return Sidecar(Shared(config.toolkit_dir), config.bundle, check) if config.toolkit_dir else None


def _readiness(config: Config) -> Readiness:
    return Readiness(
        config.run_dir,
        features=Features(rdma=config.rdma),
        validates=config.announce_driver_ready,
        driver_root=config.driver_root,
    )


@click.command()
@log_options
def run() -> None:
    """The entrypoint: build or find modules, load them, announce them, watch them, until a signal."""
    try:
        config = read_config()
    except UsageError:
        Readiness(run_dir()).withdraw_stale()
        raise
    flag = StopFlag()
    with BuildProgress() as progress:
        _node(config, flag, progress).run()


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@log_options
def load(folder: Path) -> None:
    """Load the module set in DIR (as `build` writes it), as `run` does, without announcing it."""
    config = read_config()
    with BuildProgress() as progress:
        _node(config, StopFlag(), progress).load_set(folder)


@click.command()
@log_options
def unload() -> None:
    """Withdraw readiness, then unload the driver; exit 16 naming the holders if it is in use."""
    config = read_config()
    _require_nodes_own(config.run_dir)
    names = driver_modules(host_of(config))
    with BuildProgress() as progress:
        _node(config, StopFlag(), progress).uninstall()
    say(f"unloaded: {', '.join(names) or 'nothing was loaded'}")


def _require_nodes_own(run_dir: Path, node: Path = Path("/proc/1/root")) -> None:
    """In a container that sees the node, but not this folder of it, the others would not be told."""
    theirs = node / run_dir.relative_to("/")
    with contextlib.suppress(OSError):
        if theirs.is_dir() and not (run_dir.is_dir() and theirs.samefile(run_dir)):
            raise UsageError(
                f"{run_dir} is not the node's here: what is announced there would stay",
                hint=f"mount it: -v {run_dir}:{run_dir}:rshared",
            )


@click.command()
@_json
@log_options
def status(as_json: bool) -> None:
    """What is loaded, from which set, ready or not, since when, and how long each stage took."""
    config = read_config()
    readiness = _readiness(config)
    run_status = readiness.read_status()
    age = readiness.heartbeat_age()
    document: dict[str, Any] = {
        "run": run_status.document() if run_status else None,
        "ready": readiness.ready,
        "heartbeat_age": None if age is None else round(age, 1),
        "loaded": [
            {
                "name": module.name,
                "state": module.state,
                "version": module.version,
                "build_id": module.build_id,
            }
            for module in driver_modules(host_of(config)).values()
        ],
    }
    if as_json:
        emit(document)
    else:
        _print(document)


_FACTS = (
    "stage",
    "driver_version",
    "kernel_release",
    "key",
    "fit",
    "built_for",
    "origin",
    "proof",
    "since",
)


def _print(document: dict[str, Any]) -> None:
    run_document = document["run"] or {}
    say(f"ready:          {'yes' if document['ready'] else 'no'}")
    for name in _FACTS:
        say(f"{name + ':':<15} {run_document.get(name) or '-'}")
    loaded = ", ".join(f"{module['name']} ({module['state']})" for module in document["loaded"])
    say(f"loaded:         {loaded or 'nothing'}")
    timings = ", ".join(
        f"{name} {taken:.2f} s" for name, taken in (run_document.get("timings") or {}).items()
    )
    say(f"stages:         {timings or '-'}")
    _print_progress(run_document, document["heartbeat_age"])
    for error in filter(None, (run_document.get("peermem_error"), run_document.get("error"))):
        say(f"error:          {error['message']}")
        say(f"hint:           {error['hint'] or '-'}")


def _print_progress(run_document: dict[str, Any], age: Optional[float]) -> None:
    progress = run_document.get("progress")
    if progress:
        done, total = progress["done"], progress["total"]
        say(f"building:       {done} of about {total} steps after {progress['elapsed']:.0f} s")
    if age is not None and age > _QUIET:
        say(f"run:            no sign of life for {age:.0f} s: it hangs, or was killed")
