"""Many nodes that come up at once against one real registry: one compiles, the others take its set."""

from __future__ import annotations

from pathlib import Path

import pytest
from many_nodes import run_nodes

NODES = 150
"""What fits into half a minute of two busy cores; scripts/bench_registry.py does it with 1,000."""


@pytest.mark.once
@pytest.mark.parametrize(("lease", "most"), [(True, 1), (False, 3)], ids=["Lease", "marker"])
def test_one_builds_for_all(lease: bool, most: int, tmp_path: Path) -> None:
    """Each node has the set in the end: exactly one has compiled it with a Lease, at most three without."""
    outcome = run_nodes(tmp_path, NODES, lease=lease, processes=2, compile_seconds=1.0)
    assert outcome.errors == []
    assert sum(outcome.origins.values()) == NODES
    assert 1 <= outcome.compiles <= most
    assert outcome.origins["built"] == outcome.compiles
    assert set(outcome.requests) <= {"GET", "HEAD", "POST", "PUT"}
