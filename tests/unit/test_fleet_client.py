"""The API client against a server on loopback that speaks the wire protocol."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest

pytest.importorskip("lightkube", reason="the extra 'fleet' is not installed")

from api_server import ApiServer, Fault, once

from nvdriver_build.errors import ClusterError
from nvdriver_build.fleet.controller.api import Conflict, Event, Gone, Missing, Refused, Unreachable
from nvdriver_build.fleet.controller.client import PAGE, HttpApi, cluster_config
from nvdriver_build.fleet.controller.kinds import CONFIG_MAP, DAEMONSET, IMAGE_STREAM, LEASE, NODE, POD

SPACE = "gpu"


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as running:
        yield running


@pytest.fixture
def api(server: ApiServer, tmp_path: Path) -> Iterator[HttpApi]:
    made = HttpApi(cluster_config(server.kubeconfig(tmp_path / "config")))
    yield made
    made.close()


def node(name: str, **labels: str) -> Dict[str, Any]:
    return {"metadata": {"name": name, "labels": labels}}


def daemonset(name: str = "ds", **spec: Any) -> Dict[str, Any]:
    head = {"apiVersion": "apps/v1", "kind": "DaemonSet"}
    return {**head, "metadata": {"name": name, "namespace": SPACE}, "spec": spec}


def test_lists_in_pages(server: ApiServer, api: HttpApi) -> None:
    """A long list comes in pages, each object once."""
    for number in range(PAGE + 3):
        server.put("v1/nodes", node(f"node-{number}"))
    pages = list(api.pages(NODE))
    assert [len(page.items) for page in pages] == [PAGE, 3]
    assert len({each["metadata"]["name"] for page in pages for each in page.items}) == PAGE + 3
    assert pages[-1].version == str(server.store.version)


def test_list_by_label(server: ApiServer, api: HttpApi) -> None:
    """A label selector chooses."""
    server.put("v1/nodes", node("one", gpu="true"))
    server.put("v1/nodes", node("two"))
    (page,) = api.pages(NODE, labels="gpu=true")
    assert [each["metadata"]["name"] for each in page.items] == ["one"]


def collect(api: HttpApi, version: str, count: int) -> List[Event]:
    found = []
    for event in api.watch(NODE, version):
        if event.type != "BOOKMARK":
            found.append(event)
        if len(found) == count:
            break
    return found


def test_watch_tells_what_changes(server: ApiServer, api: HttpApi) -> None:
    """A watch goes on where the list ended, whether the change was before or after it was opened."""
    server.put("v1/nodes", node("one"))
    version = list(api.pages(NODE))[-1].version
    server.put("v1/nodes", node("two"))
    timer = threading.Timer(0.2, server.remove, ("v1/nodes", "", "one"))
    timer.start()
    assert [(event.type, event.object["metadata"]["name"]) for event in collect(api, version, 2)] == [
        ("ADDED", "two"),
        ("DELETED", "one"),
    ]
    timer.join()


def test_bookmarks(server: ApiServer, api: HttpApi) -> None:
    """Where nothing of a kind changes, bookmarks tell how far the watch is."""
    server.put("v1/nodes", node("one"))
    server.put("v1/pods", {"metadata": {"name": "pod", "namespace": SPACE}})
    event = next(iter(api.watch(NODE, "2")))
    assert (event.type, event.object["metadata"]["resourceVersion"]) == ("BOOKMARK", "3")


def test_gone(server: ApiServer, api: HttpApi) -> None:
    """A version that is too old is Gone, told as an event and as a status."""
    server.put("v1/nodes", node("one"))
    server.compact()
    with pytest.raises(Gone, match="too old resource version"):
        next(iter(api.watch(NODE, "1")))
    server.faults.append(once("WATCH", "nodes", Fault(status=410)))
    with pytest.raises(Gone):
        next(iter(api.watch(NODE, "9")))


def test_watch_that_breaks(server: ApiServer, api: HttpApi) -> None:
    """A connection that breaks in the midst of a watch is told as that."""
    timer = threading.Timer(0.2, server.drop_watches)
    timer.start()
    with pytest.raises(Unreachable):
        for _ in api.watch(NODE, "1"):
            pass
    timer.join()


def test_apply_creates_changes_and_takes_back(server: ApiServer, api: HttpApi) -> None:
    """Apply creates, changes, and takes away what we applied before; the same again changes nothing."""
    first = api.apply(DAEMONSET, daemonset(a=1, b=2))
    assert first["metadata"]["generation"] == 1
    second = api.apply(DAEMONSET, daemonset(a=1))
    assert second["spec"] == {"a": 1}
    assert second["metadata"]["generation"] == 2
    assert api.apply(DAEMONSET, daemonset(a=1)) == second
    assert api.apply(DAEMONSET, daemonset(a=3), dry_run=True)["spec"] == {"a": 3}
    assert api.get(DAEMONSET, "ds", SPACE) == second


def test_apply_conflicts_by_manager(server: ApiServer, api: HttpApi, tmp_path: Path) -> None:
    """What another field manager applied is a conflict that names it, until it is forced."""
    other = HttpApi(cluster_config(server.kubeconfig(tmp_path / "other")), manager="argocd")
    other.apply(DAEMONSET, daemonset(a=1))
    other.close()
    with pytest.raises(Conflict, match=r'with "argocd": - \.metadata - \.spec'):
        api.apply(DAEMONSET, daemonset(a=2))
    assert api.apply(DAEMONSET, daemonset(a=2), force=True)["spec"] == {"a": 2}


def test_merge_patch_of_labels(server: ApiServer, api: HttpApi) -> None:
    """A merge patch sets one label and takes one away; the others stay."""
    server.put("v1/nodes", node("one", keep="1", drop="2"))
    done = api.merge(NODE, "one", {"metadata": {"labels": {"ours": "3", "drop": None}}})
    assert done["metadata"]["labels"] == {"keep": "1", "ours": "3"}


def test_stale_writes_are_conflicts(server: ApiServer, api: HttpApi) -> None:
    """A create of what is there, an update and a delete of an old version are conflicts."""
    lease = {"metadata": {"name": "lease", "namespace": SPACE}, "spec": {"holderIdentity": "a"}}
    old = api.create(LEASE, lease)
    with pytest.raises(Conflict):
        api.create(LEASE, lease)
    api.replace(LEASE, {**old, "spec": {"holderIdentity": "b"}})
    with pytest.raises(Conflict):
        api.replace(LEASE, {**old, "spec": {"holderIdentity": "c"}})
    with pytest.raises(Conflict):
        api.delete(LEASE, "lease", SPACE, old)
    api.delete(LEASE, "lease", SPACE, api.get(LEASE, "lease", SPACE))
    with pytest.raises(Missing):
        api.get(LEASE, "lease", SPACE)


def test_eviction_and_budgets(server: ApiServer, api: HttpApi) -> None:
    """An eviction that a PodDisruptionBudget forbids is 429; one that it allows takes the pod."""
    server.put("v1/pods", {"metadata": {"name": "pod", "namespace": SPACE, "labels": {"app": "gpu"}}})
    budget: Dict[str, Any] = {"metadata": {"name": "pdb", "namespace": SPACE}}
    budget["spec"] = {"selector": {"matchLabels": {"app": "gpu"}}}
    server.put("policy/v1/poddisruptionbudgets", budget)
    with pytest.raises(Refused) as refused:
        api.evict("pod", SPACE)
    assert (refused.value.status, refused.value.retry_after) == (429, None)
    server.put("policy/v1/poddisruptionbudgets", {**budget, "status": {"disruptionsAllowed": 1}})
    api.evict("pod", SPACE)
    with pytest.raises(Missing):
        api.get(POD, "pod", SPACE)


def test_what_a_server_says_of_faults(server: ApiServer, api: HttpApi) -> None:
    """Status, message and Retry-After of an error are kept; a broken connection is Unreachable."""
    server.faults.append(once("GET", "nodes", Fault(status=429, retry_after=7)))
    with pytest.raises(Refused) as refused:
        list(api.pages(NODE))
    assert (refused.value.status, refused.value.retry_after) == (429, 7.0)
    server.faults.append(once("GET", "configmaps", Fault(cut=True)))
    with pytest.raises(Unreachable):
        api.get(CONFIG_MAP, "one", SPACE)


def test_a_kind_that_is_not_there_for_who_may_not_read_it(server: ApiServer, api: HttpApi) -> None:
    """403 comes before 404: discovery tells whether the kind is there at all."""
    server.faults.append(once("GET", "imagestreams", Fault(status=403), 2))
    with pytest.raises(Refused) as refused:
        list(api.pages(IMAGE_STREAM, "openshift"))
    assert refused.value.status == 403
    server.unknown += ["imagestreams", "imagestreamtags"]
    with pytest.raises(Missing, match="there are no imagestreams here"):
        list(api.pages(IMAGE_STREAM, "openshift"))


def test_every_request_is_counted(server: ApiServer, tmp_path: Path) -> None:
    """Each request is told to the counter with verb, kind and status."""
    told: List[Any] = []
    config = cluster_config(server.kubeconfig(tmp_path / "config"))
    api = HttpApi(config, lambda verb, kind, status: told.append((verb, kind.plural, status)))
    list(api.pages(NODE))
    with pytest.raises(Missing):
        api.get(NODE, "none")
    assert told == [("list", "nodes", 200), ("get", "nodes", 404)]
    api.close()


@pytest.mark.parametrize(
    "text", ["", "[]", "clusters: 7", "{", "a: b", "current-context: x\nclusters: []\ncontexts: []"]
)
def test_unusable_kubeconfig(tmp_path: Path, text: str) -> None:
    """A file that is no kubeconfig is told as that, with its name."""
    (tmp_path / "config").write_text(text)
    with pytest.raises(ClusterError, match="no usable kubeconfig"):
        cluster_config(tmp_path / "config")


def test_no_cluster_at_all() -> None:
    """Outside of a cluster and without a kubeconfig the error says what to give."""
    with pytest.raises(ClusterError) as raised:
        cluster_config(None)
    assert "--kubeconfig" in str(raised.value.hint)


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    """A server that is down is Unreachable, with a hint."""
    with ApiServer() as server:
        config = cluster_config(server.kubeconfig(tmp_path / "config"))
    api = HttpApi(config)
    with pytest.raises(Unreachable):
        list(api.pages(NODE))
    api.close()
