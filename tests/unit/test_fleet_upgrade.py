"""A new driver, node by node: what is decided, by facts, settings and the time alone."""

from __future__ import annotations

import datetime
from typing import Any, Dict, List, Optional, Tuple

import pytest
from attrs import evolve, frozen
from hypothesis import given, strategies

from nvdriver_build.errors import UsageError
from nvdriver_build.fleet.controller.view import pod as driver_pod
from nvdriver_build.fleet.facts import Node
from nvdriver_build.fleet.inventory import node_facts
from nvdriver_build.fleet.manifests import Driver, daemonset, driver_settings
from nvdriver_build.fleet.names import DRIVER_NOTE, TEMPLATE_NOTE, UPGRADE
from nvdriver_build.fleet.plan import DaemonSetWanted
from nvdriver_build.fleet.upgrade import (
    DRAINING,
    FAILED,
    REPLACING,
    Decision,
    Delete,
    Evict,
    Goal,
    NodeNow,
    Patch,
    Settings,
    State,
    Wait,
    Workload,
    begin,
    decide,
    in_use,
    node_now,
    read_state,
    rollout,
    survey,
    upgrade_settings,
    with_pods,
)
from nvdriver_build.fleet.upgrade.node import PAUSED

NOW = datetime.datetime(2026, 11, 26, 5, tzinfo=datetime.timezone.utc)
VERSION = "9.6.20260616-0"
GOAL = Goal(VERSION, "new")
SETTINGS = Settings()
DEPLOY = "nvidia.com/gpu.deploy."
GPU = {"containers": [{"resources": {"limits": {"nvidia.com/gpu": 1}}}]}
RUNS = {"state": {"running": {"startedAt": "2026-11-26T05:00:00Z"}}}
PLUGIN = {
    "metadata": {"ownerReferences": [{"kind": "DaemonSet", "controller": True}]},
    "spec": {"nodeSelector": {f"{DEPLOY}device-plugin": "true"}},
}


@frozen
class Pod:
    """A driver's pod."""

    name: str = "driver"
    driver: Optional[str] = "old"
    ready: bool = True
    ending: bool = False
    version: Optional[str] = VERSION
    late: bool = False
    """Whether its driver is up and its probes time out."""

    @property
    def up(self) -> bool:
        """Ready or late."""
        return self.ready or self.late


def state(stage: str = DRAINING, age: float = 0, **more: Any) -> State:
    return State(stage, more.pop("driver", "new"), NOW - datetime.timedelta(seconds=age), **more)


def facts(name: str = "a", **more: Any) -> Node:
    return Node(name, VERSION, "5.14.0", "x86_64", gpu=True, **{"ready": True, **more})


def now(stage: Optional[State] = None, *drivers: Pod, **more: Any) -> NodeNow:
    node = more.pop("node", facts(schedulable=stage is None or not stage.cordoned))
    return NodeNow(node, stage, drivers=drivers or (Pod(),), **more)


def step(node: NodeNow, goal: Goal = GOAL) -> Decision:
    return decide(node, goal, SETTINGS, NOW)


def patch(node: NodeNow, goal: Goal = GOAL) -> Patch:
    found = step(node, goal)
    assert isinstance(found, Patch), found
    return found


def work(name: str = "job", **more: Any) -> Workload:
    return Workload(name, "ml", f"uid-{name}", **more)


def test_settings() -> None:
    """Numbers and shares; what is not known, or cannot be, is refused with the near name or what it takes."""
    assert [upgrade_settings({"max_unavailable": each}).limit(40) for each in (0, 3, "10%", "1%", "0%")] == [
        0, 3, 4, 1, 0,
    ]  # fmt: skip
    for wrong, hint in (
        ({"max_unavailble": 1}, "did you mean max_unavailable?"),
        ({"max_unavailable": "110%"}, "it takes a number of nodes, or a share such as 10%"),
        ({"max_unavailable": True}, "it takes a number of nodes, or a share such as 10%"),
        ({"drain_seconds": 0}, "it takes a whole number up to 604800"),
    ):
        with pytest.raises(UsageError) as refused:
            driver_settings({"image": "driver", "upgrade": wrong})
        assert refused.value.hint == hint


