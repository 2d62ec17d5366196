"""A cluster from files, where there is no API to ask."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

from attrs import frozen

from nvdriver_build.errors import ClusterError
from nvdriver_build.fleet.facts import Cluster
from nvdriver_build.fleet.inventory import cluster_facts
from nvdriver_build.fleet.inventory.toolkits import NAME
from nvdriver_build.fleet.objects import text
from nvdriver_build.fleet.reading import read_nodes, read_objects


@frozen
class Files:
    """What `oc get ... -o json` (all but the nodes also `-o yaml`) has written.

    `imagestream` may have the ImageStreamTags too, `workloads` has DaemonSets and Jobs.
    """

    nodes: Path
    imagestream: Optional[Path] = None
    clusterversion: Optional[Path] = None
    pools: Optional[Path] = None
    workloads: Optional[Path] = None


def cluster_from_files(files: Files, manager: str) -> Cluster:
    """The facts of these files; ClusterError where one has something else, OSError where it cannot be read.

    Objects that `manager` manages are ours.
    """
    streams = _objects(files.imagestream, "ImageStream", "ImageStreamTag")
    work = _objects(files.workloads, "DaemonSet", "Job")
    versions = _objects(files.clusterversion, "ClusterVersion")
    return cluster_facts(
        read_nodes(files.nodes),
        _toolkits(streams, files.imagestream) if files.imagestream else None,
        tags=[each for each in streams if text(each, "kind") == "ImageStreamTag"],
        cluster_version=versions[0] if versions else None,
        pools=_objects(files.pools, "MachineConfigPool"),
        daemonsets=[each for each in work if text(each, "kind") == "DaemonSet"],
        jobs=[each for each in work if text(each, "kind") == "Job"],
        manager=manager,
    )


def _objects(path: Optional[Path], *kinds: str) -> list[object]:
    return read_objects(path, *kinds) if path else []


def _toolkits(objects: list[object], path: Path) -> object:
    """The ImageStream of the Driver Toolkit; one without a name will be it."""
    streams = [each for each in objects if text(each, "kind") == "ImageStream"]
    found = next((each for each in streams if text(each, "metadata", "name") in (None, NAME)), None)
    if found is None:
        raise ClusterError(
            f"{path} has no ImageStream {NAME}",
            hint=f"'oc -n openshift get is/{NAME} -o json' writes it",
        )
    return found
