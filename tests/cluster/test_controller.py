"""The commands of `fleet` against a real cluster's API and controllers; only nodes are made up."""

from __future__ import annotations

import os
import shlex
import subprocess
from typing import Any, Set

import pytest
from cluster_fleet import Fleet
from cluster_nodes import Kubelets
from cluster_objects import V1, V2
from cluster_programs import fleet
from cluster_rig import NAMESPACE, Cluster, wait_for

from nvdriver_build.fleet.controller.api import Unreachable
from nvdriver_build.fleet.controller.kinds import (
    DAEMONSET,
    EVENT,
)
from nvdriver_build.fleet.names import LABEL
from nvdriver_build.fleet.versions import object_name

RESTART = os.environ.get("CLUSTER_RESTART")
"""A command that restarts the API server."""


def test_an_upgrade(there: Fleet) -> None:
    """With the rendered rights and no others the controller takes nodes from one version to the next."""
    account = there.cluster.as_account(f"{there.driver.name}-fleet", there.folder)
    with Kubelets(there.cluster) as kubelets, there.watch(kubeconfig=account) as watch:
        nodes = [kubelets.add(name, V1, **{"nvdriver-test": there.cluster.name}) for name in ("one", "two")]
        wait_for(lambda: there.ready(V1) == 2)
        there.offer(V1, V2)
        wait_for(lambda: there.jobs() == [True])
        wait_for(lambda: there.states() == {V1: "can build", V2: "prebuilt"})
        assert constraints(kubelets) in ({f"{there.driver.name}-driver"}, {None})
        kubelets.reboot(nodes[0], V2)
        wait_for(lambda: (there.ready(V1), there.ready(V2)) == (1, 1))
        assert [there.label(node) for node in nodes] == [V2, V1]
        kubelets.reboot(nodes[1], V2)
        wait_for(lambda: there.ready(V2) == 2 and not there.daemonset(V1))
        requests = watch.requests()
    print(f"requests of an upgrade of 2 nodes: {requests.total()}, {dict(requests)}")
    assert not [what for what in requests if what.endswith((" 403", " 422", " 500"))], requests
    lists = {what: count for what, count in requests.items() if what.startswith("list")}
    # DaemonSets of ours and, by two labels, of others; nodes maybe again; pods before a DaemonSet goes
    assert {what: count for what, count in lists.items() if count > 3 and "pods" not in what} == {}, requests
    events = there.cluster.api.pages(EVENT, there.cluster.space)
    told = {each["reason"] for page in events for each in page.items}
    assert {"Created", "Removed", "PrebuildWanted"} <= told


def constraints(kubelets: Kubelets) -> Set[Any]:
    """By which SecurityContextConstraints OpenShift has admitted the driver's pods; None elsewhere."""
    drivers = [each for each in kubelets.pods() if LABEL in each["metadata"]["labels"]]
    return {each["metadata"]["annotations"].get("openshift.io/scc") for each in drivers}


def test_apply_and_status(there: Fleet) -> None:
    """`plan --diff` shows what `apply` does; again it does nothing; what others changed is taken back."""
    kubeconfig, told = there.cluster.kubeconfig, ("--settings", there.settings)
    name, here = object_name(there.driver.name, V1), there.cluster.space
    where = ("--name", there.driver.name, "--namespace", here)
    with Kubelets(there.cluster) as kubelets:
        node = kubelets.add("one", V1)
        assert "nobody has planned" in fleet(kubeconfig, "status", *where, code=20)
        shown = fleet(kubeconfig, "plan", "--diff", *told)
        assert f"+++ DaemonSet/{name} (wanted)" in shown
        assert f"Node/{node}: label {V1}" in shown
        fleet(kubeconfig, "apply", *told)
        wait_for(lambda: there.ready(V1) == 1)
        assert fleet(kubeconfig, "plan", "--diff", *told) == ""
        before = there.cluster.api.get(DAEMONSET, name, here)["metadata"]
        change = {"metadata": {"labels": {"theirs": "1"}}, "spec": {"template": {"spec": {"hostPID": False}}}}
        there.cluster.as_manager("somebody").merge(DAEMONSET, name, change, here)
        assert "+      hostPID: true" in fleet(kubeconfig, "plan", "--diff", *told)
        fleet(kubeconfig, "apply", *told)
        after = there.cluster.api.get(DAEMONSET, name, here)
        assert after["spec"]["template"]["spec"]["hostPID"] is True
        assert after["metadata"]["labels"]["theirs"] == "1"
        assert after["metadata"]["generation"] == before["generation"] + 2
        fleet(kubeconfig, "apply", *told)
        last = there.cluster.api.get(DAEMONSET, name, here)
        assert last["metadata"]["generation"] == after["metadata"]["generation"]
        (group,) = there.status()["groups"]
        assert (group["nodes"], group["ready"], group["desired"]) == (1, 1, 1)


def test_two_controllers(there: Fleet) -> None:
    """One leads; when it is killed the other one does once the Lease has lapsed, when it ends at once."""
    with Kubelets(there.cluster) as kubelets:
        node = kubelets.add("one", V1)
        with there.watch("first") as first:
            wait_for(first.leads)
            with there.watch("second") as second:
                wait_for(lambda: there.label(node) == V1)
                assert not second.leads()
                first.kill()
                kubelets.reboot(node, V2)
                wait_for(lambda: there.label(node) == V2)
                assert second.leads()
                with there.watch("third") as third:
                    second.end()
                    kubelets.reboot(node, V1)
                    wait_for(lambda: there.label(node) == V1, 10)
                    assert third.leads()


@pytest.mark.skipif(RESTART is None, reason="CLUSTER_RESTART is no command that restarts the API server")
def test_a_server_that_restarts(there: Fleet) -> None:
    """A controller outlives restarts of the API server: it goes on where it was, and keeps its Lease."""
    with Kubelets(there.cluster) as kubelets, there.watch() as watch:
        node = kubelets.add("one", V1)
        wait_for(lambda: there.ready(V1) == 1)
        for version in (V2, V1):
            subprocess.run(shlex.split(str(RESTART)), check=True, timeout=120)
            wait_for(lambda: is_up(there.cluster))
            kubelets.reboot(node, version)
            wait_for(lambda version=version: there.label(node) == version)  # type: ignore[misc]
        assert watch.process.poll() is None
        print(f"requests: {dict(watch.requests())}")


def is_up(cluster: Cluster) -> bool:
    try:
        cluster.api.get(NAMESPACE, cluster.space)
    except Unreachable:
        return False
    return True