def test_the_settings_change_no_pod_and_a_toolkit_no_driver() -> None:
    """Neither is a reason to replace a driver that runs; an image is."""

    def notes(driver: Driver, toolkit: Optional[str] = "dtk") -> Tuple[str, str]:
        made = daemonset(DaemonSetWanted(VERSION, "name", toolkit), driver, {})
        found = made["spec"]["template"]["metadata"]["annotations"]
        return found[DRIVER_NOTE], found[TEMPLATE_NOTE]

    plain = notes(Driver("image"))
    assert notes(Driver("image", upgrade={"max_unavailable": 2})) == plain
    late = notes(Driver("image"), None)
    assert (late[0] == plain[0], late[1] == plain[1]) == (True, False)
    assert notes(Driver("other"))[0] != plain[0]


def test_state_survives_the_annotation() -> None:
    """What is written is read again, bounded; anything else is none of ours."""
    for each in (state(), state(FAILED, 77, cordoned=False, why='it\'s "late"\n' * 9)):
        read = read_state(each.text())
        assert read is not None
        assert evolve(read, why="") == evolve(each, why="")
    assert read_state(state(why="x" * 5000).text()) is not None
    for junk in (None, "", "{", "[]", '"x"', '{"stage": "draining"}', '{"stage": 1, "since": 2}', "null"):
        assert read_state(junk) is None


def test_the_way_of_a_node() -> None:
    """Cordoned, drained, components paused, those of DRA last, replaced, given back."""
    first = begin(now(), GOAL, NOW)
    assert isinstance(first, Patch)
    assert (first.state, first.unschedulable) == (state(), True)
    evict = step(now(state(), workloads=(work(), work("bare", stays="no controller"))))
    assert evict == Evict((work(),), (work("bare", stays="no controller"),))
    on = {f"{DEPLOY}device-plugin": "true", f"{DEPLOY}dcgm": "false", f"{DEPLOY}dra-driver": "true"}
    paused = patch(now(state(), components=on))
    assert paused.labels == {f"{DEPLOY}device-plugin": PAUSED}
    on.update(paused.labels)
    assert isinstance(step(now(state(), components=on, operands={f"{DEPLOY}device-plugin": ["p"]})), Wait)
    assert patch(now(state(), components=on)).labels == {f"{DEPLOY}dra-driver": PAUSED}
    on[f"{DEPLOY}dra-driver"] = PAUSED
    assert patch(now(state(age=60), components=on)).state == state(REPLACING)
    assert step(now(state(REPLACING), components=on)) == Delete(Pod())
    assert isinstance(step(now(state(REPLACING), Pod(driver="new", ready=False), components=on)), Wait)
    last = patch(now(state(REPLACING), Pod(driver="new"), components=on))
    assert (last.state, last.unschedulable) == (None, False)
    assert last.labels == {f"{DEPLOY}device-plugin": "true", f"{DEPLOY}dra-driver": "true"}


@pytest.mark.parametrize(
    "node",
    [
        facts(schedulable=False),
        facts(ready=None),
        facts(updating=True),
        facts(kept_out="nvidia.com/gpu-driver-upgrade-state=upgrade-done"),
    ],
)
def test_what_is_not_begun(node: Node) -> None:
    """A node that is cordoned, down, of the Machine Config Operator or of the GPU Operator stays as it is."""
    assert isinstance(begin(now(node=node), GOAL, NOW), Wait)
    found = survey([node], {"a": [Pod()]}, {VERSION: ("new", True)})
    assert (found.ready, found.waiting) == ((), 1)


def test_a_node_that_is_current_is_not_begun() -> None:
    """The view may be behind: what the API says of the node counts."""
    assert isinstance(begin(now(None, Pod(driver="new")), GOAL, NOW), Wait)
    assert isinstance(begin(now(None, Pod(ending=True)), GOAL, NOW), Wait)
    assert isinstance(begin(now(state()), GOAL, NOW), Wait)


def test_drained_too_late() -> None:
    """The node is given back with its old driver; what was in the way is told."""
    failed = patch(now(state(age=1801, why="ml/job (PodDisruptionBudget)"), workloads=(work(),)))
    assert failed.state is not None
    assert (failed.state.stage, failed.state.cordoned, failed.unschedulable) == (FAILED, False, False)
    assert failed.state.why == "not drained in time: ml/job (PodDisruptionBudget)"
    on = {f"{DEPLOY}dcgm": PAUSED}
    late = state(age=1801, why="pods of the GPU Operator: dcgm-x")
    left = patch(now(late, components=on, operands={f"{DEPLOY}dcgm": ["dcgm-x"]}))
    assert left.labels == {f"{DEPLOY}dcgm": "true"}
    assert left.state is not None and "dcgm-x" in left.state.why


