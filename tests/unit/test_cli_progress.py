"""How far a build is: lines where there is no terminal, and the status."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Dict, List

import pytest
from structlog.testing import capture_logs

from nvdriver_build.cli.progress import BuildProgress
from nvdriver_build.node.status import Reporter
from nvdriver_build.readiness import Readiness


@pytest.fixture(autouse=True)
def piped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard error that is no terminal."""
    monkeypatch.setattr("sys.stderr", io.StringIO())


def lines(*steps: tuple[int, int, float]) -> List[Dict[str, Any]]:
    with capture_logs() as logs, BuildProgress() as progress:
        for step in steps:
            progress(*step)
    return [{name: line[name] for name in ("done", "total", "elapsed", "left")} for line in logs]


def test_a_line_says_done_total_elapsed_and_an_estimate() -> None:
    """A quarter of the steps in 10 s leaves 30 s; at the end none."""
    assert lines((25, 100, 10.0), (100, 100, 41.6)) == [
        {"done": 25, "total": 100, "elapsed": 10, "left": 30},
        {"done": 100, "total": 100, "elapsed": 42, "left": 0},
    ]


def test_a_line_comes_every_five_seconds() -> None:
    """However often it is told, four times a second say."""
    told = lines(*((step, 100, step / 4) for step in range(1, 81)))
    assert [line["elapsed"] for line in told] == [0, 5, 10, 15]


def test_a_build_that_begins_anew_is_told_from_its_start() -> None:
    """The toolkit's end was restarted: its seconds begin at 0 again, and are not waited for."""
    told = lines((90, 100, 60.0), (1, 100, 0.5), (2, 100, 1.0), (10, 100, 5.6))
    assert [line["elapsed"] for line in told] == [60, 0, 6]


def test_the_status_of_a_build_that_begins_anew(tmp_path: Path) -> None:
    """It changes once a second, and not only when the seconds are as many as before again."""
    report = Reporter(Readiness(tmp_path))
    for step in ((90, 100, 60.0), (91, 100, 60.5), (1, 100, 0.5), (2, 100, 0.7)):
        report.progress(*step)
    assert report.status.progress == {"done": 1, "total": 100, "elapsed": 0.5}


def test_nothing_is_told_before_a_step_is_done() -> None:
    """There is no estimate yet; the first line comes with the first step."""
    assert lines((0, 100, 0.1), (0, 100, 7.0)) == []
    assert [line["done"] for line in lines((0, 100, 0.1), (0, 100, 7.0), (1, 100, 7.25))] == [1]


def test_a_terminal_gets_a_bar_and_no_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar is drawn on standard error."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    assert lines((25, 100, 10.0)) == []
    assert "building" in screen.getvalue()
