"""What `fleet render` writes, on a cluster as somebody with the right to do so puts it there."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any, Dict, List

import yaml
from cluster_objects import V1, V2, imagestream, node
from cluster_programs import fleet, settings
from cluster_rig import ACCOUNT, NAMESPACE, SCC, Cluster
from keys import make_identity

from nvdriver_build.fleet.controller.api import Document
from nvdriver_build.fleet.controller.kinds import CONFIG_MAP, DAEMONSET, JOB, Kind
from nvdriver_build.fleet.manifests import Driver

_RBAC = "rbac.authorization.k8s.io"
KINDS = {
    kind.name: kind
    for kind in (
        *(ACCOUNT, CONFIG_MAP, DAEMONSET, JOB, NAMESPACE, SCC),
        Kind(_RBAC, "v1", "Role", "roles"),
        Kind(_RBAC, "v1", "RoleBinding", "rolebindings"),
        Kind(_RBAC, "v1", "ClusterRole", "clusterroles", namespaced=False),
        Kind(_RBAC, "v1", "ClusterRoleBinding", "clusterrolebindings", namespaced=False),
        Kind("scheduling.k8s.io", "v1", "PriorityClass", "priorityclasses", namespaced=False),
        Kind("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies"),
        Kind("apps", "v1", "Deployment", "deployments"),
        Kind("", "v1", "Service", "services"),
        Kind("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets"),
    )
}


@functools.cache
def certificate() -> str:
    """Of somebody."""
    with tempfile.TemporaryDirectory() as folder:
        return make_identity(Path(folder), "fleet").file.read_text()


def whole_driver(cluster: Cluster) -> Driver:
    """A driver that asks for everything that its settings can say."""
    return cluster.driver(
        env={"DRIVER_VERSION": "580.95.05", "HTTPS_PROXY": "http://proxy.example.com:3128"},
        env_secret="settings",
        parameters={"nvidia.conf": "NVreg_EnableGpuFirmware=1"},
        registry="registry.example.com:5000/nvidia",
        registry_ca=certificate(),
        registry_auth_secret="login",
        trust=certificate(),
        sign_secret="signing",
        rdma=True,
        pull_secrets=("pull",),
        tolerations=({"key": "gpu", "operator": "Exists"},),
        resources={"limits": {"cpu": "8", "memory": "16Gi"}},
        prebuild_resources={"requests": {"cpu": "2"}},
        prebuild_user=1000,
        fleet_image="registry.example.com:5000/fleet:1",
        upgrade={"max_unavailable": "10%"},
    )


def rendered(cluster: Cluster, driver: Driver, folder: Path) -> List[Dict[str, Any]]:
    """Its objects, for nodes of one version that are coming to another one."""
    (folder / "nodes.json").write_text(json.dumps({"kind": "NodeList", "items": [node("one", V1)]}))
    (folder / "stream.json").write_text(json.dumps(imagestream(V1, V2)))
    told = settings(driver, folder / "settings.yaml")
    files = ("--nodes", folder / "nodes.json", "--imagestream", folder / "stream.json")
    return list(yaml.safe_load_all(fleet(cluster.kubeconfig, "render", *files, "--settings", told)))


def apply_all(cluster: Cluster, objects: List[Dict[str, Any]]) -> List[Document]:
    """They go when the test ends, also those that are in no namespace of the test."""
    made = []
    for each in objects:
        kind, metadata = KINDS[each["kind"]], each["metadata"]
        if metadata.get("namespace") != cluster.space and kind is not NAMESPACE:
            cluster.goes(kind, metadata["name"], metadata.get("namespace"))
        made.append(cluster.api.apply(kind, each, force=True))
    return made


def rights(cluster: Cluster, folder: Path, driver: Driver) -> None:
    """Accounts and roles alone: what a controller makes itself is left to it."""
    own = ("ConfigMap", "DaemonSet", "Job", "Deployment")
    apply_all(cluster, [each for each in rendered(cluster, driver, folder) if each["kind"] not in own])
