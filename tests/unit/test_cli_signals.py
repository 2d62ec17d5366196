"""The command line and signals: what was started is gone within 2 s."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from best_of_three import best_of_three, in_time
from cli_runs import build_words, environment
from fake_toolchain import FakeToolchain
from processes import living, nap

NAP = nap(4712)


@pytest.fixture
def rig(tmp_path: Path) -> FakeToolchain:
    return FakeToolchain.make(tmp_path)


def _start(rig: FakeToolchain, *more: str, **env: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "nvdriver_build", *map(str, build_words(rig, *more))]
    return subprocess.Popen(
        argv,
        env=environment(rig.root, rig.path, **env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _wait_for(path: Path) -> None:
    until = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < until, f"{path} did not appear"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@best_of_three
def test_a_signal_ends_build_within_2_s(rig: FakeToolchain, number: signal.Signals) -> None:
    """The whole process group of make is gone within 2 s, even where it ignores SIGTERM."""
    naps = f"trap '' TERM; sleep {NAP}; sleep {NAP}"
    rig.program("make", f"({naps}) &\n: > {rig.root}/started\n{naps}")
    process = _start(rig)
    _wait_for(rig.root / "started")
    began = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    seconds = time.monotonic() - began
    assert (process.returncode, out) == (128 + number, "")
    assert "Traceback" not in err
    assert living(NAP) == []
    assert not (rig.root / "out").exists()
    assert list((rig.root / "store" / "work").iterdir()) == []
    in_time(seconds, 2)


@best_of_three
def test_a_signal_ends_waiting_for_another_build(rig: FakeToolchain) -> None:
    """A second build of the same set waits for the first; SIGTERM ends the wait at once."""
    rig.program("make", f": > {rig.root}/started\nsleep 60")
    first = _start(rig)
    _wait_for(rig.root / "started")
    second = _start(rig)
    try:
        assert second.stderr is not None
        assert any("another process builds this set: waiting" in line for line in second.stderr)
        began = time.monotonic()
        second.terminate()
        second.communicate(timeout=30)
        seconds = time.monotonic() - began
        assert second.returncode == 128 + signal.SIGTERM
    finally:
        first.terminate()
        first.communicate(timeout=30)
    assert first.returncode == 128 + signal.SIGTERM
    in_time(seconds, 2)


def test_a_second_signal_changes_nothing(rig: FakeToolchain) -> None:
    """Impatient people press Ctrl-C twice: the end stays in order."""
    rig.program("make", f"trap '' TERM\n: > {rig.root}/started\nwhile :; do sleep 0.1; done")
    process = _start(rig)
    _wait_for(rig.root / "started")
    for _ in range(5):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, "Traceback" in err) == (128 + signal.SIGINT, False)
    assert list((rig.root / "store" / "work").iterdir()) == []
