"""What the controller relies on of a Kubernetes API: the same on loopback and on a real server."""

from __future__ import annotations

import threading
from typing import Any, Dict, List, Set

import pytest
from cluster_rig import MERGE, Cluster, wait_for

from nvdriver_build.errors import Stopped
from nvdriver_build.fleet.controller import client
from nvdriver_build.fleet.controller.api import BOOKMARK, Conflict, Gone, Missing, Refused
from nvdriver_build.fleet.controller.following import Follower
from nvdriver_build.fleet.controller.kinds import CONFIG_MAP, DAEMONSET, LEASE, NODE, POD, Kind
from nvdriver_build.fleet.controller.view import View
from nvdriver_build.fleet.controller.watching import Pace, Watcher, apply_once
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
    changed = daemonset(cluster, minReadySeconds=4, revisionHistoryLimit=1)
    cluster.api.apply(DAEMONSET, daemonset(cluster, minReadySeconds=2, revisionHistoryLimit=2))
    with pytest.raises(Conflict, match=r'conflicts with "nvdriver-build".*spec') as conflict:
        other.apply(DAEMONSET, changed)
    assert "\n" not in conflict.value.message
    taken = other.apply(DAEMONSET, daemonset(cluster, minReadySeconds=4), force=True)
    assert taken["spec"]["minReadySeconds"] == 4


def test_delete_of_what_was_seen(cluster: Cluster) -> None:
    """A delete is of the very version that was seen."""
    seen = cluster.api.apply(DAEMONSET, daemonset(cluster))
    cluster.api.apply(DAEMONSET, daemonset(cluster, minReadySeconds=5))
    with pytest.raises(Conflict):
        cluster.api.delete(DAEMONSET, "test", cluster.space, seen)
    wait_for(lambda: deleted(cluster))
    wait_for(lambda: gone(cluster))


def deleted(cluster: Cluster) -> bool:
    """As it is now: a controller may write its status in between."""
    try:
        cluster.api.delete(
            DAEMONSET, "test", cluster.space, cluster.api.get(DAEMONSET, "test", cluster.space)
        )
    except Conflict:
        return False
    return True


def gone(cluster: Cluster) -> bool:
    try:
        cluster.api.get(DAEMONSET, "test", cluster.space)
    except Missing:
        return True
    return False


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


def test_pages(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long list comes in pages, all of one moment, each object once."""
    monkeypatch.setattr(client, "PAGE", 2)
    for number in range(5):
        cluster.make(CONFIG_MAP, f"test-{number}", {"metadata": {"labels": {"of": "test"}}}, cluster.space)
    found = []
    for page in cluster.api.pages(CONFIG_MAP, cluster.space, "of=test"):
        assert len(page.items) <= 2
        found += [each["metadata"]["name"] for each in page.items]
        cluster.api.apply(CONFIG_MAP, late(cluster))
    assert sorted(found) == [f"test-{number}" for number in range(5)]


def late(cluster: Cluster) -> Dict[str, Any]:
    """One that comes while the others are listed."""
    metadata = {"name": "test-9", "namespace": cluster.space, "labels": {"of": "test"}}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}


def test_bookmarks(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a watch ends, its server says how far it is, so that the next one goes on from there.

    It says so only of what came after the watch began.
    """
    monkeypatch.setattr(client, "WATCH_SECONDS", 5 if cluster.real else 1)
    version = list(cluster.api.pages(CONFIG_MAP, cluster.space))[-1].version
    made: List[Any] = []
    body = {"data": {"one": "1"}}
    later = threading.Timer(0.5, lambda: made.append(cluster.make(CONFIG_MAP, "test", body, cluster.space)))
    later.start()
    events = list(cluster.api.watch(CONFIG_MAP, version, cluster.space, "of=none"))
    later.join()
    assert {each.type for each in events} == {BOOKMARK}
    marks = [int(each["metadata"]["resourceVersion"]) for each in (made[0], events[-1].object)]
    assert marks[0] <= marks[1]


def test_a_follower(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lists once and goes on over the ends of watches; where it is too far behind it lists again."""
    monkeypatch.setattr(client, "WATCH_SECONDS", 1)
    view = View("nvdriver-build", lambda: None)
    follower = Follower(cluster.api, CONFIG_MAP, view.config_maps, view, cluster.space)
    for name in ("one", "two"):
        cluster.make(CONFIG_MAP, name, {"data": {}}, cluster.space)
        follower.once()
        assert name in view.live("configmaps")
        monkeypatch.setattr(follower.api, "pages", None)  # it needs no list any more
    monkeypatch.undo()
    cluster.api.delete(CONFIG_MAP, "one", cluster.space)
    follower.version = "1"
    monkeypatch.setattr(client, "WATCH_SECONDS", 1)
    for _ in range(2):
        follower.once()
    assert {"one", "two"} & set(view.live("configmaps")) == {"two"}


def test_an_old_version_is_gone(cluster: Cluster) -> None:
    """A watch from the beginning of time is Gone, or begins with what there is."""
    cluster.make(CONFIG_MAP, "test", {"data": {"one": "1"}}, cluster.space)
    try:
        next(iter(cluster.api.watch(CONFIG_MAP, "1", cluster.space)))
    except Gone:
        return


def test_a_budget_forbids_an_eviction(cluster: Cluster) -> None:
    """429 as long as a PodDisruptionBudget needs the pod, and the pod stays."""
    node = cluster.node("one", status(OLD))
    containers = [{"name": "one", "image": "example.com/none"}]
    spec = {"nodeName": node, "containers": containers, "tolerations": [{"operator": "Exists"}]}
    cluster.make(POD, "test", {"metadata": {"labels": {"app": "test"}}, "spec": spec}, cluster.space)
    ready = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    if cluster.real:
        cluster.call("PATCH", POD.path(cluster.space, "test", "status"), {"status": ready}, MERGE)
    allowed = {"minAvailable": 1, "selector": {"matchLabels": {"app": "test"}}}
    cluster.make(BUDGET, "test", {"spec": allowed}, cluster.space)
    if cluster.real:
        wait_for(lambda: healthy(cluster) == 1)
    with pytest.raises(Refused) as refused:
        cluster.api.evict("test", cluster.space)
    assert (refused.value.status, refused.value.retry_after) == (429, None)
    cluster.api.merge(BUDGET, "test", {"spec": {"minAvailable": 0}}, cluster.space)
    if cluster.real:
        wait_for(lambda: allowed_now(cluster) == 1)
        cluster.api.evict("test", cluster.space)
    cluster.call(
        "DELETE", POD.path(cluster.space, "test"), {"kind": "DeleteOptions", "gracePeriodSeconds": 0}
    )


def healthy(cluster: Cluster) -> object:
    return cluster.api.get(BUDGET, "test", cluster.space).get("status", {}).get("currentHealthy")


def allowed_now(cluster: Cluster) -> object:
    return cluster.api.get(BUDGET, "test", cluster.space).get("status", {}).get("disruptionsAllowed")


def test_nodes_are_labelled_and_served(cluster: Cluster) -> None:
    """A round labels a node by its own word and makes its DaemonSet; after an update the next does."""
    name = cluster.node("one", status(OLD), **{GPU_LABEL: "true"})
    driver = cluster.driver()
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
    driver = cluster.driver()
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
    wait_for(lambda: cluster.api.get(NODE, name)["metadata"]["labels"].get(LABEL) == version, 30)


def versions(cluster: Cluster) -> Set[str]:
    found = (each for page in cluster.api.pages(DAEMONSET, cluster.space) for each in page.items)
    return {each["metadata"]["annotations"][LABEL] for each in found}