def test_ready_too_late() -> None:
    """The node stays cordoned; once its driver is ready after all, it is done."""
    failed = patch(now(state(REPLACING, 1801), Pod(driver="new", ready=False))).state
    assert failed is not None
    assert (failed.stage, failed.cordoned) == (FAILED, True)
    assert isinstance(step(now(failed, Pod(driver="new", ready=False))), Wait)
    assert patch(now(failed, Pod(driver="new"))).unschedulable is False
    assert patch(now(failed, Pod())).state == state(REPLACING)


def test_other_settings() -> None:
    """A node goes on to the driver that is wanted now; back to the old one, it is done at once."""
    newer = evolve(GOAL, driver="newer")
    assert patch(now(state(DRAINING, 9)), newer).state == state(driver="newer")
    assert patch(now(state(REPLACING, 9), Pod(driver="new", ready=False)), newer).state == state(
        REPLACING, driver="newer"
    )
    assert patch(now(state(FAILED, 9), Pod(driver="new", ready=False)), newer).state == state(
        REPLACING, driver="newer"
    )
    assert patch(now(state(FAILED, 9, cordoned=False)), newer).state is None
    back = patch(now(state(DRAINING, 9)), evolve(GOAL, driver="old"))
    assert (back.state, back.unschedulable) == (None, False)


def test_what_is_held() -> None:
    """Switched off, or taken by the GPU Operator: an old driver goes on; where there is none, it comes."""
    held = evolve(GOAL, hold="it has another master")
    for stage in (DRAINING, REPLACING):
        assert patch(now(state(stage)), held).code == "UpgradeGivenBack"
    assert step(now(state(REPLACING), Pod(driver="new", ready=False)), held) == Wait()
    assert patch(now(state(REPLACING), Pod(driver="new")), held).code == "UpgradeFinished"


def test_what_is_taken_from_us() -> None:
    """Without the annotation, or where no driver belongs any more, nothing of ours stays but a cordon that
    may be a person's.
    """
    forgotten = patch(now(None, components={f"{DEPLOY}dcgm": PAUSED}, node=facts(schedulable=False)))
    assert (forgotten.state, forgotten.unschedulable, forgotten.labels) == (
        None, None, {f"{DEPLOY}dcgm": "true"},
    )  # fmt: skip
    assert patch(now(state()), Goal()).unschedulable is False


def test_while_the_machine_config_operator_works() -> None:
    """Nothing is done to the node, nor to its cordon, which may be the operator's."""
    node = facts(updating=True, schedulable=False)
    assert isinstance(step(now(state(age=9999), node=node, workloads=(work(),))), Wait)


def test_something_uses_the_driver_again() -> None:
    """A pod that came past the cordon is asked to leave before the driver goes."""
    again = patch(now(state(REPLACING, 50), workloads=(work(),)))
    assert again.state == state(DRAINING, 50)


def pod(name: str, **spec: Any) -> Dict[str, Any]:
    owners = [{"kind": spec.pop("owner", "ReplicaSet"), "controller": True}]
    metadata = {"name": name, "namespace": "ml", "uid": name, "ownerReferences": owners}
    return {"metadata": metadata, "spec": spec, "status": {"phase": spec.pop("phase", "Running")}}


def test_which_pods_count() -> None:
    """Those that ask for nvidia.com/* in any container, or by a claim; components go another way."""
    asks = [{"resources": {"limits": {"nvidia.com/mig-1g.5gb": "1"}}}]
    bare = pod("bare", containers=asks)
    del bare["metadata"]["ownerReferences"]
    mirror = pod("mirror", containers=asks)
    mirror["metadata"]["annotations"] = {"kubernetes.io/config.mirror": "x"}
    pods = [
        pod("plain", containers=[{"resources": {"limits": {"cpu": "1"}}}]),
        pod("done", containers=asks, phase="Succeeded"),
        pod("limits", containers=asks),
        pod("init", initContainers=[{"resources": {"requests": {"nvidia.com/gpu": 1}}}], containers=[{}]),
        pod("claim", resourceClaims=[{"name": "gpu"}]),
        pod("agent", containers=asks, owner="DaemonSet"),
        pod("plugin", owner="DaemonSet", nodeSelector={f"{DEPLOY}device-plugin": "true"}, containers=asks),
        bare,
        mirror,
        {"metadata": None, "spec": {"containers": "junk"}},
    ]
    labels = {f"{DEPLOY}device-plugin": "true", f"{DEPLOY}driver": "true"}
    node = node_now({"metadata": {"name": "a", "labels": labels}})
    assert node is not None
    found = with_pods(node, pods, ())
    assert found is not None
    assert {each.name: each.stays for each in found.workloads} == {
        "agent": "of a DaemonSet",
        "bare": "no controller would start it anew",
        "claim": None,
        "init": None,
        "limits": None,
        "mirror": "a static pod",
    }
    assert found.components == {f"{DEPLOY}device-plugin": "true"}
    assert found.operands == {f"{DEPLOY}device-plugin": ["plugin"]}


