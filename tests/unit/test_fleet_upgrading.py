"""A new driver, node by node, against an API server on loopback with a cluster living behind it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

import pytest

pytest.importorskip("lightkube", reason="the extra 'fleet' is for Python 3.11 and later")

from api_server import Fault, once
from fleet_rig import IMAGE, Rig, running, served, wait_for
from upgrade_sim import RELEASES, state_of
from upgrade_works import PLUGIN
from upgrade_world import CHANGES, NODES, SPACE

from nvdriver_build.fleet.names import UPGRADE

NEW: Dict[str, Any] = {"env": {CHANGES: "1"}}
EVENTS = "v1/events"


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with served(tmp_path) as made:
        with made.server.lock:
            made.world.works.plugin, made.world.works.wanted = True, 3
            made.world.works.budget(1)
            for name in made.world.machines:
                made.world.works.add(name)
        yield made


def up(rig: Rig) -> None:
    """The old driver is everywhere, and used."""
    with running(rig):
        wait_for(lambda: rig.ready(RELEASES[0].version) and len(rig.world.works.pods) == 6)


def upgrade(rig: Rig) -> Dict[str, Any]:
    """What the status says of it."""
    with rig.server.lock:
        found = rig.server.store.objects.get("v1/configmaps", {}).get((SPACE, "nvdriver-build-status"))
    return json.loads((found or {"data": {}})["data"].get("upgrade", "null")) or {}


def done(rig: Rig, value: str) -> bool:
    """Whether all nodes have this driver, ready, and are as they were."""
    with rig.server.lock:
        nodes = rig.server.store.list(NODES)
        left = [each for each in nodes if each["spec"].get("unschedulable") or state_of(each) is not None]
        paused = [each for each in nodes if each["metadata"]["labels"].get(PLUGIN) != "true"]
        ready = all(map(rig.world.driver_ready, rig.world.machines))
        return ready and not left and not paused and {pod.value for pod in rig.world.pods.values()} == {value}


def events(rig: Rig) -> List[str]:
    with rig.server.lock:
        return [each["reason"] for each in rig.server.store.list(EVENTS)]


def fleet(rig: Rig, *words: str) -> str:
    program = [sys.executable, "-m", "nvdriver_build", "fleet", *words, "--kubeconfig", str(rig.kubeconfig)]
    return subprocess.run(program, capture_output=True, text=True, timeout=60).stdout


@pytest.mark.once
def test_a_new_driver(rig: Rig) -> None:
    """One node after another is drained as budgets allow, its components paused, its driver replaced; what
    is in the way is told, and when it is done nothing is asked any more.
    """
    up(rig)
    rig.do(lambda world: world.works.budget(0))
    with running(rig, **NEW) as controller:
        wait_for(lambda: "PodDisruptionBudget" in json.dumps(upgrade(rig)))
        told = upgrade(rig)
        assert (told["nodes"], told["done"], told["waiting"]) == (3, 0, 2)
        assert [each["stage"] for each in told["in_progress"]] == ["draining"]
        shown = fleet(rig, "status")
        assert "upgrade: 0 of 3 nodes done, 2 waiting, 0 failed" in shown
        assert "(PodDisruptionBudget)" in shown
        rig.server.faults += [
            once("PATCH", "nodes", Fault(status=409)),
            once("PATCH", "nodes", Fault(status=500)),
            once("GET", "pods", Fault(cut=True)),
        ]
        rig.do(lambda world: world.works.budget(1))
        wait_for(lambda: done(rig, "1"))
        wait_for(lambda: not upgrade(rig))
        before = controller.count("list", "pods")
        rig.do(lambda world: world.store.merge(NODES, "", "node-0", {"metadata": {"labels": {"any": "x"}}}))
        assert controller.count("list", "pods") == before
    assert {"UpgradeStarted", "PodEvicted", "UpgradePaused", "UpgradeDrained", "UpgradeFinished"} <= set(
        events(rig)
    )


@pytest.mark.once
def test_a_driver_that_does_not_become_ready(rig: Rig) -> None:
    """No other node is begun at the budget; back to the old driver, the failed node is mended at once."""
    up(rig)
    limits = {"ready_seconds": 1, "max_failures": 1, "max_unavailable": "67%"}
    rig.do(lambda world: world.bad.add("2"))
    with running(rig, upgrade=limits, env={CHANGES: "2"}):
        wait_for(lambda: "UpgradeStopped" in json.dumps(upgrade(rig)))
        told = upgrade(rig)
        assert told["failed"]
        assert told["waiting"] >= 1
        wait_for(lambda: "UpgradeStopped" in events(rig))
    with running(rig, "two", upgrade=limits, env={CHANGES: "1"}):
        wait_for(lambda: done(rig, "1"))


@pytest.mark.parametrize(
    ("upgrade_", "notes", "code"),
    [
        ({"max_unavailable": 0}, None, "UpgradeOff"),
        ({}, {"nvidia.com/gpu-driver-upgrade-enabled": "true"}, "UpgradeElsewhere"),
    ],
)
def test_off(rig: Rig, upgrade_: Dict[str, Any], notes: Optional[Dict[str, str]], code: str) -> None:
    """Switched off, or where the GPU Operator has the nodes, all stays as it is; and why is told."""
    up(rig)
    with rig.server.lock:
        for name in rig.world.machines:
            rig.server.store.merge(NODES, "", name, {"metadata": {"annotations": notes or {}}})
    with running(rig, upgrade=upgrade_, **NEW):
        wait_for(lambda: code in json.dumps(upgrade(rig)))
    assert done(rig, "")
    assert UPGRADE not in json.dumps(rig.do(lambda world: world.store.list(NODES)))


def test_apply_replaces_no_driver_that_runs(rig: Rig) -> None:
    """It is one round, and would leave a node cordoned: it says who does it."""
    up(rig)
    settings = rig.folder / "settings.json"
    settings.write_text(json.dumps({"image": IMAGE, **NEW}))
    assert "fleet watch" in fleet(rig, "apply", "--settings", str(settings))
    assert done(rig, "")
    wait_for(lambda: upgrade(rig)["waiting"] == 3)
