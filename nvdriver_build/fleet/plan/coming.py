"""The RHCOS version that nodes will run after their next reboot.

ClusterVersion does not tell it. It is the tag whose image is that of `latest` and which no GPU node runs:
during an upgrade the ImageStream is updated before the first node, the nodes of the control plane mostly
before those with GPUs. From 4.21 on a release has two systems, and a MachineConfigPool may name the other one
(spec.osImageStream): `latest-rhel-N` counts where one does, or where GPU nodes run that RHEL already.
"""

from __future__ import annotations

from typing import Iterable, Optional

from attrs import evolve

from nvdriver_build.fleet.facts import Cluster, ImageStream, Tag
from nvdriver_build.fleet.plan.groups import Kind
from nvdriver_build.fleet.plan.toolkits import kernel_in
from nvdriver_build.fleet.reasons import Reason, some
from nvdriver_build.fleet.versions import is_version, rhel_of

_WORKER = "worker"


def coming_tags(cluster: Cluster, running: Iterable[str]) -> list[Tag]:
    """The tags of the versions that GPU nodes are coming to, in order of name."""
    here = frozenset(running)
    stream = _meant(cluster, here)
    if stream is None:
        return []
    return [
        tag
        for tag in stream.tags
        if tag.image in stream.latest and is_version(tag.name) and tag.name not in here
    ]


def _meant(cluster: Cluster, here: frozenset[str]) -> Optional[ImageStream]:
    """The ImageStream, whose `latest` are those of all systems that GPU nodes may come to."""
    stream = cluster.imagestream
    if stream is None or not stream.streams:
        return stream
    used = {rhel_of(version) for version in here} | _named(cluster)
    more = (image for rhel, image in stream.streams if rhel in used)
    return evolve(stream, latest=tuple(dict.fromkeys((*stream.latest, *more))))


def _named(cluster: Cluster) -> set[Optional[int]]:
    """By the pools of GPU nodes; a custom pool may inherit what `worker` has."""
    ours = {node.pool for node in cluster.nodes if node.gpu} | {_WORKER}
    pools = [pool for pool in cluster.pools if pool.name in ours and pool.stream]
    words = [str(pool.stream).rpartition("-")[2] for pool in pools]
    return {int(word) for word in words if word.isascii() and word.isdigit()}


def coming_kinds(tag: Tag, running: Iterable[Kind]) -> list[Kind]:
    """What nodes will be after they come to a tag's version: as many flavours and architectures as there
    are now.
    """
    alike = {(kind.flavour, str(kind.arch)) for kind in running if kind.served}
    return [Kind(tag.name, kernel_in(tag, flavour, arch), flavour, arch) for flavour, arch in sorted(alike)]


def coming_reasons(cluster: Cluster) -> list[Reason]:
    """Why a version is said to be coming, and whether something holds its nodes back."""
    version = cluster.cluster_version
    going = f"; the cluster goes to {version.desired}" if version and version.progressing else ""
    reasons = [Reason("Coming", f"its toolkit is that of latest, and no GPU node runs it yet{going}")]
    ours = {node.pool for node in cluster.nodes if node.gpu and node.pool}
    paused = sorted(pool.name for pool in cluster.pools if pool.paused and pool.name in ours)
    if paused:
        message = f"paused, so that their nodes stay as they are: the pools {some(paused)}"
        reasons.append(Reason("PoolsPaused", message, "resume them once what is coming is prebuilt"))
    return reasons


def latest_without_version(cluster: Cluster) -> list[Reason]:
    """Told where `latest` is of no version that has a tag: what is coming cannot be known then."""
    stream = _meant(cluster, frozenset(node.version for node in cluster.nodes if node.gpu and node.version))
    if stream is None:
        return []
    told = {tag.image for tag in stream.tags if is_version(tag.name)}
    message = "no tag of an RHCOS version has the image of {}: what is coming is not known"
    hint = "the tag comes with the next step of the upgrade; is 'oc get clusterversion' progressing?"
    return [
        Reason("LatestWithoutVersion", message.format(image), hint)
        for image in stream.latest
        if image not in told
    ]
