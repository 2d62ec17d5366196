"""A new driver, node by node: does what `fleet.upgrade` decides, one step on each node in a round.

Nodes under way are asked of the API in every round, by our label: the view may be behind what we (or the
controller that led before us) wrote last, and one node too many must not be begun. Pods are asked of one
node at a time, of `_STEPS` nodes in a round, in turns. Where every driver is as wanted, nothing is asked.
"""

from __future__ import annotations

import datetime
from typing import Any, Callable, Collection, Iterable, Optional

import structlog
from attrs import define, evolve, field

from nvdriver_build.errors import ClusterError
from nvdriver_build.fleet.controller.acting import Done, Failed, Guard
from nvdriver_build.fleet.controller.api import Api, Conflict, Document, Missing, Refused
from nvdriver_build.fleet.controller.election import Deposed
from nvdriver_build.fleet.controller.kinds import DAEMONSET, NODE, POD, Kind
from nvdriver_build.fleet.controller.looking import pods_on
from nvdriver_build.fleet.controller.view import Pod, View
from nvdriver_build.fleet.controller.view import pod as driver_pod
from nvdriver_build.fleet.names import DRIVER_NOTE, LABEL, UPGRADE
from nvdriver_build.fleet.objects import text, texts
from nvdriver_build.fleet.reasons import Reason, some
from nvdriver_build.fleet.upgrade import (
    FAILED,
    Delete,
    Evict,
    Goal,
    NodeNow,
    Patch,
    Rollout,
    Settings,
    Survey,
    Workload,
    begin,
    decide,
    node_now,
    rollout,
    survey,
    with_pods,
)

AGAIN = 5.0
"""Seconds until the next look, while a node is being changed: pods of others are not followed."""
_STEPS = 20
"""Nodes whose pods are asked for in one round: a list of one node's pods costs an API server most."""
_LOOKS = 3
"""Candidates of the view that may turn out to be none, in one round."""
_ONE_ROUND = Reason("UpgradeNeedsWatch", "a new driver takes more than this one round", "run 'fleet watch'")
_log = structlog.get_logger()


