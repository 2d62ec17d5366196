"""A namespace, nodes and objects of a test on any Kubernetes API, which go when it ends."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional

import pytest
from api_server import ApiServer

from nvdriver_build.fleet.controller.api import Document, Missing
from nvdriver_build.fleet.controller.client import HttpApi, cluster_config
from nvdriver_build.fleet.controller.kinds import IMAGE_STREAM, NODE, Kind

NAMESPACE = Kind("", "v1", "Namespace", "namespaces", namespaced=False)
CRD = Kind(
    "apiextensions.k8s.io",
    "v1",
    "CustomResourceDefinition",
    "customresourcedefinitions",
    namespaced=False,
)


class Cluster:
    """An API, a namespace for the test, and what has to go afterwards."""

    def __init__(self, kubeconfig: Path, real: bool) -> None:
        self.kubeconfig, self.real = kubeconfig, real
        self.space = f"nvdriver-test-{uuid.uuid4().hex[:8]}"
        self._apis: List[HttpApi] = []
        self.api = self.as_manager("nvdriver-build")
        self._gone: List[Callable[[], None]] = []
        self.make(NAMESPACE, self.space)

    def as_manager(self, manager: str) -> HttpApi:
        """The API as another field manager."""
        self._apis.append(HttpApi(cluster_config(self.kubeconfig), manager=manager))
        return self._apis[-1]

    def make(self, kind: Kind, name: str, body: Optional[Dict[str, Any]] = None, space: str = "") -> Document:
        """An object that goes when the test ends; its status too, where it is given."""
        metadata = {
            "name": name,
            **(body or {}).get("metadata", {}),
            **({"namespace": space} if space else {}),
        }
        head = {"apiVersion": kind.api_version, "kind": kind.name}
        made = self.api.create(kind, {**head, **(body or {}), "metadata": metadata})
        self._gone.append(lambda: self.api.delete(kind, name, space or None))
        return made

    def node(self, name: str, status: Dict[str, Any], **labels: str) -> str:
        """A node without a kubelet."""
        whole = f"{self.space}-{name}"
        self.make(NODE, whole, {"metadata": {"labels": labels}, "status": status})
        self.told(whole, status)
        return whole

    def told(self, node: str, status: Dict[str, Any]) -> None:
        """What a kubelet would say."""
        path = NODE.path(None, node, "status")
        self.api._ask("patch", NODE, "PATCH", path, {}, {"status": status}, "application/merge-patch+json")

    def close(self) -> None:
        for gone in reversed(self._gone):
            try:
                gone()
            except Missing:
                continue
        for api in self._apis:
            api.close()


def require_image_streams(cluster: Cluster) -> None:
    """On Kubernetes that is not OpenShift: a CRD that keeps whatever it is given."""
    try:
        next(iter(cluster.api.pages(IMAGE_STREAM, cluster.space)))
        return
    except Missing:
        pass
    names = {"plural": "imagestreams", "singular": "imagestream", "kind": "ImageStream"}
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    version = {"name": "v1", "served": True, "storage": True, "schema": schema}
    spec = {"group": IMAGE_STREAM.group, "names": names, "scope": "Namespaced", "versions": [version]}
    cluster.make(CRD, f"imagestreams.{IMAGE_STREAM.group}", {"spec": spec})
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            next(iter(cluster.api.pages(IMAGE_STREAM, cluster.space)))
            return
        except Missing:
            time.sleep(0.5)


@pytest.fixture(params=["loopback", "real"])
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    """A cluster to test with."""
    if request.param == "loopback":
        with ApiServer() as server:
            made = Cluster(server.kubeconfig(tmp_path / "kubeconfig"), False)
            yield made
            made.close()
        return
    kubeconfig = os.environ.get("CLUSTER_KUBECONFIG")
    if not kubeconfig:
        pytest.skip("CLUSTER_KUBECONFIG names no kubeconfig of a real cluster")
    made = Cluster(Path(kubeconfig), True)
    require_image_streams(made)
    yield made
    made.close()
