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
    "jobs_fail",
    "unpullable",
)  # fmt: skip
_TROUBLE = ("fail", "gone", "blind", "lag", "restart", "crash", "meddle")
_PARTS = (
    (*_COMMON, "reboot", "stale", "pause"),
    (*_COMMON, *_WORLD),
    (*_COMMON, *_TROUBLE),
    (*_COMMON, *_WORLD, *_TROUBLE),
)


def scripts(part: int) -> strategies.SearchStrategy[Script]:
    """Upgrades: calm ones, in a messy cluster, with trouble of the API, and all of it."""
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
    )


REGRESSIONS: Dict[str, Script] = {}
