#!/usr/bin/env python3
"""API requests of the controller in an upgrade of many nodes, counted in the upgrade simulator.

    .venv/bin/python scripts/bench_upgrade.py [NODES]

Watches are counted as what they are on a real API: opened once for each follower, and again every 120 s. A
tick stands for 30 s.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from pathlib import Path

import structlog

sys.path[:0] = [str(Path(__file__).parents[1] / "tests"), str(Path(__file__).parents[1])]

from upgrade_sim import RELEASES, Script, Simulation, Step  # noqa: E402 - found by the path above

from nvdriver_build.fleet.controller.client import WATCH_SECONDS  # noqa: E402

TICK_SECONDS = 30


def main(nodes: int) -> None:
    """An upgrade announced, prebuilt and made, a twentieth of the nodes at once."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    script = Script(
        nodes=(("x86_64", "late"),) * nodes,
        steps=(Step(8, "announce", 1), Step(8, "reach"), Step(160, "pause")),
        at_once=max(1, nodes // 20),
        down_for=6,
        asked=False,
    )
    began = time.perf_counter()
    done = Simulation(script).run()
    requests = Counter(each for each in done.api.requests if each[0] != "watch")
    followed = len(done.controller.followers)
    ticks = done.world.now
    watches = followed * (1 + ticks * TICK_SECONDS // WATCH_SECONDS)
    version = done.world.machines["node-0"].release.version
    sys.stdout.write(
        f"{nodes} nodes from {RELEASES[0].version} to {version}, {ticks} ticks of {TICK_SECONDS} s\n"
    )
    for (verb, plural), count in sorted(requests.items()):
        sys.stdout.write(f"  {verb} {plural}: {count}\n")
    sys.stdout.write(f"  watch, {followed} at a time: {watches}\n")
    sys.stdout.write(f"  in all: {sum(requests.values()) + watches}\n")
    sys.stdout.write(f"simulated in {time.perf_counter() - began:.1f} s\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
