"""The command line and signals: what was started is gone within 2 s."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import List

import psutil
import pytest
from cli_runs import build_words, environment
from fake_toolchain import FakeToolchain


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


def _alive(mark: str) -> List[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if mark in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_build_within_2_s(rig: FakeToolchain, number: signal.Signals) -> None:
    """The whole process group of make is gone within 2 s, even where it ignores SIGTERM."""
    nap = f"4712.{os.getpid()}"
    naps = f"trap '' TERM; sleep {nap}; sleep {nap}"
    rig.program("make", f"({naps}) &\n: > {rig.root}/started\n{naps}")
    process = _start(rig)
    _wait_for(rig.root / "started")
    began = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - began < 2
    assert (process.returncode, out) == (128 + number, "")
    assert "Traceback" not in err
    assert _alive(nap) == []
    assert not (rig.root / "out").exists()
    assert list((rig.root / "store" / "work").iterdir()) == []


def test_a_signal_ends_waiting_for_another_build(rig: FakeToolchain) -> None:
    """A second build of the same set waits for the first; SIGTERM ends the wait at once."""
    rig.program("make", f": > {rig.root}/started\nsleep 60")
    first = _start(rig)
    _wait_for(rig.root / "started")
    second = _start(rig)
    try:
        time.sleep(1.5)
        assert second.poll() is None
        began = time.monotonic()
        second.terminate()
        second.communicate(timeout=30)
        assert (second.returncode, time.monotonic() - began < 2) == (128 + signal.SIGTERM, True)
    finally:
        first.terminate()
        first.communicate(timeout=30)
    assert first.returncode == 128 + signal.SIGTERM


def test_a_second_signal_changes_nothing(rig: FakeToolchain) -> None:
    """Impatient people press Ctrl-C twice: the end stays in order."""
    rig.program("make", f"trap '' TERM\n: > {rig.root}/started\nwhile :; do sleep 0.1; done")
    process = _start(rig)
    _wait_for(rig.root / "started")
    for _ in range(5):
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, "Traceback" in err) == (128 + signal.SIGINT, False)
    assert list((rig.root / "store" / "work").iterdir()) == []