@pytest.mark.parametrize(
    ("labels", "notes", "kept"),
    [
        ({}, {}, None),
        (
            {"nvidia.com/gpu-driver-upgrade-state": "upgrade-done"},
            {},
            "gpu-driver-upgrade-state=upgrade-done",
        ),
        ({"nvidia.com/gpu-driver-upgrade-state": ""}, {}, None),
        ({}, {"nvidia.com/gpu-driver-upgrade-enabled": "true"}, "gpu-driver-upgrade-enabled=true"),
        ({}, {"nvidia.com/gpu-driver-upgrade-enabled": "false"}, None),
        ({"nvidia.com/gpu-driver-upgrade.skip": "true"}, {}, "gpu-driver-upgrade.skip=true"),
        ({"nvidia.com/gpu-driver-upgrade.skip": "false"}, {}, None),
    ],
)
def test_who_owns_a_node(labels: Dict[str, str], notes: Dict[str, str], kept: Optional[str]) -> None:
    """The GPU Operator's upgrade controller, by its label or annotation; or nobody, by a person's label."""
    found = node_facts({"metadata": {"name": "a", "labels": labels, "annotations": notes}})
    assert found is not None
    assert found.kept_out == (f"nvidia.com/{kept}" if kept else None)
    assert found.upgrade is None
    marked = node_facts({"metadata": {"name": "a", "labels": {UPGRADE: "failed"}}})
    assert marked is not None
    assert marked.upgrade == ""


def many(count: int, **pods: List[Pod]) -> Any:
    nodes = [facts(f"n{number}") for number in range(count)]
    return survey(
        nodes, {each.name: pods.get(each.name, [Pod()]) for each in nodes}, {VERSION: ("new", True)}
    )


def test_each_node_is_tried_before_it_is_too_late() -> None:
    """Where many have their turns, a time limit may be over at the first look: what is there is evicted."""
    assert isinstance(step(now(state(age=1801), workloads=(work(),))), Evict)
    on = {f"{DEPLOY}dcgm": "true"}
    assert patch(now(state(age=1801), components=on)).code == "UpgradePaused"


def test_nodes_whose_modules_have_still_to_be_built() -> None:
    """None of them is begun, and it is told; others are."""
    drivers, nodes = {VERSION: ("new", True)}, [facts("a"), facts("b")]
    found = survey(nodes, {"a": [Pod()], "b": [Pod()]}, drivers, {"a"})
    assert (found.ready, found.waiting) == (("b",), 2)
    assert [each.code for each in found.reasons] == ["UpgradeUnbuilt"]


@pytest.mark.parametrize(
    ("pod", "used"),
    [
        ({"status": {"phase": "Running"}}, False),
        ({"spec": GPU, "status": {"phase": "Running"}}, True),
        ({"spec": GPU, "status": {"phase": "Pending"}}, False),
        ({"spec": GPU, "status": {"phase": "Pending", "initContainerStatuses": [RUNS]}}, True),
        ({"spec": GPU, "status": {"phase": "Succeeded"}}, False),
        ({**PLUGIN, "status": {"phase": "Running"}}, True),
        ({**PLUGIN, "status": {"phase": "Pending", "initContainerStatuses": [RUNS]}}, False),
    ],
    ids=["no GPU", "job", "not yet", "init container", "ended", "component", "component that waits"],
)
def test_what_may_hold_a_driver(pod: Dict[str, Any], used: bool) -> None:
    """What asks for a GPU and runs; of the GPU Operator's components only those that wait for no driver."""
    assert in_use([{}, pod]) is used


