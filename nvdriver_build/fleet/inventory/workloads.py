"""DaemonSets, Jobs, MachineConfigPools and the ClusterVersion, as the API gives them, to facts."""

from __future__ import annotations

from typing import Any, Mapping, Optional

from nvdriver_build.fleet.facts import ClusterVersion, DaemonSet, Job, Pool
from nvdriver_build.fleet.names import COMPONENT, DRIVER, DRIVER_NOTE, KEY_NOTE, LABEL, MANAGED_BY, PREBUILD
from nvdriver_build.fleet.objects import condition, entries, flag, holds, number, part, text, texts

_FOREIGN, _OPERATORS = "nvidia-driver-daemonset", "openshift.driver-toolkit"


def daemonset_facts(document: object, manager: str) -> Optional[DaemonSet]:
    """What is known of a driver's DaemonSet, ours (managed by `manager`) or another's; None for any other
    one.
    """
    name, namespace = text(document, "metadata", "name"), text(document, "metadata", "namespace") or ""
    labels = texts(document, "metadata", "labels")
    if name is None:
        return None
    if labels.get(COMPONENT) != DRIVER and labels.get(_OPERATORS) != "true" and not name.startswith(_FOREIGN):
        return None
    return DaemonSet(
        name=name,
        namespace=namespace,
        ours=labels.get(MANAGED_BY) == manager,
        version=texts(document, "metadata", "annotations").get(LABEL),
        pods=_pods(document),
        desired=number(document, "status", "desiredNumberScheduled"),
        ready=number(document, "status", "numberReady"),
        driver=texts(document, "spec", "template", "metadata", "annotations").get(DRIVER_NOTE),
    )


def _pods(document: object) -> Optional[int]:
    """Pods on nodes that it is for, and on others (misscheduled: those go last)."""
    seen, present = (
        number(document, "status", "observedGeneration"),
        number(document, "metadata", "generation"),
    )
    there = number(document, "status", "currentNumberScheduled")
    stray = number(document, "status", "numberMisscheduled")
    if seen is None or seen != present or there is None or stray is None:
        return None
    return there + stray


def job_facts(document: object, manager: str) -> Optional[Job]:
    """What is known of a prebuild Job of ours; None for any other one."""
    name, labels = text(document, "metadata", "name"), texts(document, "metadata", "labels")
    if name is None or labels.get(MANAGED_BY) != manager or labels.get(COMPONENT) != PREBUILD:
        return None
    failed = condition(document, "Failed") if holds(document, "Failed") else None
    state = "done" if holds(document, "Complete") else "failed" if failed is not None else "active"
    return Job(
        name=name,
        namespace=text(document, "metadata", "namespace") or "",
        key=texts(document, "metadata", "annotations").get(KEY_NOTE),
        state=state,
        message=(text(failed, "message") or text(failed, "reason")) if failed else None,
    )


def pool_facts(document: object) -> Optional[Pool]:
    """What is known of a MachineConfigPool."""
    name = text(document, "metadata", "name")
    if name is None:
        return None
    return Pool(
        name=name,
        paused=flag(document, "spec", "paused"),
        updating=holds(document, "Updating") is True,
        stream=text(document, "spec", "osImageStream", "name"),
    )


def pool_selector(document: object) -> Mapping[str, Any]:
    """By which it chooses its nodes."""
    return part(document, "spec", "nodeSelector")


def cluster_version_facts(document: object) -> ClusterVersion:
    """Where the cluster is and goes to. What is no ClusterVersion gives one of which nothing is known."""
    histories = list(entries(document, "status", "history"))
    partial = bool(histories) and histories[0].get("state") == "Partial"
    return ClusterVersion(
        desired=text(document, "status", "desired", "version"),
        progressing=holds(document, "Progressing") is True or partial,
    )
