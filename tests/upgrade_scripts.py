"""Random scripts for the upgrade simulator, and those that once showed a bug."""

from __future__ import annotations

import random
from typing import Dict

from hypothesis import strategies
from upgrade_sim import Script, Step

_COMMON = ("upgrade", "announce", "reach", "upgrade", "reach")
_WORLD = (
    "pause",
    "reboot",
    "add",
    "remove",
    "stale",
    "mislabel",
    "mend",
    "retract",
    "swap",
    "jobs_fail",
    "unpullable",
)  # fmt: skip
_DRIVER = (
    "driver",
    "driver",
    "driver",
    "cordon",
    "budget",
    "budget",
    "bare",
    "master",
    "slow",
    "standby",
    "standby",
)
_TROUBLE = ("fail", "gone", "blind", "lag", "restart", "crash", "meddle")
_PARTS = (
    (*_COMMON, "reboot", "stale", "pause"),
    (*_COMMON, *_WORLD),
    (*_COMMON, *_TROUBLE),
    (*_COMMON, *_WORLD, *_TROUBLE),
    (*_COMMON[:3], *_DRIVER, *_DRIVER, *_TROUBLE[:-1], "reboot", "add", "remove", "pause"),
)


DRIVERS = 4
"""The part of upgrades of the driver itself."""


def scripts(part: int) -> strategies.SearchStrategy[Script]:
    """Upgrades: calm ones, in a messy cluster, with trouble of the API, and all of it; those of drivers."""
    number = strategies.integers(0, 35)
    waits = strategies.sampled_from((0, 0, 1, 2, 3, 5, 8, 12))
    steps = strategies.builds(
        Step, waits, strategies.sampled_from(_PARTS[part]), strategies.integers(0, 7), number
    )
    node = strategies.tuples(
        strategies.sampled_from(("x86_64", "x86_64", "arm64")),
        strategies.sampled_from(("fresh", "late", "stale", "none")),
    )
    return strategies.builds(
        Script,
        nodes=strategies.lists(node, min_size=1, max_size=5).map(tuple),
        steps=strategies.lists(steps, min_size=1, max_size=10).map(tuple),
        at_once=strategies.integers(1, 2),
        down_for=strategies.integers(1, 5),
        tell_lag=strategies.integers(0, 2),
        registry=strategies.booleans(),
        asked=strategies.booleans(),
        works=strategies.integers(0, 4) if part == DRIVERS else strategies.just(0),
        plugin=strategies.booleans() if part == DRIVERS else strategies.just(False),
        most=strategies.integers(1, 2),
    )


def random_script(chance: random.Random, part: int) -> Script:
    """The same without hypothesis: faster, and the same ones each time."""
    nodes = tuple(
        (chance.choice(("x86_64", "x86_64", "arm64")), chance.choice(("fresh", "late", "stale", "none")))
        for _ in range(chance.randint(1, 5))
    )
    steps = tuple(
        Step(
            chance.choice((0, 0, 1, 2, 3, 5, 8, 12)),
            chance.choice(_PARTS[part]),
            chance.randint(0, 7),
            chance.randint(0, 35),
        )
        for _ in range(chance.randint(1, 10))
    )
    return Script(
        nodes,
        steps,
        at_once=chance.randint(1, 2),
        down_for=chance.randint(1, 5),
        tell_lag=chance.randint(0, 2),
        registry=chance.random() < 0.5,
        asked=chance.random() < 0.5,
        works=chance.randint(0, 4) if part == DRIVERS else 0,
        plugin=part == DRIVERS and chance.random() < 0.5,
        most=chance.randint(1, 2),
    )


