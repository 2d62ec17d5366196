"""The next step on one node that is being changed. Each stands alone: whatever came before, it is right.

begin -> draining -> replacing -> done
            |            |
            v            v
         failed       failed (stays cordoned; done once its driver is ready after all)
"""

from __future__ import annotations

import datetime
from typing import Mapping, Optional, Union

from attrs import evolve, field, frozen

from nvdriver_build.fleet.reasons import some
from nvdriver_build.fleet.upgrade.node import COMPONENTS, DriverPod, NodeNow, Workload
from nvdriver_build.fleet.upgrade.settings import Settings
from nvdriver_build.fleet.upgrade.state import DRAINING, FAILED, REPLACING, State


@frozen
class Goal:
    """What a node goes to: pods of this `version` (our label's value) and `driver`, both None where no
    driver of ours belongs there. `there` is whether the API has that. `hold` is why no node may be
    changed now.
    """

    version: Optional[str] = None
    driver: Optional[str] = None
    there: bool = True
    hold: Optional[str] = None

    def met_by(self, pod: DriverPod) -> bool:
        """Whether a pod is of what is wanted."""
        return pod.version == self.version and pod.driver == self.driver


@frozen
class Patch:
    """One patch of the node: `state` None takes ours away. `code` and `message` tell of it."""

    code: str
    message: str
    state: Optional[State]
    unschedulable: Optional[bool] = None
    labels: Mapping[str, str] = field(factory=dict)


@frozen
class Evict:
    """Ask these pods to leave; `others` do not leave by themselves, or do so already."""

    pods: tuple[Workload, ...]
    others: tuple[Workload, ...]


@frozen
class Delete:
    """Replace the driver's pod."""

    pod: DriverPod


@frozen
class Wait:
    """Nothing to do now. `why` is for people."""

    why: str = ""


Decision = Union[Patch, Evict, Delete, Wait]


def begin(node: NodeNow, goal: Goal, now: datetime.datetime) -> Decision:
    """The first step on a node, if it still is as it was chosen."""
    facts = node.node
    fine = facts.ready and facts.schedulable and not facts.updating and facts.kept_out is None
    there = [pod for pod in node.drivers if not pod.ending and pod.version == goal.version]
    if goal.driver is None or not fine or node.state is not None or not there:
        return Wait("it is not as it was")
    if any(goal.met_by(pod) for pod in there):
        return Wait("its driver is as wanted")
    message = f"{facts.name} is cordoned: its driver goes from {there[0].driver} to {goal.driver}"
    return Patch("UpgradeStarted", message, State(DRAINING, goal.driver, now), unschedulable=True)


def decide(node: NodeNow, goal: Goal, settings: Settings, now: datetime.datetime) -> Decision:
    """The next step on a node that has our annotation or label."""
    state, name = node.state, node.node.name
    if state is None:
        message = f"{name} is left alone: its annotation is gone. If it is cordoned, it stays so"
        return Patch("UpgradeForgotten", message, None, labels=node.paused)
    if node.node.updating:
        return Wait("the Machine Config Operator changes it")
    if goal.driver is None:
        return _give_back(node, state, f"{name} is given back: no driver of ours belongs there any more")
    if node.node.ready and any(goal.met_by(pod) and pod.ready and not pod.ending for pod in node.drivers):
        return _finish(node, state)
    if state.stage == FAILED and state.driver == goal.driver:
        return _failed(node, state, goal, now)
    hold = goal.hold or (node.node.kept_out and f"it has {node.node.kept_out}")
    if hold:
        return _held(node, state, goal, hold)
    if not goal.there:
        return Wait(state.why)  # its DaemonSet is not yet as wanted
    if state.driver != goal.driver:
        return _redirect(node, state, goal.driver, now)
    if state.cordoned and node.node.schedulable:
        return Patch("UpgradeCordonedAgain", f"{name} is cordoned again", state, unschedulable=True)
    return (_drain if state.stage == DRAINING else _replace)(node, state, goal, settings, now)


