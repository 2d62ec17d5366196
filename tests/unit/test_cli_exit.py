"""Answers that are no errors reach the shell as exit codes, too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nvdriver_build.cli import main


def _exit_code(*words: str) -> object:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    return ended.value.code


def test_failed_probe_exits_with_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubernetes looks at the exit code of a probe, not at its words."""
    monkeypatch.setenv("NVDRIVER_RUN_DIR", str(tmp_path))
    assert _exit_code("probe", "readiness") == 1
    assert _exit_code("probe", "liveness") == 0


def test_damaged_store_exits_with_17_beside_its_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`store verify --json` prints its one document and still says by the exit code that a set is damaged."""
    (tmp_path / "sets" / ("0" * 64)).mkdir(parents=True)
    monkeypatch.setenv("NVDRIVER_STORE", str(tmp_path))
    assert _exit_code("store", "verify", "--json") == 17
    assert json.loads(capsys.readouterr().out)["sets"][0]["problem"]


def test_wrong_usage_is_a_document_too(capsys: pytest.CaptureFixture[str]) -> None:
    """With --json wrong usage is told on standard output as every other error is."""
    assert _exit_code("verify", "--json") == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["code"], error["kind"]) == (2, "UsageError")
    assert "PATHS" in error["message"]