_ONE, _THREE = (("x86_64", "fresh"),), (("x86_64", "fresh"), ("x86_64", "stale"), ("x86_64", "none"))
SCENARIOS: Dict[str, Script] = {
    "one node": Script(_ONE, (Step(8, "announce", 1), Step(8, "reach"))),
    "stale, late and no NFD": Script(_THREE, (Step(8, "announce", 1), Step(8, "reach"))),
    "two architectures": Script((*_ONE, ("arm64", "late")), (Step(8, "announce", 1), Step(8, "reach"))),
    "back to where it came from": Script(_THREE, (Step(5, "upgrade", 1), Step(9, "upgrade", 0))),
    "back in the midst of it": Script(_THREE, (Step(5, "upgrade", 1), Step(6, "upgrade", 0))),
    "a version is skipped": Script(
        _THREE, (Step(5, "announce", 1), Step(3, "announce", 2), Step(9, "reach"))
    ),
    "a version comes back": Script(
        _THREE, (Step(5, "upgrade", 1), Step(25, "upgrade", 2), Step(25, "upgrade", 1))
    ),
    "a paused pool": Script(
        _THREE, (Step(5, "upgrade", 1), Step(5, "pause"), Step(30, "pause"), Step(9, "restart"))
    ),
    "the tag comes after the nodes": Script(_THREE, (Step(5, "upgrade", 1, 30),), at_once=2, registry=False),
    "the tag has no image, then one": Script(
        _THREE, (Step(5, "upgrade", 1, 3), Step(25, "mend")), registry=False
    ),
    "the tag has another image, then its own": Script(
        _THREE, (Step(5, "upgrade", 1, 4), Step(25, "mend")), registry=False
    ),
    "410 while a node is away": Script(_THREE, (Step(5, "upgrade", 1), Step(3, "gone"), Step(2, "gone"))),
    "killed at a write": Script(_THREE, (Step(5, "crash", 1), Step(0, "upgrade", 1), Step(4, "crash", 0, 1))),
    "a DaemonSet is deleted by hand": Script(_THREE, (Step(9, "meddle", 0, 1), Step(5, "upgrade", 1))),
    "its status is old while it is wanted no more": Script(
        _THREE, (Step(5, "lag"), Step(2, "upgrade", 1), Step(20, "lag"), Step(2, "upgrade", 0))
    ),
    "its status is from before its pods": Script(
        _ONE,
        (
            Step(5, "announce", 1),
            Step(3, "lag"),
            Step(0, "reach"),
            Step(15, "upgrade", 2),
            Step(9, "restart"),
        ),
        registry=False,
    ),
    "a ready pod was replaced by what an old cache knew of it": Script(
        _ONE,
        (Step(5, "fail", 3, 7), Step(1, "announce", 0, 27), Step(1, "upgrade")),
        registry=False,
        asked=False,
    ),
    "a new driver": Script(_THREE, (Step(16, "driver", 1),), works=3, plugin=True),
    "a new driver in the midst of an upgrade": Script(
        _THREE, (Step(9, "upgrade", 1), Step(4, "driver", 1)), at_once=2, works=2, most=2
    ),
    "a budget that forbids for ever": Script(
        _THREE, (Step(16, "budget"), Step(1, "driver", 1), Step(60, "restart")), works=3
    ),
    "a driver that does not become ready, and back": Script(
        _THREE, (Step(16, "driver", 1), Step(20, "driver", 2, 3), Step(60, "driver", 1)), works=2, plugin=True
    ),
    "killed between its steps": Script(
        _THREE,
        (Step(16, "driver", 1), *(Step(2, "crash", 0, number) for number in range(8))),
        works=3,
        plugin=True,
    ),
    "a person has cordoned a node": Script(
        _THREE, (Step(16, "cordon", 1), Step(1, "driver", 1), Step(50, "pause")), works=2
    ),
    "probes of a driver in use time out": Script(
        _THREE, (Step(16, "slow", 1, 30), Step(2, "driver", 1), Step(60, "restart")), works=3, plugin=True
    ),
    "the kubelet of a node with a driver in use starts again": Script(
        _THREE, (Step(16, "slow", 1, 31), Step(2, "driver", 1), Step(60, "restart")), works=3, plugin=True
    ),
    "another leads, with an old view": Script(
        _THREE,
        (Step(16, "driver", 1), Step(0, "standby"), Step(3, "standby", 0, 3), Step(6, "pause")),
        works=3,
    ),
}
"""What upgrades are like. A script that shows a bug comes here, under the name of what went wrong."""
