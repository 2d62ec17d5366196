"""The story of an upgrade: runs of the upgrade simulator, tick by tick, for docs/upgrade.md and its picture.

The shipped planner and controller, in a cluster of the simulator. The same code gives the same story.
"""

from __future__ import annotations

import contextlib
import datetime
import io
from typing import Any, Dict, FrozenSet, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from attrs import define, field
from upgrade_sim import RELEASES, Script, Simulation, Step
from upgrade_world import Machine, World

from nvdriver_build.cli.cluster import print_status
from nvdriver_build.fleet.controller.api import Document, refusal
from nvdriver_build.fleet.controller.kinds import Kind
from nvdriver_build.fleet.controller.reporting import Reporter
from nvdriver_build.fleet.controller.rounds import Outcome
from nvdriver_build.fleet.names import LABEL
from nvdriver_build.fleet.status import status_document

OLD, NEW = RELEASES[0], RELEASES[3]
POOLS, EACH = ("inference", "training"), 3
DOWN, BUILD, START, READY, AGAIN = "down", "build", "start", "old", "new"
TICK_MINUTES = 0.5


class Moment(NamedTuple):
    """What there is at a tick."""

    nodes: Mapping[str, str]
    tags: FrozenSet[str]
    daemonsets: FrozenSet[str]
    prebuilding: bool
    prebuilt: bool
    status: Tuple[Any, Sequence[Document]]


class Run(NamedTuple):
    """What lasts from one tick to another."""

    what: str
    begin: int
    end: int


@define
class Recorded(Simulation):
    """A simulation of which every tick is kept."""

    moments: List[Moment] = field(factory=list)

    def tick(self) -> None:
        Simulation.tick(self)
        world, plan = self.world, self.controller.plan
        self.moments.append(
            Moment(
                nodes={name: _state(world, each) for name, each in world.machines.items()},
                tags=frozenset(world.stream),
                daemonsets=frozenset(each["metadata"]["annotations"][LABEL] for each in world.daemonsets()),
                prebuilding=plan is not None
                and any(group.coming and group.state == "prebuilding" for group in plan.groups),
                prebuilt=(NEW.kernel("x86_64"), "x86_64") in world.registry,
                status=(plan, world.daemonsets()),
            )
        )


def _state(world: World, machine: Machine) -> str:
    if machine.down:
        return DOWN
    if world.driver_ready(machine.name):
        return AGAIN if machine.release == NEW else READY
    building = any(pod.node == machine.name and pod.phase == "building" for pod in world.pods.values())
    return BUILD if building else START


def recorded(prebuild: bool) -> Recorded:
    """An upgrade of all nodes, one of each pool at a time."""
    steps = (Step(12, "announce", NEW.number - 1), Step(12, "reach"))
    nodes = (("x86_64", "late"),) * len(POOLS) * EACH
    done = Recorded(Script(nodes, steps, at_once=len(POOLS), down_for=6, registry=prebuild))
    done.run()
    return done


# what happened


def runs(states: Sequence[str], begin: int) -> List[Run]:
    """Equal neighbours as one."""
    found: List[Run] = []
    for tick, what in enumerate(states, begin):
        if found and found[-1].what == what:
            found[-1] = found[-1]._replace(end=tick + 1)
        else:
            found.append(Run(what, tick, tick + 1))
    return found


def first(moments: Sequence[Moment], begin: int, true: Any) -> Optional[int]:
    """The first tick from `begin` on at which something is true."""
    return next((tick for tick in range(begin, len(moments)) if true(moments[tick])), None)


def marks(moments: Sequence[Moment]) -> Dict[int, str]:
    """What happens to the cluster, by tick; what happens at one tick stands together."""
    tag = begin_of(moments)
    events = (
        (tag, f"the tag of {NEW.version} comes"),
        (first(moments, tag, lambda each: NEW.version in each.daemonsets), "its DaemonSet is made"),
        (first(moments, tag, lambda each: each.prebuilt), "its modules are in the registry"),
        (first(moments, tag, lambda each: DOWN in each.nodes.values()), "the first nodes reboot"),
        (
            first(moments, tag, lambda each: OLD.version not in each.daemonsets),
            f"the DaemonSet of {OLD.version} is gone",
        ),
    )
    found: Dict[int, str] = {}
    for tick, text in events:
        if tick is not None:
            found[tick] = f"{found[tick]}, {text}" if tick in found else text
    return found


def begin_of(moments: Sequence[Moment]) -> int:
    """The tick at which the tag comes."""
    tick = first(moments, 0, lambda each: NEW.version in each.tags)
    assert tick is not None
    return tick


def over(moments: Sequence[Moment]) -> int:
    """The tick at which all nodes have their new driver."""
    tick = first(moments, 0, lambda each: set(each.nodes.values()) == {AGAIN})
    assert tick is not None
    return tick


def gap(moments: Sequence[Moment]) -> float:
    """Minutes for which the node that lacks its driver longest does so."""
    begin = begin_of(moments)
    lacking = [
        sum(each.nodes[name] not in (READY, AGAIN) for each in moments[begin:]) for name in moments[0].nodes
    ]
    return max(lacking) * TICK_MINUTES


# what `fleet status` shows


class Kept:
    """Of an API as much as the status ConfigMap needs."""

    document: Document = {}

    def get(self, kind: Kind, name: str, namespace: Optional[str] = None) -> Document:
        raise refusal(f"{kind.plural} {name}", 404, "none yet")

    def apply(self, kind: Kind, document: Document, force: bool = False, dry_run: bool = False) -> Document:
        self.document = document
        return document


def status(simulation: Recorded, tick: int) -> str:
    """The table at a tick."""
    plan, daemonsets = simulation.moments[tick].status
    kept, then = Kept(), datetime.datetime(2026, 11, 26, 9, tick // 2, tick % 2 * 30)
    reporter = Reporter(kept, simulation.driver, lambda: then)  # type: ignore[arg-type]
    reporter.report(Outcome(plan, (), ()))
    with contextlib.redirect_stdout(io.StringIO()) as said:
        print_status(status_document(kept.document, daemonsets))
    return said.getvalue()


def statuses(simulation: Recorded) -> Iterator[str]:
    """While the modules are prebuilt, and when half of the nodes are over."""
    moments, begin = simulation.moments, begin_of(simulation.moments)
    building = first(moments, begin, lambda each: each.prebuilding)
    half = first(moments, begin, lambda each: list(each.nodes.values()).count(AGAIN) * 2 >= len(each.nodes))
    assert building is not None and half is not None
    for tick in (building, half):
        yield status(simulation, tick)