@define
class Upgrading:
    """The steps of one round. `done` and `failed` tell what came of them, `again` whether to look soon."""

    api: Api
    view: View
    namespace: str
    settings: Settings
    guard: Guard
    now: datetime.datetime
    steps: bool = True
    """Whether there will be another round: without one a node would stay cordoned."""
    looked: dict[str, None] = field(factory=dict)
    """Nodes whose pods were asked for in rounds before, those of the last one at the end: only for turns."""
    unbuilt: Collection[str] = ()
    """Nodes whose modules a Job has still to build."""
    done: list[Done] = field(factory=list)
    failed: list[Failed] = field(factory=list)
    again: bool = False

    def run(self, objects: Iterable[Document]) -> Optional[Rollout]:
        """One step on each node under way, then maybe others are begun. None where nothing is to be done."""
        found = self._survey(objects)
        if not found.waiting and not found.marked:
            return None
        if not self.steps:
            told = rollout(found, (), self.settings)
            return evolve(told, reasons=(*told.reasons, _ONE_ROUND)) if told else None
        try:
            marked = self._marked(found)
        except ClusterError as error:
            self.failed.append(Failed("list", error, NODE, "those that are upgraded"))
            return None
        for each in self._turns(marked):
            self._try(each.node.name, self._step, each, self._goal(found, each))
        self.again = self.again or any(map(_under_way, marked))
        told = rollout(found, marked, self.settings)
        if told is not None:
            self._begin(told, found)
        return told

    def failing(self, objects: Iterable[Document]) -> bool:
        """Whether the driver that is wanted does not become ready on a node that we gave it."""
        with self.view.lock:
            marked = any(node.upgrade for node in self.view.nodes.values.values())
        return marked and bool(self._survey(objects).failing)

    def _survey(self, objects: Iterable[Document]) -> Survey:
        with self.view.lock:
            nodes, pods = list(self.view.nodes.values.values()), list(self.view.pods.values.values())
            there = {name: live.fact for name, live in self.view.live(DAEMONSET.plural).items() if live.ours}
        drivers = dict[str, tuple[str, bool]]()
        for each in objects:
            if each.get("kind") == DAEMONSET.name:
                wanted = texts(each, "spec", "template", "metadata", "annotations")[DRIVER_NOTE]
                seen = there.get(text(each, "metadata", "name") or "")
                same = seen is not None and seen.driver == wanted
                drivers[texts(each, "metadata", "labels")[LABEL]] = wanted, same
        return survey(nodes, _by_node(pods), drivers, self.unbuilt)

    def _goal(self, found: Survey, node: NodeNow) -> Goal:
        """One that goes to this driver already goes on; of another one the modules have to be there."""
        name = node.node.name
        goal = found.goals.get(name, Goal())
        if self.settings.limit(len(found.goals)) == 0:
            return evolve(goal, hold="upgrade.max_unavailable is 0")
        if name in self.unbuilt and node.state is not None and node.state.driver != goal.driver:
            return evolve(goal, hold="its new modules are not built yet")
        return goal

    def _marked(self, found: Survey) -> list[NodeNow]:
        """The nodes under way, as they are now; of their pods what the view has."""
        documents = {
            text(each, "metadata", "name") or "": each
            for page in self.api.pages(NODE, labels=UPGRADE)
            for each in page.items
        }
        for name in sorted(found.marked - documents.keys()):
            try:
                documents[name] = self.api.get(NODE, name)
            except Missing:
                continue
        marks = ("annotations", "labels")
        with self.view.lock:
            pods = _by_node(self.view.pods.values.values())
        known = [
            node_now(each, drivers=pods.get(name, ()))
            for name, each in sorted(documents.items())
            if any(UPGRADE in texts(each, "metadata", where) for where in marks)
        ]
        return [each for each in known if each is not None]

    def _turns(self, marked: list[NodeNow]) -> list[NodeNow]:
        """Those that need no look at their pods, and of the others those that had none for longest."""
        asked = dict.fromkeys(each.node.name for each in marked if _under_way(each))
        before = {name: place for place, name in enumerate(self.looked)}
        turn = sorted(asked, key=lambda name: before.get(name, -1))[:_STEPS]
        later = [name for name in self.looked if name in asked and name not in turn]
        self.looked.clear()
        self.looked.update(dict.fromkeys((*later, *turn)))
        return [each for each in marked if each.node.name not in asked or each.node.name in turn]

    def _now(self, node: NodeNow) -> NodeNow:
        """Where the API hangs, we lead no more before all have had their turn."""
        self.guard()
        pods = pods_on(self.api, node.node.name)
        mine = (each for each in pods if text(each, "metadata", "namespace") == self.namespace)
        drivers = (driver_pod(each, self.view.manager) for each in mine)
        return with_pods(node, pods, [each for each in drivers if each is not None])

    def _begin(self, told: Rollout, found: Survey) -> None:
        """Nodes that the API says the same of as the view."""
        for names, limit in ((told.mend, told.mend_room), (told.begin, told.room)):
            room = min(limit, _STEPS)
            for name in names[: room + _LOOKS] if room else ():
                if room and self._try(name, self._first, name, found.goals[name]):
                    room -= 1

    def _first(self, name: str, goal: Goal) -> bool:
        found = node_now(self.api.get(NODE, name))
        if found is None:
            return False
        node = self._now(found)
        decision = begin(node, goal, self.now)
        if not isinstance(decision, Patch):
            return False
        self._patch(node, decision)
        self.again = True
        return True

    def _try(self, name: str, what: Callable[..., bool], *given: Any) -> bool:
        """Whether it was done; what came between is looked at again."""
        try:
            return what(*given)
        except (Missing, Conflict) as error:
            _log.info("a node or pod has changed meanwhile", node=name, error=error.message)
            self.again = True
        except Deposed:
            raise
        except ClusterError as error:
            self._fail(name, error)
        return False

    def _fail(self, name: str, error: ClusterError) -> None:
        _log.warning("write failed", kind=NODE.name, name=name, error=error.message)
        self.failed.append(Failed("upgrade", error, NODE, name))

    def _step(self, node: NodeNow, goal: Goal) -> bool:
        node = self._now(node) if _under_way(node) else node
        decision = decide(node, goal, self.settings, self.now)
        if isinstance(decision, Patch):
            self._patch(node, decision)
        elif isinstance(decision, Evict):
            self._evict(node, decision)
        elif isinstance(decision, Delete):
            self._delete(node, decision)
        elif node.state is not None and node.state.stage != FAILED and node.state.why != decision.why:
            self._patch(node, Patch("", "", evolve(node.state, why=decision.why)))
        return True

    def _patch(self, node: NodeNow, step: Patch) -> None:
        """All of it or nothing, and only of the node as it was seen: a cordon by another is not lost."""
        state, name = step.state, node.node.name
        metadata = {
            "resourceVersion": node.resource_version,
            "annotations": {UPGRADE: state.text() if state else None},
            "labels": {UPGRADE: state.stage if state else None, **step.labels},
        }
        change: dict[str, Any] = {"metadata": metadata}
        if step.unschedulable is not None:
            change["spec"] = {"unschedulable": step.unschedulable or None}
        self.guard()
        self.api.merge(NODE, name, change)
        self._tell(step.code, step.message, NODE, name)

    def _evict(self, node: NodeNow, step: Evict) -> None:
        assert node.state is not None
        words = [pod.words for pod in step.others]
        words += [each for each in (self._leaves(node, pod) for pod in step.pods) if each is not None]
        if some(words) != node.state.why:
            self._patch(node, Patch("", "", evolve(node.state, why=some(words))))

    def _leaves(self, node: NodeNow, pod: Workload) -> Optional[str]:
        """What to say of a pod that is still there."""
        self.guard()
        try:
            self.api.evict(pod.name, pod.namespace, pod.uid)
        except (Missing, Conflict):  # it has gone; another one of its name may be elsewhere
            return None
        except Refused as refused:
            budget = refused.status == 429 and "disruption budget" in refused.message.lower()
            why = "PodDisruptionBudget" if budget else refused.message[-80:]
            return f"{pod.words} ({why})"
        message = f"{pod.words} is evicted: it uses a GPU of {node.node.name}, whose driver is replaced"
        self._tell("PodEvicted", message, NODE, node.node.name)
        return f"{pod.words} (is ending)"

    def _delete(self, node: NodeNow, step: Delete) -> None:
        pod = step.pod
        assert isinstance(pod, Pod)
        self.guard()
        self.api.delete(POD, pod.name, self.namespace, pod.document())
        self._tell(
            "DriverReplaced", f"{pod.name} of {node.node.name} makes room for the new driver", POD, pod.name
        )

    def _tell(self, code: str, message: str, kind: Kind, name: str) -> None:
        if code:
            _log.info(message, kind=kind.name, name=name)
            self.done.append(Done(code, message, kind, name))


def _under_way(node: NodeNow) -> bool:
    """Of one that has failed the next step asks only for the driver's pod, which is followed."""
    return node.state is not None and node.state.stage != FAILED


def _by_node(pods: Iterable[Pod]) -> dict[str, list[Pod]]:
    found = dict[str, list[Pod]]()
    for pod in pods:
        found.setdefault(pod.node or "", []).append(pod)
    return found
