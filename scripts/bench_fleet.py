"""How long `fleet plan` takes for a large cluster, from process start, and in how much memory.

    .venv/bin/python scripts/bench_fleet.py [--nodes 10000] [--rounds 3]

Prints the row of docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Tuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from cluster_objects import imagestream  # noqa: E402
from large_cluster import KERNELS, write_nodes  # noqa: E402


def main() -> None:
    """The row."""
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
    times, memory = sorted(each[0] for each in found), max(each[1] for each in found)
    every = ", ".join(f"{each:.2f}" for each in times)
    what = f"`fleet plan`, {given.nodes} nodes of {len(KERNELS)} versions ({size} MiB of JSON)"
    print(f"| {what} | {statistics.median(times):.2f} | {every} | {memory} |")


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
