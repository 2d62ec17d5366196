"""How long `fleet plan` takes for a large cluster, from process start, and `fleet watch` for one change.

    .venv/bin/python scripts/bench_fleet.py [--nodes 10000] [--rounds 3]

Prints the rows of docs/performance.md.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, Tuple

import structlog

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from api_store import Store  # noqa: E402
from cluster_objects import GPU, imagestream, node  # noqa: E402
from large_cluster import KERNELS, write_nodes  # noqa: E402
from memory_api import MemoryApi, path_of  # noqa: E402

from nvdriver_build.fleet.controller.following import followers  # noqa: E402
from nvdriver_build.fleet.controller.kinds import IMAGE_STREAM, NODE  # noqa: E402
from nvdriver_build.fleet.controller.rounds import Rounds  # noqa: E402
from nvdriver_build.fleet.controller.view import View  # noqa: E402
from nvdriver_build.fleet.manifests import Driver  # noqa: E402


def main() -> None:
    """The rows."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-fleet-") as folder:
        nodes, stream = Path(folder, "nodes.json"), Path(folder, "stream.json")
        write_nodes(nodes, given.nodes)
        stream.write_text(json.dumps(imagestream(*KERNELS)))
        size = nodes.stat().st_size >> 20
        found = [measured(nodes, stream) for _ in range(given.rounds)]
    what = f"`fleet plan`, {given.nodes} nodes of {len(KERNELS)} versions ({size} MiB of JSON)"
    row(what, [each[0] for each in found], str(max(each[1] for each in found)), "")
    times, requests = one_change(given.nodes, given.rounds)
    row(f"`fleet watch`, one of {given.nodes} nodes runs another version", times, "", requests)


def row(what: str, times: List[float], memory: str, requests: str) -> None:
    """One of the table."""
    every = ", ".join(f"{each:.2f}" for each in times)
    print(f"| {what} | {statistics.median(times):.2f} | {every} | {memory} | {requests} |")


def one_change(count: int, rounds: int) -> Tuple[List[float], str]:
    """Seconds from what a watch tells to the end of the round, on an API in memory; and its requests."""
    store, kernels = Store(), list(KERNELS.items())
    nodes: List[Dict[str, Any]] = []
    for number in range(count):
        version, kernel = kernels[number % len(kernels)]
        nodes.append(node(f"node-{number}", version, kernel, labels=GPU))
        store.put(path_of(NODE), nodes[-1])
    store.put(path_of(IMAGE_STREAM), imagestream(*KERNELS))
    api = MemoryApi(store)
    view = View("nvdriver-build", lambda: None)
    following = followers(api, view, "nvdriver-build")
    controller = Rounds(api, view, Driver(image="quay.io/example/driver@sha256:0"))
    for _ in range(3):  # reads all, writes labels and DaemonSets, and sees that they are there
        for each in following:
            each.once()
        controller.run()
    times = []
    for number in range(rounds):
        moved = copy.deepcopy(store.get(path_of(NODE), "", f"node-{number}"))
        version, kernel = kernels[(number + 1) % len(kernels)]
        moved["status"] = node("x", version, kernel)["status"]
        store.put(path_of(NODE), moved)
        api.requests.clear()
        began = time.monotonic()
        for each in following:
            each.once()
        outcome = controller.run()
        times.append(time.monotonic() - began)
        assert [each.code for each in outcome.done] == ["NodeLabelled"]
    made = [f"{verb} {plural}" for verb, plural in api.requests if verb != "watch"]
    return times, ", ".join(made)


def measured(nodes: Path, stream: Path) -> Tuple[float, int]:
    """Seconds, and MiB at most."""
    argv = [sys.executable, "-m", "nvdriver_build", "fleet", "plan", "--json"]
    argv += ["--nodes", str(nodes), "--imagestream", str(stream)]
    began = time.monotonic()
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return time.monotonic() - began, usage.ru_maxrss >> 10


if __name__ == "__main__":
    main()