@pytest.mark.parametrize(
    ("container", "ready", "up"),
    [
        ({"ready": True, "started": True}, True, True),
        ({"ready": False, "started": True}, False, True),
        ({"ready": False, "started": False}, False, False),
        ({}, False, False),
    ],
    ids=["ready", "late", "starting", "nothing told"],
)
def test_a_driver_is_what_its_own_container_is(container: Dict[str, bool], ready: bool, up: bool) -> None:
    """Not what the whole pod is: a toolkit that cannot be pulled makes no driver unready."""
    labels = {"app.kubernetes.io/managed-by": "ours", "app.kubernetes.io/component": "nvidia-driver"}
    told = [{"name": "openshift-driver-toolkit-ctr", "ready": not ready, "started": not up}]
    status = {
        "conditions": [{"type": "Ready", "status": str(not ready)}],
        "containerStatuses": [*told, {"name": "nvidia-driver-ctr", **container}],
    }
    found = driver_pod({"metadata": {"name": "a", "labels": labels}, "status": status}, "ours")
    assert found is not None
    assert (found.ready, found.up) == (ready, up)


def test_room() -> None:
    """Nodes without a driver count, ours and others; at the budget, and at 0, none is begun; and why."""
    found = many(9, n8=[Pod(ready=False)])
    told = rollout(found, (), Settings(max_unavailable=3))
    assert told is not None
    assert (told.room, told.begin[:2], told.waiting, told.nodes) == (2, ("n0", "n1"), 9, 9)
    found = many(9, n8=[])
    full = rollout(found, (), Settings())
    assert full is not None
    assert (full.room, [each.code for each in full.reasons]) == (0, ["UpgradeWaits"])
    off = rollout(found, (), Settings(max_unavailable=0))
    assert off is not None
    assert (off.room, [each.code for each in off.reasons]) == (0, ["UpgradeOff"])
    failed = [now(state(FAILED, cordoned=False), node=facts(f"n{number}")) for number in range(3)]
    stopped = rollout(found, failed, Settings(max_unavailable=9))
    assert stopped is not None
    assert (stopped.room, [each.code for each in stopped.reasons]) == (0, ["UpgradeStopped"])
    older = [evolve(each, state=state(FAILED, driver="older", cordoned=False)) for each in failed]
    again = rollout(found, older, Settings(max_unavailable=9))
    assert again is not None
    assert again.room == 8
    assert rollout(many(3, **{f"n{each}": [Pod(driver="new")] for each in range(3)}), (), SETTINGS) is None


LATE = Pod(ready=False, late=True)


@pytest.mark.parametrize("pod", [LATE, Pod(ready=False)], ids=["late", "starting"])
def test_an_older_driver_that_is_not_ready_is_drained_first(pod: Pod) -> None:
    """Its probes are late, or its container has started anew, its users run on: it is begun like others, and
    makes no other node unavailable.
    """
    found = many(3, n1=[pod])
    assert (found.ready, found.down, found.waiting, found.done) == (("n0", "n1", "n2"), {"n1"}, 3, 0)
    told = rollout(found, (), Settings(max_unavailable=1))
    assert told is not None
    assert (told.mend, told.mend_room, told.begin, told.room, told.reasons) == (
        ("n1",),
        1,
        ("n0", "n2"),
        0,
        (),
    )
    both = rollout(many(3, n1=[pod], n2=[]), (), Settings(max_unavailable=1))
    assert both is not None
    assert (both.mend, both.mend_room, both.room) == (("n1",), 0, 0)
    assert [each.code for each in both.reasons] == ["UpgradeWaits"]
    begun = begin(now(None, pod), GOAL, NOW)
    assert isinstance(begun, Patch)
    assert begun.code == "UpgradeStarted"
    assert step(now(state(REPLACING), pod)) == Delete(pod)


def test_what_becomes_of_an_older_driver_that_is_up() -> None:
    """Where its node has failed it is replaced at last; where nothing may be changed it stays."""
    assert patch(now(state(FAILED), LATE)).state == state(REPLACING)
    assert isinstance(step(now(state(FAILED), Pod(ready=False))), Wait)
    held = evolve(GOAL, hold="upgrade.max_unavailable is 0")
    assert patch(now(state(), LATE), held).code == "UpgradeGivenBack"


def test_a_wanted_driver_that_is_up_and_not_ready_is_waited_for() -> None:
    """It is neither done nor to be begun, and what is held helps it on."""
    late = evolve(LATE, driver="new")
    found = many(1, n0=[late])
    assert (found.ready, found.down, found.waiting, found.done) == ((), {"n0"}, 0, 0)
    assert isinstance(begin(now(None, late), GOAL, NOW), Wait)
    assert isinstance(step(now(state(FAILED), late)), Wait)
    assert step(now(state(REPLACING), late), evolve(GOAL, hold="it is off")) == Wait()


