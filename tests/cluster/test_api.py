"""What the controller relies on of a Kubernetes API: the same on loopback and on a real server."""

from __future__ import annotations

import threading
import time
from typing import Any, Dict, Set

import pytest
from cluster_rig import Cluster

from nvdriver_build.errors import Stopped
from nvdriver_build.fleet.controller.api import BOOKMARK, Conflict, Gone, Missing, Refused
from nvdriver_build.fleet.controller.kinds import CONFIG_MAP, DAEMONSET, LEASE, NODE, POD, Kind
from nvdriver_build.fleet.controller.watching import Pace, Watcher, apply_once
from nvdriver_build.fleet.manifests import Driver
from nvdriver_build.fleet.names import GPU_LABEL, LABEL

BUDGET = Kind("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets")
OLD, NEW = "416.94.202408260940-0", "9.6.20260616-0"


def daemonset(cluster: Cluster, **more: Any) -> Dict[str, Any]:
    pod = {
        "nodeSelector": {"nvdriver-test": "none"},
        "containers": [{"name": "one", "image": "example.com/none"}],
    }
    template = {"metadata": {"labels": {"app": "test"}}, "spec": pod}
    spec = {"selector": {"matchLabels": {"app": "test"}}, "template": template, **more}
    head = {"apiVersion": "apps/v1", "kind": "DaemonSet"}
    return {**head, "metadata": {"name": "test", "namespace": cluster.space}, "spec": spec}


def status(version: str, boot: str = "1") -> Dict[str, Any]:
    """Of a node that runs this RHCOS."""
    kernel = {OLD: "5.14.0-427.33.1.el9_4.x86_64", NEW: "5.14.0-570.12.1.el9_6.x86_64"}[version]
    names = ("machineID", "systemUUID", "containerRuntimeVersion", "kubeletVersion", "kubeProxyVersion")
    info = {
        **dict.fromkeys(names, "test"),
        "operatingSystem": "linux",
        "architecture": "amd64",
        "kernelVersion": kernel,
        "osImage": f"Red Hat Enterprise Linux CoreOS {version}",
        "bootID": boot,
    }
    return {"nodeInfo": info}


def test_apply(cluster: Cluster) -> None:
    """Apply makes and changes; the same again leaves the generation; another manager is a conflict."""
    first = cluster.api.apply(DAEMONSET, daemonset(cluster, minReadySeconds=1))
    assert cluster.api.apply(DAEMONSET, daemonset(cluster, minReadySeconds=1))["metadata"]["generation"] == 1
    second = cluster.api.apply(DAEMONSET, daemonset(cluster, minReadySeconds=2))
    assert (first["metadata"]["generation"], second["metadata"]["generation"]) == (1, 2)
    tried = cluster.api.apply(DAEMONSET, daemonset(cluster, minReadySeconds=3), dry_run=True)
    assert tried["spec"]["minReadySeconds"] == 3
    other = cluster.as_manager("another")
    with pytest.raises(Conflict, match="nvdriver-build"):
        other.apply(DAEMONSET, daemonset(cluster, minReadySeconds=4))
    taken = other.apply(DAEMONSET, daemonset(cluster, minReadySeconds=4), force=True)
    assert taken["spec"]["minReadySeconds"] == 4


def test_delete_of_what_was_seen(cluster: Cluster) -> None:
    """A delete is of the very version that was seen."""
    seen = cluster.api.apply(DAEMONSET, daemonset(cluster))
    cluster.api.apply(DAEMONSET, daemonset(cluster, minReadySeconds=5))
    with pytest.raises(Conflict):
        cluster.api.delete(DAEMONSET, "test", cluster.space, seen)
    cluster.api.delete(DAEMONSET, "test", cluster.space, cluster.api.get(DAEMONSET, "test", cluster.space))
    until = time.monotonic() + 30
    with pytest.raises(Missing):
        while time.monotonic() < until:
            cluster.api.get(DAEMONSET, "test", cluster.space)


def test_a_stale_lease_is_a_conflict(cluster: Cluster) -> None:
    """An update of an old version is refused."""
    old = cluster.make(LEASE, "test", {"spec": {"holderIdentity": "one"}}, cluster.space)
    cluster.api.replace(LEASE, {**old, "spec": {"holderIdentity": "two"}})
    with pytest.raises(Conflict):
        cluster.api.replace(LEASE, {**old, "spec": {"holderIdentity": "three"}})


