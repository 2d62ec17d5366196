"""`fleet`: the cluster side. `plan` and `render` work from files, or as the others from a cluster's API."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Optional, TypeVar

import click

from nvdriver_build.cli import emit, say
from nvdriver_build.cli.logs import log_options
from nvdriver_build.errors import UsageError
from nvdriver_build.fleet.controller.api import Api
from nvdriver_build.fleet.manifests import Driver, is_image, plan_options, render
from nvdriver_build.fleet.names import GPU_LABEL, LABEL
from nvdriver_build.fleet.offline import Files, cluster_from_files
from nvdriver_build.fleet.plan import Group, Options, Plan, Sets, make_plan, plan_document
from nvdriver_build.fleet.reading import INSTALL, to_yaml
from nvdriver_build.fleet.reasons import Reason

OLDEST = (3, 11)
_PATH = click.Path(path_type=Path)
Function = TypeVar("Function", bound=Callable[..., object])
_CLUSTER = (
    click.option(
        "--kubeconfig", type=_PATH, help="Default: KUBECONFIG, this pod's service account, ~/.kube/config."
    ),
    click.option("--context", help="Of the kubeconfig, instead of its current one."),
)
_FILES = (
    click.option("--nodes", type=_PATH, help="Of 'oc get nodes -o json'; without it the API is asked."),
    click.option(
        "--imagestream", type=_PATH, help="Of 'oc -n openshift get is/driver-toolkit', maybe and 'istag'."
    ),
    click.option("--clusterversion", type=_PATH, help="Of 'oc get clusterversion'."),
    click.option("--pools", type=_PATH, help="Of 'oc get machineconfigpools'."),
    click.option("--workloads", type=_PATH, help="Of 'oc get daemonsets,jobs -A'."),
    click.option("--ask-registry", is_flag=True, help="With --nodes: ask the registry of the settings, too."),
)
_DRIVER = (
    click.option(
        "--toolkit",
        "toolkits",
        metavar="VERSION=IMAGE",
        multiple=True,
        help="The Driver Toolkit of an RHCOS version, whatever the cluster says (repeat it).",
    ),
    click.option("--settings", type=_PATH, help="The driver's settings, YAML or JSON."),
    click.option("--image", help="The driver image, instead of that of the settings."),
)


def _with(*options: Callable[[Function], Function]) -> Callable[[Function], Function]:
    def add(command: Function) -> Function:
        for option in reversed(options):
            command = option(command)
        return command

    return add


@click.group()
def fleet() -> None:
    """The cluster side: one driver DaemonSet for each RHCOS version."""
    if sys.version_info < OLDEST:
        version = ".".join(map(str, sys.version_info[:2]))
        raise UsageError(
            f"fleet needs Python {OLDEST[0]}.{OLDEST[1]} or later, and this is {version}",
            hint="it needs no node: run it anywhere else",
        )


@fleet.command()
@_with(*_FILES, *_DRIVER, *_CLUSTER)
@click.option("--diff", is_flag=True, help="Show what apply would change in the objects of the cluster.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
@log_options
def plan(
    toolkits: tuple[str, ...],
    settings: Optional[Path],
    image: Optional[str],
    diff: bool,
    as_json: bool,
    **where: Any,
) -> None:
    """Which kernels the GPU nodes run and will run, and what each needs. Changes nothing."""
    driver = _driver(settings, image) if settings or image or diff else None
    if diff and driver is not None:
        _show_difference(driver, toolkits, **where)
        return
    made = _plan(driver, toolkits, **where)
    if as_json:
        emit(plan_document(made))
    else:
        _print(made)


@fleet.command(name="render")
@_with(*_FILES, *_DRIVER, *_CLUSTER)
@log_options
def render_(toolkits: tuple[str, ...], settings: Optional[Path], image: Optional[str], **where: Any) -> None:
    """Write the objects that the plan needs as YAML: for GitOps, or to apply by hand."""
    driver = _driver(settings, image)
    made = _plan(driver, toolkits, **where)
    click.echo(to_yaml(render(made, driver, overrides=_overrides(toolkits))), nl=False)


@fleet.command()
@_with(*_DRIVER, *_CLUSTER)
@log_options
def apply(
    toolkits: tuple[str, ...],
    settings: Optional[Path],
    image: Optional[str],
    kubeconfig: Optional[Path],
    context: Optional[str],
) -> None:
    """Bring the cluster one round nearer to its plan."""
    cluster = _cluster()
    driver = _driver(settings, image)
    with cluster.cluster(kubeconfig, context) as api:
        _print(cluster.apply_round(api, driver, _overrides(toolkits)).plan)


@fleet.command()
@_with(*_DRIVER, *_CLUSTER)
@click.option(
    "--listen", default=":8080", show_default=True, help="HOST:PORT of /healthz, /readyz, /metrics."
)
@log_options
def watch(
    toolkits: tuple[str, ...],
    settings: Optional[Path],
    image: Optional[str],
    kubeconfig: Optional[Path],
    context: Optional[str],
    listen: str,
) -> None:
    """Keep the cluster as its plan says, until a signal."""
    cluster = _cluster()
    cluster.watch_cluster(kubeconfig, context, _driver(settings, image), _overrides(toolkits), listen)


@fleet.command()
@_with(*_CLUSTER)
@click.option("--namespace", default="nvdriver-build", show_default=True, help="Of the driver.")
@click.option(
    "--name", default="nvdriver-build", show_default=True, help="Of the driver, as its settings have it."
)
@click.option("--watch", "live", is_flag=True, help="Keep it live, until a signal.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
@log_options
def status(
    kubeconfig: Optional[Path], context: Optional[str], namespace: str, name: str, live: bool, as_json: bool
) -> None:
    """What each RHCOS version has and lacks, as the controller keeps it."""
    cluster = _cluster()
    with cluster.cluster(kubeconfig, context) as api:
        cluster.show_status(api, name, namespace, as_json, live)


def _cluster() -> ModuleType:
    """What talks to the API; UsageError where the extra is not installed."""
    try:
        from nvdriver_build.cli import cluster
    except ModuleNotFoundError as error:
        raise UsageError(f"fleet needs {error.name}, which is not installed", hint=INSTALL) from error
    return cluster


def _show_difference(
    driver: Driver,
    toolkits: tuple[str, ...],
    kubeconfig: Optional[Path],
    context: Optional[str],
    **files: Any,
) -> None:
    cluster = _cluster()
    if any(files.values()):
        raise UsageError(
            "--diff compares with a cluster, not with files", hint="leave out --nodes and the others"
        )
    with cluster.cluster(kubeconfig, context) as api:
        cluster.show_difference(api, driver, _overrides(toolkits))


def _plan(
    driver: Optional[Driver],
    toolkits: tuple[str, ...],
    kubeconfig: Optional[Path],
    context: Optional[str],
    ask_registry: bool,
    **files: Any,
) -> Plan:
    overrides = _overrides(toolkits)
    options = plan_options(driver, overrides) if driver else Options(prebuild=False, overrides=overrides)
    if files["nodes"] is not None:
        sets = _sets(driver, None) if ask_registry else None
        return make_plan(cluster_from_files(Files(**files), options.name), options, sets)
    if any(files.values()):
        raise UsageError(
            "files of a cluster are given, and not its nodes", hint="--nodes is of 'oc get nodes -o json'"
        )
    cluster = _cluster()
    with cluster.cluster(kubeconfig, context) as api:
        view = cluster.read_view(api, options.name, driver.namespace if driver else options.name)
        return make_plan(view.cluster(), options, _sets(driver, api))


def _sets(driver: Optional[Driver], api: Optional[Api]) -> Optional[Sets]:
    from nvdriver_build.cli.fleet_sets import ONCE, registry_sets

    return registry_sets(driver, api, ONCE)


def _driver(settings: Optional[Path], image: Optional[str]) -> Driver:
    """Its checks need half of the package: loaded only where there are settings."""
    from nvdriver_build.cli.fleet_settings import read_driver

    return read_driver(settings, image)


def _overrides(toolkits: tuple[str, ...]) -> dict[str, str]:
    overrides = {}
    for word in toolkits:
        version, _, image = word.partition("=")
        if not version or not is_image(image):
            hint = "it takes VERSION=IMAGE: 416.94.202408260940-0=quay.io/...@sha256:..."
            raise UsageError(f"--toolkit is {word!r}", hint=hint)
        overrides[version] = image
    return overrides


def _print(made: Plan) -> None:
    rows = [("version", "kernel", "arch", "nodes", "toolkit", "rule", "state"), *map(_row, made.groups)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for number, row in enumerate(rows):
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
        _explain(made.groups[number - 1].reasons if number else ())
    if not made.groups:
        say("no node with a GPU")
        say(f"  hint: NFD labels them; without it: oc label node NODE {GPU_LABEL}=true")
    for name in (*made.remove, *made.remove_jobs):
        say(f"remove {name}")
    if made.labels:
        count = len(made.labels)
        words = "1 node needs another" if count == 1 else f"{count} nodes need another"
        say(f"{words} {LABEL}: 'fleet apply' or 'fleet watch' sets it")
    _explain(made.reasons)


def _row(group: Group) -> tuple[str, ...]:
    toolkit = group.toolkit
    return (
        group.version or "-",
        group.kernel or "-",
        group.arch or "-",
        "coming" if group.coming else str(len(group.nodes)),
        (toolkit.tag or toolkit.image or "-") if toolkit else "-",
        toolkit.rule if toolkit else "-",
        group.state,
    )


def _explain(reasons: tuple[Reason, ...]) -> None:
    for reason in reasons:
        say(f"  {reason.message}")
        if reason.hint:
            say(f"    hint: {reason.hint}")
