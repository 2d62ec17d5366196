"""Measure many nodes that come up at once against one registry: compiles, requests, bytes, times.

    .venv/bin/python scripts/bench_registry.py [--nodes 1000] [--processes 3] [--compile 5] [--module-mib 0]

Real: `obtain`, the registry (Debian's docker-registry on loopback, TLS, login), signatures, stores on tmpfs.
Not: the compiler (a fake make that takes as long as --compile says), the API server (a stand-in that keeps
Leases), and a machine for each node: all of them share this one, so times tell of it, not of a cluster.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "tests")]

from many_nodes import HEAD, run_nodes  # noqa: E402


def main() -> int:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--compile", type=float, default=5.0, help="seconds that make takes")
    parser.add_argument("--module-mib", type=int, default=0, help="MiB more of the module, of noise")
    parser.add_argument("--real-programs", action="store_true", help="zstd and openssl for each node, too")
    given = parser.parse_args()
    print(HEAD)
    wrong = 0
    for lease, most in ((True, 1), (False, 3)):
        with tempfile.TemporaryDirectory() as root:
            outcome = run_nodes(
                Path(root),
                given.nodes,
                lease=lease,
                processes=given.processes,
                compile_seconds=given.compile,
                remember=not given.real_programs,
                module_size=given.module_mib * 2**20,
            )
        print(outcome.row(), flush=True)
        for error in outcome.errors:
            print(f"bench_registry: error: {error}", file=sys.stderr)
        wrong += outcome.compiles > most or bool(outcome.errors)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
