"""Answers that are no errors reach the shell as exit codes, too: click itself catches an Exit."""

from __future__ import annotations

from pathlib import Path

from cli_runs import cli


def test_failed_probe_exits_with_1(tmp_path: Path) -> None:
    """Kubernetes looks at the exit code of a probe, not at its words."""
    assert cli(tmp_path, "probe", "readiness").returncode == 1
    assert cli(tmp_path, "probe", "liveness").returncode == 0


def test_damaged_store_exits_with_17_beside_its_document(tmp_path: Path) -> None:
    """`store verify --json` prints its one document and still says by the exit code that a set is damaged."""
    (tmp_path / "store" / "sets" / ("0" * 64)).mkdir(parents=True)
    done = cli(tmp_path, "store", "verify", "--json")
    assert (done.returncode, '"problem": "module set' in done.stdout) == (17, True)