def _drain(node: NodeNow, state: State, goal: Goal, settings: Settings, now: datetime.datetime) -> Decision:
    """Pods that use a GPU leave, then the components that hold its devices."""
    late = state.age(now) > settings.drain_seconds and bool(state.why)  # it has been tried
    if node.workloads:
        return _too_late(node, state, now) if late else _evict(node)
    for labels in COMPONENTS:
        pause, left = node.to_pause(labels), node.left(labels)
        if (pause or left) and late:
            return _too_late(node, evolve(state, why=f"pods of the GPU Operator: {some(left)}"), now)
        if pause:
            message = f"{node.node.name}: the GPU Operator's components are paused"
            return Patch("UpgradePaused", message, state, labels=pause)
        if left:
            return Wait(f"pods of the GPU Operator: {some(left)}")
    message = f"{node.node.name} is drained: nothing uses its driver"
    return Patch("UpgradeDrained", message, evolve(state, stage=REPLACING, since=now, why=""))


def _evict(node: NodeNow) -> Evict:
    leave = tuple(pod for pod in node.workloads if not pod.ending and pod.stays is None)
    return Evict(leave, tuple(pod for pod in node.workloads if pod not in leave))


def _replace(node: NodeNow, state: State, goal: Goal, settings: Settings, now: datetime.datetime) -> Decision:
    """The pod goes: its SIGTERM withdraws readiness and unloads; its successor has the wanted driver."""
    old = [pod for pod in node.drivers if not pod.ending and not goal.met_by(pod)]
    if old and (node.workloads or any(node.to_pause(labels) or node.left(labels) for labels in COMPONENTS)):
        message = f"{node.node.name}: something uses its driver again"
        return Patch("UpgradeDraining", message, evolve(state, stage=DRAINING))
    if old:
        return Delete(old[0])
    if state.age(now) <= settings.ready_seconds:
        return Wait()
    pods = some(pod.name for pod in node.drivers) or "there is none"
    why = f"its new driver was not ready within {settings.ready_seconds} s; its pod: {pods}"
    message = f"{node.node.name} stays cordoned: {why}"
    return Patch("UpgradeFailed", message, evolve(state, stage=FAILED, since=now, why=why))


def _failed(node: NodeNow, state: State, goal: Goal, now: datetime.datetime) -> Decision:
    """For a person, or until its driver is ready. An old one that is back would keep it cordoned for ever."""
    if not state.cordoned or not _old_is_up(node, goal):
        return Wait(state.why)
    again = State(REPLACING, state.driver, now)
    return Patch("UpgradeRetried", f"{node.node.name} has an older driver again", again)


def _too_late(node: NodeNow, state: State, now: datetime.datetime) -> Patch:
    why = f"not drained in time: {state.why or some(pod.words for pod in node.workloads)}"
    message = f"{node.node.name} goes on with its old driver: {why}"
    failed = State(FAILED, state.driver, now, cordoned=False, why=why)
    return Patch("UpgradeFailed", message, failed, _uncordon(state), node.paused)


def _redirect(node: NodeNow, state: State, driver: str, now: datetime.datetime) -> Patch:
    """The settings have changed, maybe back: what was true of another driver does not count."""
    name = node.node.name
    if state.stage == FAILED and not state.cordoned:
        return Patch("UpgradeRetried", f"{name} failed for other settings: it may be begun anew", None)
    stage = DRAINING if state.stage == DRAINING else REPLACING
    message = f"{name} goes to {driver} now, not to {state.driver}"
    return Patch("UpgradeRedirected", message, State(stage, driver, now, state.cordoned))


def _held(node: NodeNow, state: State, goal: Goal, why: str) -> Decision:
    """A node whose old driver runs is given back; one that has none is helped to its new one."""
    if state.stage == FAILED or not _old_is_up(node, goal):
        return Wait("" if state.stage == REPLACING else why)
    return _give_back(node, state, f"{node.node.name} is given back with its old driver: {why}")


def _old_is_up(node: NodeNow, goal: Goal) -> bool:
    return any(pod.up and not pod.ending and not goal.met_by(pod) for pod in node.drivers)


def _give_back(node: NodeNow, state: State, message: str) -> Patch:
    return Patch("UpgradeGivenBack", message, None, _uncordon(state), node.paused)


def _finish(node: NodeNow, state: State) -> Patch:
    message = f"{node.node.name} has its new driver"
    return Patch("UpgradeFinished", message, None, _uncordon(state), node.paused)


def _uncordon(state: State) -> Optional[bool]:
    return False if state.cordoned else None
