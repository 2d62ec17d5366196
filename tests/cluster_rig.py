"""A namespace, nodes and objects of a test on any Kubernetes API, which go when it ends."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Set

import pytest
import yaml
from api_server import ApiServer

from nvdriver_build.fleet.controller.api import Conflict, Document, Missing
from nvdriver_build.fleet.controller.client import HttpApi, cluster_config
from nvdriver_build.fleet.controller.kinds import (
    CLUSTER_VERSION,
    IMAGE_STREAM,
    NODE,
    POD,
    POOL,
    Kind,
)
from nvdriver_build.fleet.inventory.nodes import node_facts
from nvdriver_build.fleet.manifests import Driver

PREFIX = "nvdriver-test-"
NAMESPACE = Kind("", "v1", "Namespace", "namespaces", namespaced=False)
ACCOUNT = Kind("", "v1", "ServiceAccount", "serviceaccounts")
CRD = Kind(
    "apiextensions.k8s.io",
    "v1",
    "CustomResourceDefinition",
    "customresourcedefinitions",
    namespaced=False,
)
SCC = Kind(
    "security.openshift.io",
    "v1",
    "SecurityContextConstraints",
    "securitycontextconstraints",
    namespaced=False,
)
OPENSHIFT = "openshift"
PRIVILEGED = {"pod-security.kubernetes.io/enforce": "privileged"}
MERGE = "application/merge-patch+json"


class Cluster:
    """An API, a namespace for the test, and what has to go afterwards.

    `name` is for a driver of this test: names of its cluster-wide objects begin with it.
    """

    def __init__(self, kubeconfig: Path, real: bool) -> None:
        self.kubeconfig, self.real = kubeconfig, real
        self.name = f"test-{uuid.uuid4().hex[:8]}"
        self.space = f"{PREFIX}{self.name[5:]}"
        self._apis: List[HttpApi] = []
        self.api = self.as_manager("nvdriver-build")
        self._gone: List[Callable[[], None]] = []
        self.make(NAMESPACE, self.space, {"metadata": {"labels": PRIVILEGED}})
        if real:
            wait_for(self._has_account)

    def _has_account(self) -> bool:
        """Pods are refused until a controller has made the account that they run as."""
        try:
            self.api.get(ACCOUNT, "default", self.space)
        except Missing:
            return False
        return True

    def driver(self, **more: Any) -> Driver:
        """A driver whose objects are of this test alone."""
        given = {"image": "example.com/driver@sha256:0", "namespace": self.space, "name": self.name}
        return Driver(**{**given, **more})

    def as_manager(self, manager: str) -> HttpApi:
        """The API as another field manager."""
        self._apis.append(HttpApi(cluster_config(self.kubeconfig), manager=manager))
        return self._apis[-1]

    def as_account(self, account: str, folder: Path) -> Path:
        """A kubeconfig of a service account of the namespace, by a token of ten minutes or more."""
        path = ACCOUNT.path(self.space, account, "token")
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": 3600},
        }
        token = self.call("POST", path, body)["status"]["token"]
        config = yaml.safe_load(self.kubeconfig.read_text())
        context = next(each for each in config["contexts"] if each["name"] == config["current-context"])
        context["context"].update(user=account, namespace=self.space)
        for each in config["clusters"]:
            named = each["cluster"].get("certificate-authority")
            if named:
                each["cluster"]["certificate-authority"] = str(self.kubeconfig.parent / named)
        config["users"] = [{"name": account, "user": {"token": token}}]
        (folder / account).write_text(yaml.safe_dump(config))
        return folder / account

    def call(
        self, method: str, path: str, body: Optional[Document] = None, kind: str = "application/json"
    ) -> Document:
        """A request that no client of ours makes."""
        return self.api._ask("test", POD, method, path, {}, body, kind)

    def make(self, kind: Kind, name: str, body: Optional[Dict[str, Any]] = None, space: str = "") -> Document:
        """An object that goes when the test ends; its status too, where it is given."""
        metadata = {
            "name": name,
            **(body or {}).get("metadata", {}),
            **({"namespace": space} if space else {}),
        }
        head = {"apiVersion": kind.api_version, "kind": kind.name}
        made = self.api.create(kind, {**head, **(body or {}), "metadata": metadata})
        self.goes(kind, name, space or None)
        return made

    def goes(self, kind: Kind, name: str, space: Optional[str] = None) -> None:
        """It is deleted when the test ends, where it is still there."""
        self._gone.append(lambda: self.api.delete(kind, name, space))

    def node(self, name: str, status: Dict[str, Any], **labels: str) -> str:
        """A node without a kubelet."""
        whole = f"{self.space}-{name}"
        self.make(NODE, whole, {"metadata": {"labels": labels}, "status": status})
        self.told(whole, status)
        return whole

    def told(self, node: str, status: Mapping[str, Any]) -> None:
        """What a kubelet would say."""
        self.call("PATCH", NODE.path(None, node, "status"), {"status": status}, MERGE)

    def close(self) -> None:
        for gone in reversed(self._gone):
            try:
                gone()
            except Missing:
                continue
        for api in self._apis:
            api.close()


def wait_for(what: Callable[[], object], seconds: float = 60.0) -> None:
    """Until it is true."""
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it did not come to that"
        time.sleep(0.1)


def require(cluster: Cluster, kind: Kind) -> bool:
    """Where this is no OpenShift a CRD that keeps whatever it is given; whether it had to be made."""
    if _served(cluster.api, kind):
        return False
    names = {"plural": kind.plural, "singular": kind.name.lower(), "kind": kind.name}
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    version = {"name": kind.version, "served": True, "storage": True, "schema": schema}
    scope = "Namespaced" if kind.namespaced else "Cluster"
    spec = {"group": kind.group, "names": names, "scope": scope, "versions": [version]}
    # its group is protected: the API wants to know who approved it
    notes = {"api-approved.kubernetes.io": "unapproved, of a test"} if kind.group.endswith("k8s.io") else {}
    body = {"metadata": {"annotations": notes}, "spec": spec}
    wait_for(lambda: _made(cluster, f"{kind.plural}.{kind.group}", body))
    wait_for(lambda: _served(cluster.api, kind))
    return True


def _made(cluster: Cluster, name: str, body: Dict[str, Any]) -> bool:
    """False while one of that name, of a test before, is still going."""
    try:
        cluster.make(CRD, name, body)
    except Conflict:
        return False
    return True


def _served(api: HttpApi, kind: Kind) -> bool:
    try:
        next(iter(api.pages(kind, "default")))
    except Missing:
        return False
    return True


@pytest.fixture(scope="session")
def openshift() -> Iterator[Set[str]]:
    """The kinds (by plural) and the namespace that OpenShift has; what of them had to be made goes at the
    end.
    """
    kubeconfig = os.environ.get("CLUSTER_KUBECONFIG")
    if not kubeconfig:
        yield set()
        return
    helper = Cluster(Path(kubeconfig), True)
    made = {kind.plural for kind in (IMAGE_STREAM, CLUSTER_VERSION, POOL, SCC) if require(helper, kind)}
    wait_for(lambda: not _ending(helper.api, OPENSHIFT))
    try:
        helper.make(NAMESPACE, OPENSHIFT)
        made.add(OPENSHIFT)
    except Conflict:
        pass
    yield made
    helper.close()


def _ending(api: HttpApi, namespace: str) -> bool:
    try:
        return "deletionTimestamp" in api.get(NAMESPACE, namespace)["metadata"]
    except Missing:
        return False


def forbid_drivers_on_real_nodes(api: HttpApi) -> None:
    """Controllers serve every node with a GPU: on a cluster that has some, nothing may be tried."""
    for page in api.pages(NODE):
        for each in map(node_facts, page.items):
            if each is not None and each.gpu and not each.name.startswith(PREFIX):
                pytest.skip(f"{each.name} has a GPU: these tests are for a cluster without")


@pytest.fixture(params=["loopback", "real"])
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    """A cluster to test with."""
    if request.param == "loopback":
        with ApiServer() as server:
            made = Cluster(server.kubeconfig(tmp_path / "kubeconfig"), False)
            yield made
            made.close()
        return
    yield from _real(request)


@pytest.fixture
def real(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A real cluster, for what the server on loopback does not have: controllers, rights, schemas."""
    yield from _real(request)


def _real(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    kubeconfig = os.environ.get("CLUSTER_KUBECONFIG")
    if not kubeconfig:
        pytest.skip("CLUSTER_KUBECONFIG names no kubeconfig of a real cluster")
    request.getfixturevalue("openshift")
    made = Cluster(Path(kubeconfig), True)
    try:
        forbid_drivers_on_real_nodes(made.api)
        yield made
    finally:
        made.close()
