"""Damaged modules of a real kernel package are refused by ModuleFormatError, or still sound."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import List

import pytest
from elf_mutations import Mutation, damaged, mutations, read_or_refuse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vm.kit import KitKernel

pytestmark = pytest.mark.real

SEEDS = 40
SMALL = 48 * 1024


@pytest.fixture(scope="module")
def seeds(kernel_a: KitKernel) -> List[bytes]:
    """Small modules of all over the package, signed and full of exports or not."""
    assert kernel_a.modules is not None
    small = sorted(path for path in kernel_a.modules.rglob("*.ko") if path.stat().st_size < SMALL)
    return [path.read_bytes() for path in small[:: max(len(small) // SEEDS, 1)]]


@pytest.mark.parametrize("part", range(4))
def test_mutations(tmp_path: Path, seeds: List[bytes], part: int) -> None:
    """Thousands of damaged modules: none brings another error, none takes long."""
    path = tmp_path / "sample.ko"

    @settings(
        max_examples=1000,
        deadline=timedelta(seconds=30),
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(seed=st.sampled_from(seeds[part::4]), damage=mutations())
    def examine(seed: bytes, damage: List[Mutation]) -> None:
        path.write_bytes(damaged(seed, damage))
        read_or_refuse(path)

    examine()
