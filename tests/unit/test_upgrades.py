"""Random upgrades through the simulator: what holds of every one of them.

`UPGRADES=100000` says how many; without it 5000 in CI, and 300 at a desk.
"""

from __future__ import annotations

import logging
import os
from typing import Dict, Iterator, List, Optional, Tuple

import pytest

pytest.importorskip("lightkube", reason="the extra 'fleet' is for Python 3.11 and later")

import structlog
from hypothesis import given, settings
from upgrade_scripts import SCENARIOS, scripts
from upgrade_sim import Registry, Script, Simulation, Step, run

pytestmark = pytest.mark.once
UPGRADES = int(os.environ.get("UPGRADES", "5000" if os.environ.get("CI") else "300"))
PARTS = 5
"""Of the random upgrades, so that several cores can share them."""


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    """Without logs: each write that fails is one."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


@pytest.mark.parametrize("part", range(PARTS))
def test_random_upgrades(part: int) -> None:
    """What the simulator checks holds on random upgrades with random trouble."""

    @settings(max_examples=UPGRADES // PARTS)
    @given(scripts(part))
    def upgrade(script: Script) -> None:
        run(script)

    upgrade()


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_scenarios(name: str) -> None:
    """Upgrades of each kind that there is, and those that once showed a bug."""
    run(SCENARIOS[name])


def test_a_round_asks_for_the_pods_of_few_nodes() -> None:
    """However many may be unavailable at once: they have their turns, and all of them come to their end."""
    count = 60
    sim = Simulation(Script(nodes=(("x86_64", "fresh"),) * count, most=count))
    asked: List[str] = []
    sim.api.fault = lambda verb, plural: asked.append(f"{verb} {plural}")
    for _ in range(16):
        sim.tick()
    sim._do(Step(0, "driver", 1))
    sim.api.fault = lambda verb, plural: asked.append(f"{verb} {plural}")
    most = 0
    for _ in range(60):
        asked.clear()
        sim.tick()
        most = max(most, asked.count("list pods"))
    assert 20 < most < count
    assert {pod.value for pod in sim.world.pods.values()} == {"1"}
    assert not any(sim._marked(name) for name in sim.world.machines)


class Lacking(Registry):
    """A registry that can be without anything."""

    lacks = False

    def has(self, kernel: str, arch: str, built: bool = False) -> Optional[bool]:
        return not self.lacks and super().has(kernel, arch, built)


def test_no_driver_goes_before_its_successor_is_built() -> None:
    """While the modules of the new one are not in the registry no node is begun, one that is under way to
    another driver keeps what it has, and one that goes to this driver already goes on.
    """
    sim = Simulation(Script(nodes=(("x86_64", "fresh"),) * 3, works=3))
    sets = Lacking(sim.world)

    def after(step: Step, ticks: int, lacks: bool) -> List[str]:
        sim._do(step)
        sets.lacks, sim.controller.rounds.sets = lacks, sets
        for _ in range(ticks):
            sim.controller.due = True
            sim.tick()
        return sorted(pod.value for pod in sim.world.pods.values())

    def marked() -> int:
        return sum(map(sim._marked, sim.world.machines))

    assert after(Step(0, "restart"), 16, False) == ["", "", ""]
    assert after(Step(0, "driver", 1), 30, True) == ["", "", ""] and marked() == 0
    assert after(Step(0, "restart"), 2, False) == ["", "", ""] and marked() == 1
    assert after(Step(0, "driver", 2), 30, True) == ["", "", ""] and marked() == 0
    assert after(Step(0, "restart"), 2, False) == ["", "", ""] and marked() == 1
    assert after(Step(0, "restart"), 30, True) == ["", "", "2"] and marked() == 0
    assert after(Step(0, "restart"), 60, False) == ["2", "2", "2"] and marked() == 0


def test_a_driver_that_fails_elsewhere_does_not_come_by_a_reboot() -> None:
    """A node whose driver is not ready gets the new one at once; its old one, where the new one fails."""
    sim = Simulation(Script(nodes=(("x86_64", "fresh"),) * 3))
    world = sim.world
    sim.world.bad.add("1")

    def after(step: Step, ticks: int) -> Dict[str, Tuple[str, bool]]:
        sim._do(step)
        for _ in range(ticks):
            sim.tick()
        return {pod.node: (pod.value, pod.phase == "ready") for pod in world.pods.values()}

    assert set(after(Step(0, "restart"), 16).values()) == {("", True)}
    found = after(Step(0, "driver", 1), 60)
    assert found["node-0"] == ("1", False)
    assert after(Step(0, "reboot", 1), 20)["node-1"] == ("", True)
    world.bad.clear()
    assert set(after(Step(0, "restart"), 60).values()) == {("1", True)}
