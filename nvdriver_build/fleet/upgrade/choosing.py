"""All nodes, as the view has them: which are outdated, which of them can be begun, which are down anyhow."""

from __future__ import annotations

from collections import defaultdict
from typing import Collection, Iterable, Mapping, Sequence

from attrs import field, frozen

from nvdriver_build.fleet.facts import Node
from nvdriver_build.fleet.reasons import Reason, some
from nvdriver_build.fleet.upgrade.deciding import Goal
from nvdriver_build.fleet.upgrade.node import DriverPod
from nvdriver_build.fleet.upgrade.state import FAILED, read_state
from nvdriver_build.fleet.versions import label_value

_SKIP = "nvidia.com/gpu-driver-upgrade.skip"
_UPDATING, _DOWN, _CORDONED, _UNBUILT = "updating", "down", "cordoned", "unbuilt"


@frozen
class Survey:
    """`goals` are of the nodes that a driver of ours serves. `marked` have our annotation or label; `ready`
    are those that can be begun, in order; `down` those without a driver that is ready. `done` counts those
    whose driver is ready and as wanted, `waiting` those with an older one that are not marked. `failing` are
    those that stay cordoned, since their new driver does not become ready.
    """

    goals: Mapping[str, Goal] = field(factory=dict)
    marked: frozenset[str] = frozenset()
    ready: tuple[str, ...] = ()
    down: frozenset[str] = frozenset()
    failing: frozenset[str] = frozenset()
    waiting: int = 0
    done: int = 0
    reasons: tuple[Reason, ...] = ()


def survey(
    nodes: Iterable[Node],
    pods: Mapping[str, Sequence[DriverPod]],
    drivers: Mapping[str, tuple[str, bool]],
    unbuilt: Collection[str] = (),
) -> Survey:
    """`pods` are ours by node; `drivers` by version (our label's value): the digest that is wanted, and
    whether the API has it. `unbuilt` are nodes whose modules a Job has still to build.
    """
    goals, marked, ready, down, done = dict[str, Goal](), set[str](), list[str](), set[str](), 0
    failing = set[str]()
    kept: dict[str, list[str]] = defaultdict(list)
    for node in nodes:
        if node.upgrade is not None:
            marked.add(node.name)
        version = label_value(node.version) if node.version and node.gpu else None
        if version is None or version not in drivers:
            continue
        goal = goals[node.name] = Goal(version, *drivers[version])
        if node.upgrade is not None and _fails(node.upgrade, goal):
            failing.add(node.name)
        there = [pod for pod in pods.get(node.name, ()) if not pod.ending]
        fine = [pod for pod in there if pod.ready]
        if not fine or not node.ready:
            down.add(node.name)
        if any(goal.met_by(pod) for pod in there):
            done += any(goal.met_by(pod) for pod in fine)
        elif node.upgrade is None and any(pod.version == version for pod in there):
            why = _not_now(node) or (_UNBUILT if node.name in unbuilt else "")
            (kept[why] if why else ready).append(node.name)
    return Survey(
        goals=goals,
        marked=frozenset(marked),
        ready=tuple(sorted(name for name in ready if goals[name].there)),
        down=frozenset(down),
        failing=frozenset(failing),
        waiting=len(ready) + sum(map(len, kept.values())),
        done=done,
        reasons=tuple(_reason(why, names) for why, names in sorted(kept.items()) if why != _DOWN),
    )


def _fails(note: str, goal: Goal) -> bool:
    state = read_state(note)
    return state is not None and state.stage == FAILED and state.cordoned and state.driver == goal.driver


def _not_now(node: Node) -> str:
    """Why an outdated node is not begun; empty where it can be."""
    if node.kept_out is not None:
        return node.kept_out
    if node.updating:
        return _UPDATING
    if not node.ready:
        return _DOWN
    return "" if node.schedulable else _CORDONED


def _reason(why: str, names: list[str]) -> Reason:
    who = f"{len(names)} nodes with an older driver ({some(names)})"
    if why == _UPDATING:
        return Reason("UpgradeUpdating", f"{who} wait for the Machine Config Operator")
    if why == _UNBUILT:
        return Reason("UpgradeUnbuilt", f"{who} wait until the modules of the new one are in the registry")
    if why == _CORDONED:
        return Reason(
            "UpgradeCordoned", f"{who} are cordoned, not by us", "oc adm uncordon NODE lets it begin"
        )
    if why.startswith(_SKIP):
        return Reason("UpgradeSkipped", f"{who} carry {why}", f"take the label {_SKIP} away to let it begin")
    hint = (
        "spec.driver.upgradePolicy.autoUpgrade: false in the ClusterPolicy (or NVIDIADriver) makes the GPU "
        "Operator take it away"
    )
    return Reason("UpgradeElsewhere", f"{who} are the GPU Operator's to upgrade: {why}", hint)
