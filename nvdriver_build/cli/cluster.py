"""`fleet apply`, `watch` and `status`: what talks to a cluster."""

from __future__ import annotations

import contextlib
import difflib
import os
import time
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, Optional, TypeVar

import click

from nvdriver_build.cli import emit, say
from nvdriver_build.cli.fleet_sets import ONCE, RegistrySets, registry_sets
from nvdriver_build.cli.signals import StopFlag
from nvdriver_build.config import kubeconfig as default_kubeconfig
from nvdriver_build.errors import ClusterError, UsageError
from nvdriver_build.fleet.controller.api import Api, Conflict, Document, Missing
from nvdriver_build.fleet.controller.client import Count, HttpApi, cluster_config
from nvdriver_build.fleet.controller.health import HealthServer
from nvdriver_build.fleet.controller.kinds import CONFIG_MAP, DAEMONSET, JOB
from nvdriver_build.fleet.controller.metrics import Metrics
from nvdriver_build.fleet.controller.rounds import Outcome, Rounds
from nvdriver_build.fleet.controller.secrets import Secrets
from nvdriver_build.fleet.controller.watching import Watcher, apply_once, read_view
from nvdriver_build.fleet.manifests import Driver
from nvdriver_build.fleet.objects import entries, part
from nvdriver_build.fleet.plan.values import BLOCKED
from nvdriver_build.fleet.reading import to_yaml
from nvdriver_build.fleet.status import status_document, status_rows, upgrade_lines

_KINDS = {kind.name: kind for kind in (CONFIG_MAP, DAEMONSET, JOB)}
_EVERY = 2.0


@contextlib.contextmanager
def cluster(
    kubeconfig: Optional[Path], context: Optional[str], count: Optional[Count] = None
) -> Iterator[HttpApi]:
    """The API of the cluster that is meant."""
    api = HttpApi(cluster_config(kubeconfig or default_kubeconfig(), context), count)
    try:
        yield api
    finally:
        api.close()


def apply_round(api: Api, driver: Driver, overrides: Mapping[str, str]) -> Outcome:
    """One round; the errors of its writes are told, the first of them at last."""
    outcome = apply_once(api, driver, overrides, registry_sets(driver, api, ONCE))
    for each in outcome.done:
        say(each.message)
    for reason in outcome.upgrade.reasons if outcome.upgrade else ():
        say(f"{reason.message}: {reason.hint}" if reason.hint else reason.message)
    for failed in outcome.failed[1:]:
        say(f"{failed.kind.name} {failed.name}: {failed.error.message}")
    if outcome.failed:
        raise outcome.failed[0].error
    return outcome


def watch_cluster(
    kubeconfig: Optional[Path],
    context: Optional[str],
    driver: Driver,
    overrides: Mapping[str, str],
    listen: str,
) -> None:
    """Until a signal."""
    host, _, port = listen.rpartition(":")
    if not port.isdigit():
        raise UsageError(f"--listen {listen!r} names no port", hint="give HOST:PORT, such as :8080")
    stop, metrics = StopFlag(), Metrics()
    with cluster(kubeconfig, context, metrics.request) as api:
        identity = f"{os.uname().nodename}_{os.getpid()}"
        sets = registry_sets(driver, api, check=stop.check)
        watcher = Watcher(api, driver, identity, stop.check, metrics, overrides, sets=sets)
        if isinstance(sets, RegistrySets):
            sets.changed = watcher.wake
        answers = {
            "/healthz": watcher.healthy,
            "/readyz": watcher.ready,
            "/metrics": lambda: (200, metrics.text()),
        }
        server = HealthServer(host.strip("[]"), int(port), answers)
        try:
            watcher.run()
        finally:
            server.close()


