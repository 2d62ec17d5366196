"""The upgrade simulator is no paper tiger: it finds each of these faults, put into planner and controller."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lightkube", reason="the extra 'fleet' is for Python 3.11 and later")

from planted_faults import FAULTS

pytestmark = pytest.mark.once
ROOT = Path(__file__).parents[2]
SCRIPTS = 1000
"""Random upgrades in which a fault has to show; most show in the first ten."""


def hunt(package: Path, scripts: int) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, str(ROOT / "tests" / "upgrade_hunt.py"), str(scripts)]
    environment = {**os.environ, "PYTHONPATH": f"{package}:{ROOT / 'tests'}", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(program, env=environment, capture_output=True, text=True, timeout=900)


def copied(place: Path) -> Path:
    shutil.copytree(
        ROOT / "nvdriver_build", place / "nvdriver_build", ignore=shutil.ignore_patterns("__pycache__")
    )
    return place


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_planted_fault_is_found(name: str, tmp_path: Path) -> None:
    """A fault shows in some of the random upgrades."""
    copied(tmp_path)
    for patch in FAULTS[name]:
        path = tmp_path / "nvdriver_build" / "fleet" / patch.file
        text = path.read_text()
        assert text.count(patch.old) == 1, f"{patch.file} has not once: {patch.old}"
        path.write_text(text.replace(patch.old, patch.new))
    found = hunt(tmp_path, SCRIPTS)
    assert found.returncode == 1, f"not found: {found.stderr[-2000:]}"
    assert "SyntaxError" not in found.stderr, found.stderr


def test_without_a_fault_nothing_is_found(tmp_path: Path) -> None:
    """The copy itself is sound: what is found is what was planted."""
    found = hunt(copied(tmp_path), 60)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")