stages = strategies.none() | strategies.builds(
    state,
    strategies.sampled_from((DRAINING, REPLACING, FAILED)),
    strategies.sampled_from((0, 100, 1801)),
    driver=strategies.sampled_from(("old", "new")),
    cordoned=strategies.booleans(),
)
pods_ = strategies.lists(
    strategies.builds(
        Pod,
        strategies.sampled_from(("one", "two")),
        strategies.sampled_from(("old", "new")),
        strategies.booleans(),
        strategies.booleans(),
        late=strategies.booleans(),
    ),
    max_size=2,
)
on_off = strategies.sampled_from(("true", "false", PAUSED))
nodes_ = strategies.builds(
    lambda stage, node, drivers, works, labels, left: NodeNow(
        node, stage, "1", labels, {name: ["pod"] for name in left}, tuple(works), tuple(drivers)
    ),
    stages,
    strategies.builds(
        facts,
        ready=strategies.booleans(),
        schedulable=strategies.booleans(),
        updating=strategies.booleans(),
        kept_out=strategies.none() | strategies.just("theirs=true"),
    ),
    pods_,
    strategies.lists(strategies.builds(work, ending=strategies.booleans()), max_size=2),
    strategies.dictionaries(strategies.sampled_from((f"{DEPLOY}dcgm", f"{DEPLOY}dra-driver")), on_off),
    strategies.sets(strategies.sampled_from((f"{DEPLOY}dcgm", f"{DEPLOY}dra-driver"))),
)
goals_ = strategies.builds(
    lambda goal, there, hold: evolve(goal, there=there, hold=hold),
    strategies.sampled_from((GOAL, Goal())),
    strategies.booleans(),
    strategies.none() | strategies.just("held"),
)


@given(nodes_, goals_)
def test_what_holds_of_every_step(node: NodeNow, goal: Goal) -> None:
    """A driver goes only from a drained node that is ours to change; only our own cordon is taken away; a
    component that somebody has switched off stays so.
    """
    for found in (decide(node, goal, SETTINGS, NOW), begin(node, goal, NOW)):
        if isinstance(found, (Delete, Evict)):
            assert node.state is not None
            assert not (
                goal.hold
                or node.node.kept_out
                or node.node.updating
                or (node.node.schedulable and node.state.cordoned)
            )
        if isinstance(found, Delete):
            assert node.state is not None
            assert node.state.stage == REPLACING
            assert not node.workloads
            assert goal.there
            assert not goal.met_by(found.pod)
            assert "true" not in node.components.values()
        if isinstance(found, Patch):
            if found.unschedulable is False:
                assert node.state is not None
                assert node.state.cordoned
                assert not node.node.updating
            if found.state is None and node.state is not None and node.state.cordoned:
                assert found.unschedulable is False
            assert all(node.components[name] in ("true", PAUSED) for name in found.labels)
            if found.state is None:
                assert PAUSED not in {**node.components, **found.labels}.values()


@given(
    strategies.lists(
        strategies.tuples(stages, pods_, strategies.booleans(), strategies.booleans()), max_size=8
    ),
    strategies.integers(0, 4),
)
def test_never_more_than_may_be_unavailable(
    drawn: List[Tuple[Optional[State], List[Pod], bool, bool]], most: int
) -> None:
    """Those begun, those under way and those that are down anyhow are at most so many; none is begun that
    another master has.
    """
    nodes = [
        facts(f"n{number}", upgrade=stage and stage.text(), ready=up, kept_out="theirs" if theirs else None)
        for number, (stage, _, up, theirs) in enumerate(drawn)
    ]
    pods = {f"n{number}": each for number, (_, each, _, _) in enumerate(drawn)}
    found = survey(nodes, pods, {VERSION: ("new", True)})
    marked = [
        now(stage, *pods[node.name], node=node)
        for node, (stage, *_) in zip(nodes, drawn)
        if stage is not None
    ]
    told = rollout(found, marked, Settings(max_unavailable=most))
    if told is None:
        return
    begun, mended = set(told.begin[: told.room]), set(told.mend[: told.mend_room])
    taken = {each.node.name for each in marked if each.state and each.state.down}
    assert not begun or len(begun | taken | found.down) <= most
    assert not mended or (mended <= found.down and len(mended | taken) <= most)
    begun |= mended
    for node in nodes:
        assert node.name not in begun or (node.kept_out is None and node.upgrade is None and node.ready)