def test_watch(cluster: Cluster) -> None:
    """A watch goes on where a list ended."""
    version = list(cluster.api.pages(CONFIG_MAP, cluster.space))[-1].version
    cluster.make(CONFIG_MAP, "test", {"data": {"one": "1"}}, cluster.space)
    cluster.api.merge(CONFIG_MAP, "test", {"data": {"one": None, "two": "2"}}, cluster.space)
    found = []
    for event in cluster.api.watch(CONFIG_MAP, version, cluster.space):
        if event.type != BOOKMARK and event.object["metadata"]["name"] == "test":
            found.append((event.type, event.object["data"]))
        if len(found) == 2:
            break
    assert found == [("ADDED", {"one": "1"}), ("MODIFIED", {"two": "2"})]


def test_an_old_version_is_gone(cluster: Cluster) -> None:
    """A watch from the beginning of time is Gone, or begins with what there is."""
    cluster.make(CONFIG_MAP, "test", {"data": {"one": "1"}}, cluster.space)
    try:
        next(iter(cluster.api.watch(CONFIG_MAP, "1", cluster.space)))
    except Gone:
        return


def test_a_budget_forbids_an_eviction(cluster: Cluster) -> None:
    """429 without Retry-After."""
    containers = [{"name": "one", "image": "example.com/none"}]
    pod = {"metadata": {"labels": {"app": "test"}}, "spec": {"containers": containers}}
    cluster.make(POD, "test", pod, cluster.space)
    spec = {"minAvailable": 1, "selector": {"matchLabels": {"app": "test"}}}
    cluster.make(BUDGET, "test", {"spec": spec}, cluster.space)
    if cluster.real:
        pytest.skip("a pod that never ran may be evicted; its controller has to count a ready one first")
    with pytest.raises(Refused) as refused:
        cluster.api.evict("test", cluster.space)
    assert refused.value.status == 429


def test_nodes_are_labelled_and_served(cluster: Cluster) -> None:
    """A round labels a node by its own word and makes its DaemonSet; after an update the next does."""
    name = cluster.node("one", status(OLD), **{GPU_LABEL: "true"})
    driver = Driver(image="example.com/driver@sha256:0", namespace=cluster.space, name="nvdriver-test")
    apply_once(cluster.api, driver, {})
    assert cluster.api.get(NODE, name)["metadata"]["labels"][LABEL] == OLD
    assert versions(cluster) == {OLD}
    cluster.told(name, status(NEW, "2"))
    apply_once(cluster.api, driver, {})
    assert cluster.api.get(NODE, name)["metadata"]["labels"][LABEL] == NEW
    assert NEW in versions(cluster)


def test_watch_follows_nodes(cluster: Cluster) -> None:
    """The controller labels a node within seconds of its change, and ends by a signal."""
    name = cluster.node("one", status(OLD), **{GPU_LABEL: "true"})
    driver = Driver(image="example.com/driver@sha256:0", namespace=cluster.space, name="nvdriver-test")
    ending = threading.Event()

    def stop() -> None:
        if ending.is_set():
            raise Stopped(15)

    watcher = Watcher(cluster.as_manager("nvdriver-build"), driver, "test", stop, pace=Pace(settled=0.1))
    raised: list[BaseException] = []

    def run() -> None:
        try:
            watcher.run()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        labelled(cluster, name, OLD)
        cluster.told(name, status(NEW, "2"))
        labelled(cluster, name, NEW)
    finally:
        ending.set()
        thread.join(30)
    assert [type(each) for each in raised] == [Stopped]


def labelled(cluster: Cluster, name: str, version: str) -> None:
    until = time.monotonic() + 30
    while cluster.api.get(NODE, name)["metadata"]["labels"].get(LABEL) != version:
        assert time.monotonic() < until, f"{name} is not labelled {version}"
        time.sleep(0.1)


def versions(cluster: Cluster) -> Set[str]:
    found = (each for page in cluster.api.pages(DAEMONSET, cluster.space) for each in page.items)
    return {each["metadata"]["annotations"][LABEL] for each in found}