def show_status(api: Api, name: str, namespace: str, as_json: bool, watch: bool) -> None:
    """One table, or with `watch` one after another."""
    stop = StopFlag() if watch else None
    while True:
        document = _status(api, name, namespace)
        if as_json:
            emit(document)
        else:
            if watch:
                click.clear()
            print_status(document)
        if stop is None:
            return
        _pause(stop)


def _pause(stop: StopFlag) -> None:
    until = time.monotonic() + _EVERY
    while time.monotonic() < until:
        stop.check()
        time.sleep(0.1)


def _status(api: Api, name: str, namespace: str) -> dict[str, Any]:
    try:
        found = api.get(CONFIG_MAP, f"{name}-status", namespace)
    except Missing as error:
        raise ClusterError(
            f"there is no ConfigMap {namespace}/{name}-status: nobody has planned for this cluster yet",
            hint="'fleet apply' makes one round, 'fleet watch' keeps the cluster; or give --namespace",
        ) from error
    daemonsets = [each for page in api.pages(DAEMONSET, namespace) for each in page.items]
    return status_document(found, daemonsets)


def print_status(document: Mapping[str, Any]) -> None:
    """The table; under each row that needs a person what a person can do."""
    rows = status_rows(document)
    widths = [max(map(len, column)) for column in zip(*rows)]
    for number, row in enumerate(rows):
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
        group = document["groups"][number - 1] if number else {}
        needed = group.get("state") in BLOCKED or group.get("coming")
        _explain([each for each in entries(group.get("reasons")) if needed or each.get("code") == "Updating"])
    for each in entries(document["conditions"]):
        if each.get("status") == ("True" if each.get("type") == "Blocked" else "False"):
            said = f"{each.get('type')}={each.get('status')} since {each.get('lastTransitionTime')}"
            say(f"{said}: {each.get('message')}")
    _explain(document["reasons"])
    for line in upgrade_lines(document):
        say(line)
    _explain(part(document, "upgrade").get("reasons"))


def _explain(reasons: object) -> None:
    for each in entries(reasons):
        say(f"  {each.get('message')}")
        if each.get("hint"):
            say(f"    hint: {each.get('hint')}")


def show_difference(api: Api, driver: Driver, overrides: Mapping[str, str]) -> None:
    """What `apply` would change: asked of the API by a dry run, nothing is written."""
    view, sets = read_view(api, driver.name, driver.namespace), registry_sets(driver, api, ONCE)
    contents = Secrets(api, driver, time.monotonic).digests()
    rounds = Rounds(api, view, driver, overrides, sets, contents)
    plan = rounds.plan()
    for wanted in rounds.objects(plan):
        kind, name = _KINDS[wanted["kind"]], wanted["metadata"]["name"]
        before = _existing(lambda kind=kind, name=name: api.get(kind, name, driver.namespace))  # type: ignore[misc]
        try:
            after: Document = api.apply(kind, wanted, dry_run=True)
        except Conflict:
            after = api.apply(kind, wanted, force=True, dry_run=True)
        _print_difference(f"{kind.name}/{name}", before, after)
    for label in plan.labels:
        say(f"Node/{label.node}: label {label.value or 'taken away'}")
    for name in (*plan.remove, *plan.remove_jobs):
        say(f"{name}: removed")


T = TypeVar("T")


def _existing(ask: Callable[[], T]) -> Optional[T]:
    try:
        return ask()
    except Missing:
        return None


def _print_difference(name: str, before: Optional[Document], after: Document) -> None:
    old, new = (_lines(each) for each in (before, after))
    for line in difflib.unified_diff(old, new, f"{name} (there)", f"{name} (wanted)", lineterm="", n=2):
        say(line)


def _lines(document: Optional[Document]) -> list[str]:
    """Without what the API keeps for itself."""
    if document is None:
        return []
    kept = {key: value for key, value in document.items() if key not in ("status", "metadata")}
    metadata = {key: part(document, "metadata").get(key) for key in ("labels", "annotations")}
    return to_yaml([{**kept, "metadata": metadata}]).splitlines()
