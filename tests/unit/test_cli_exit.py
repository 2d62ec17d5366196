"""Answers that are no errors reach the shell as exit codes, too: click itself catches an Exit."""

from __future__ import annotations

from pathlib import Path
from typing import List

import pytest
from cli_runs import cli
from trees import write_tree


def test_failed_probe_exits_with_1(tmp_path: Path) -> None:
    """Kubernetes looks at the exit code of a probe, not at its words."""
    assert cli(tmp_path, "probe", "readiness").returncode == 1
    assert cli(tmp_path, "probe", "liveness").returncode == 0


def test_damaged_store_exits_with_17_beside_its_document(tmp_path: Path) -> None:
    """`store verify --json` prints its one document and still says by the exit code that a set is damaged."""
    (tmp_path / "store" / "sets" / ("0" * 64)).mkdir(parents=True)
    done = cli(tmp_path, "store", "verify", "--json")
    assert (done.returncode, "is no module set: it has no manifest.json" in done.stdout) == (17, True)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["verify", "x", "--running", "--kernel-release", "6.1"], "--kernel-release chooses among headers"),
        (["verify", "x", "--running", "--headers", "h"], "one kernel to compare with is needed"),
        (["store", "prune", "--larger-than", "nan"], "'nan' is not a valid integer"),
        (["status", "--log-format", "xml"], "'xml' is not one of console, json"),
    ],
)
def test_wrong_usage_exits_with_2(tmp_path: Path, words: List[str], told: str) -> None:
    """Options that do not go together, and values that are none."""
    done = cli(tmp_path, *words)
    assert (done.returncode, told in done.stderr) == (2, True), done.stderr


def test_a_wrong_setting_for_the_log_withdraws_readiness_too(tmp_path: Path) -> None:
    """As every wrong setting: what a killed `run` had announced must not stay, and its name is told."""
    write_tree(tmp_path / "run/validations", {"driver-ready": "", ".driver-ctr-ready": ""})
    done = cli(tmp_path, "run", NVDRIVER_LOG_FORMAT="JSON")
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, "error: NVDRIVER_LOG_FORMAT is 'JSON'")
    assert list((tmp_path / "run/validations").iterdir()) == []
