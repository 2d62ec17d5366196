"""A driver on a real cluster whose nodes are made up, and what tests look at there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List, Set

import pytest
from cluster_objects import V1, imagestream
from cluster_programs import Watch, fleet, settings
from cluster_rendered import certificate, rights
from cluster_rig import OPENSHIFT, Cluster

from nvdriver_build.fleet.controller.api import Missing
from nvdriver_build.fleet.controller.kinds import (
    CLUSTER_VERSION,
    DAEMONSET,
    IMAGE_STREAM,
    JOB,
    NODE,
    POOL,
    SECRET,
)
from nvdriver_build.fleet.names import LABEL
from nvdriver_build.fleet.versions import object_name


class Fleet:
    """A cluster with toolkits of our own, and a driver for it."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.driver = cluster.driver(
            registry="registry.example.com/nvidia",
            sign_secret="signing",
            trust=certificate(),
            env_secret="settings",
        )
        self.settings = settings(self.driver, folder / "driver.yaml")
        rights(cluster, folder, self.driver)
        cluster.make(SECRET, "settings", {"stringData": {"NVDRIVER_LOG_FORMAT": "json"}}, cluster.space)
        cluster.make(IMAGE_STREAM, "driver-toolkit", {"spec": imagestream(V1)["spec"]}, OPENSHIFT)
        cluster.make(CLUSTER_VERSION, "version", {"status": {"desired": {"version": "4.20.1"}}})
        selector = {"matchLabels": {"nvdriver-test": cluster.name}}
        cluster.make(POOL, cluster.space, {"spec": {"paused": False, "nodeSelector": selector}})

    def offer(self, *versions: str) -> None:
        """The ImageStream has the toolkits of these versions; the last one is coming."""
        self.cluster.api.merge(
            IMAGE_STREAM, "driver-toolkit", {"spec": imagestream(*versions)["spec"]}, OPENSHIFT
        )

    def watch(self, name: str = "watch", kubeconfig: Path | None = None) -> Watch:
        """A controller."""
        return Watch(kubeconfig or self.cluster.kubeconfig, self.settings, self.folder / f"{name}.log")

    def daemonset(self, version: str) -> Dict[str, Any]:
        """Its status; empty where there is none."""
        name = object_name(self.driver.name, version)
        try:
            return dict(self.cluster.api.get(DAEMONSET, name, self.cluster.space)).get("status") or {}
        except Missing:
            return {}

    def ready(self, version: str) -> int:
        """Pods that serve nodes of this version."""
        return int(self.daemonset(version).get("numberReady") or 0)

    def label(self, node: str) -> str | None:
        """The node's, by which DaemonSets choose it."""
        found = self.cluster.api.get(NODE, node)["metadata"]["labels"].get(LABEL)
        return None if found is None else str(found)

    def jobs(self) -> List[Any]:
        """Whether each is complete."""
        found = [each for page in self.cluster.api.pages(JOB, self.cluster.space) for each in page.items]
        return [bool(each.get("status", {}).get("completionTime")) for each in found]

    def status(self) -> Dict[str, Any]:
        """`fleet status --json`."""
        words = ("status", "--json", "--name", self.driver.name, "--namespace", self.cluster.space)
        return dict(json.loads(fleet(self.cluster.kubeconfig, *words)))

    def states(self) -> Dict[str, str]:
        """By version."""
        return {each["rhcos_version"]: each["state"] for each in self.status()["groups"]}


@pytest.fixture
def there(real: Cluster, openshift: Set[str], tmp_path: Path) -> Fleet:
    """A driver on a real cluster that has no toolkits of its own."""
    if IMAGE_STREAM.plural not in openshift:
        pytest.skip("this cluster has toolkits of its own, which no test may change")
    return Fleet(real, tmp_path)
