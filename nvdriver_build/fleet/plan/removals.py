"""Which of our DaemonSets and Jobs nothing needs any more.

A DaemonSet goes when no node has its version, none is coming to it, and its last pod is gone: never under a
pod.
"""

from __future__ import annotations

from typing import Collection, Optional

from attrs import frozen

from nvdriver_build.fleet.facts import Cluster, DaemonSet
from nvdriver_build.fleet.reasons import Reason


@frozen
class Removals:
    """Names of what can go, and why others that are not wanted stay."""

    daemonsets: tuple[str, ...]
    jobs: tuple[str, ...]
    reasons: tuple[Reason, ...]


def removals(
    cluster: Cluster, names: Collection[str], versions: Collection[str], keys: Collection[str]
) -> Removals:
    """What can go, where DaemonSets of these names and versions and prebuilds of these keys are wanted.

    Nothing goes while there is no ImageStream: what is coming is not known then.
    """
    known = cluster.imagestream is not None
    unwanted = [each for each in cluster.daemonsets if each.ours and each.name not in names]
    present = {node.version for node in cluster.nodes}
    why = {each: _stays(each, present, versions) for each in sorted(unwanted, key=lambda each: each.name)}
    return Removals(
        daemonsets=tuple(each.name for each, reason in why.items() if known and reason is None),
        jobs=tuple(sorted(job.name for job in cluster.jobs if known and job.key not in keys)),
        reasons=tuple(reason for reason in why.values() if reason is not None),
    )


def _stays(found: DaemonSet, present: Collection[Optional[str]], wanted: Collection[str]) -> Optional[Reason]:
    name, version = found.name, found.version
    if version is None:
        message = f"the DaemonSet {name} does not say for which version it is, and stays"
        return Reason("DaemonSetUnknown", message, f"delete {name} by hand once no pod of it is needed")
    if version in wanted:
        message = f"the DaemonSet {name} is a second one for {version}, and stays"
        return Reason(
            "DaemonSetTwice", message, f"delete {name} by hand, with --cascade=orphan where pods run"
        )
    if version in present:
        return Reason(
            "VersionPresent", f"the DaemonSet {name} stays: nodes without a GPU of ours run {version}"
        )
    if found.pods is None:
        return Reason("PodsUnknown", f"the DaemonSet {name} stays: how many pods it has is not known yet")
    if found.pods:
        return Reason(
            "PodsLeft", f"the DaemonSet {name} stays until its pods are gone: {found.pods} are left"
        )
    return None


def other_masters(cluster: Cluster) -> list[Reason]:
    """Told where somebody else's DaemonSet drives GPUs of this cluster, too."""
    hint = "one of the two has to go: driver.enabled=false in the ClusterPolicy, or this one"
    return [
        Reason(
            "OtherDriver",
            f"{each.namespace}/{each.name} is a driver's DaemonSet, too, with {each.pods} pods",
            hint,
        )
        for each in sorted(cluster.daemonsets, key=lambda each: (each.namespace, each.name))
        if not each.ours and each.pods
    ]
