"""Random upgrades through the simulator: what holds of every one of them.

`UPGRADES=100000` says how many; without it 5000 in CI, and 300 at a desk.
"""

from __future__ import annotations

import logging
import os
from typing import Iterator

import pytest

pytest.importorskip("lightkube", reason="the extra 'fleet' is for Python 3.11 and later")

import structlog
from hypothesis import given, settings
from upgrade_scripts import SCENARIOS, scripts
from upgrade_sim import Script, run

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
