"""A new driver on a real cluster: node by node, with real evictions and the rendered rights."""

from __future__ import annotations

from typing import Any, Dict, Set

from attrs import evolve
from cluster_fleet import Fleet
from cluster_nodes import Kubelets
from cluster_objects import V1
from cluster_programs import settings
from cluster_rig import wait_for

from nvdriver_build.fleet.controller.kinds import NODE, Kind
from nvdriver_build.fleet.names import LABEL

REPLICAS = Kind("apps", "v1", "ReplicaSet", "replicasets")
BUDGET = Kind("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets")
APP = {"app": "training"}
NEW = "example.com/driver@sha256:1"


def workload(there: Fleet) -> None:
    """A pod that uses a GPU, and a budget that keeps it."""
    use = {"name": "one", "image": "example.com/none", "resources": {"limits": {"nvidia.com/gpu": "1"}}}
    template: Dict[str, Any] = {"metadata": {"labels": APP}, "spec": {"containers": [use]}}
    chosen = {"matchLabels": APP}
    spec = {"replicas": 1, "selector": chosen, "template": template}
    there.cluster.make(REPLICAS, "training", {"spec": spec}, there.cluster.space)
    budget = {"spec": {"minAvailable": 1, "selector": chosen}}
    there.cluster.make(BUDGET, "training", budget, there.cluster.space)


def images(kubelets: Kubelets) -> Set[str]:
    """Of the drivers that are there."""
    drivers = [each for each in kubelets.pods() if LABEL in each["metadata"]["labels"]]
    return {each["spec"]["containers"][0]["image"] for each in drivers}


def cordoned(there: Fleet, node: str) -> bool:
    return bool(there.cluster.api.get(NODE, node)["spec"].get("unschedulable"))


def healthy(there: Fleet) -> Any:
    """How many pods the budget counts."""
    found = there.cluster.api.get(BUDGET, "training", there.cluster.space)
    return found.get("status", {}).get("currentHealthy")


def test_a_new_driver(there: Fleet) -> None:
    """A node whose pods a budget keeps is cordoned and waits; then each node gets the new driver."""
    account = there.cluster.as_account(f"{there.driver.name}-fleet", there.folder)
    with Kubelets(there.cluster) as kubelets:
        nodes = [kubelets.add(name, V1) for name in ("one", "two")]
        with there.watch("old", account):
            wait_for(lambda: there.ready(V1) == 2)
        workload(there)
        wait_for(lambda: any(APP.items() <= each["metadata"]["labels"].items() for each in kubelets.pods()))
        wait_for(lambda: healthy(there) == 1)
        there.settings = settings(evolve(there.driver, image=NEW), there.folder / "new.yaml")
        with there.watch("new", account) as watch:
            wait_for(lambda: watch.requests()["evict pods 429"] > 0)
            assert cordoned(there, nodes[0])
            assert not cordoned(there, nodes[1])
            there.cluster.api.delete(BUDGET, "training", there.cluster.space)
            wait_for(lambda: images(kubelets) == {NEW} and there.ready(V1) == 2, 90)
            wait_for(lambda: not any(cordoned(there, node) for node in nodes))
            requests = watch.requests()
        print(f"requests of a new driver on 2 nodes: {requests.total()}, {dict(requests)}")
        assert not [what for what in requests if what.endswith((" 403", " 422", " 500"))], requests
