"""What a new driver's rollout relies on of a Kubernetes API: the same on loopback and on a real server."""

from __future__ import annotations

import pytest
from cluster_rig import Cluster

from nvdriver_build.fleet.controller.api import Conflict
from nvdriver_build.fleet.controller.kinds import NODE, POD
from nvdriver_build.fleet.names import UPGRADE


def test_a_patch_is_of_the_version_that_was_seen(cluster: Cluster) -> None:
    """Cordon, label and annotation come by one patch; a patch of an older version is a conflict; null takes
    away.
    """
    name = cluster.node("one", {})
    seen = cluster.api.get(NODE, name)["metadata"]["resourceVersion"]
    mark = {"annotations": {UPGRADE: "{}"}, "labels": {UPGRADE: "draining"}}
    cordon = {"metadata": {"resourceVersion": seen, **mark}, "spec": {"unschedulable": True}}
    after = cluster.api.merge(NODE, name, cordon)
    assert after["spec"]["unschedulable"] is True
    with pytest.raises(Conflict):
        cluster.api.merge(NODE, name, cordon)
    found = [each for page in cluster.api.pages(NODE, labels=UPGRADE) for each in page.items]
    assert name in [each["metadata"]["name"] for each in found]
    gone = {"annotations": {UPGRADE: None}, "labels": {UPGRADE: None}}
    last = cluster.api.merge(NODE, name, {"metadata": gone, "spec": {"unschedulable": None}})
    assert not last["spec"].get("unschedulable")
    assert UPGRADE not in {**last["metadata"].get("labels", {}), **last["metadata"].get("annotations", {})}


def test_pods_are_found_by_node_and_evicted_by_uid(cluster: Cluster) -> None:
    """A field selector chooses; the eviction of a pod that is another one by now is a conflict."""
    containers = [{"name": "one", "image": "example.com/none"}]
    made = cluster.make(POD, "test", {"spec": {"containers": containers}}, cluster.space)

    def names(fields: str) -> list[str]:
        pages = cluster.api.pages(POD, cluster.space, fields=fields)
        return [each["metadata"]["name"] for page in pages for each in page.items]

    assert names("metadata.name=test") == ["test"]
    assert names("spec.nodeName=nvdriver-test-nowhere") == []
    with pytest.raises(Conflict):
        cluster.api.evict("test", cluster.space, "another")
    cluster.api.evict("test", cluster.space, made["metadata"]["uid"])
