"""`peermem` as its container and Kubernetes start it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Iterator

import pytest
from cli_runs import cli, environment

from nvdriver_build.loader.devices import mellanox_present
from nvdriver_build.loader.host import Host


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`peermem reload`, once it has said something."""
    if mellanox_present(Host()):
        pytest.skip("this machine has a Mellanox device: nothing is loaded on it for a test")
    argv = [sys.executable, "-m", "nvdriver_build", "peermem", "reload"]
    log = tmp_path / "log"
    with log.open("w") as file, subprocess.Popen(argv, env=environment(tmp_path), stderr=file) as process:
        until = time.monotonic() + 30
        while not log.stat().st_size and time.monotonic() < until:
            time.sleep(0.05)
        yield process
        process.kill()
    assert "Traceback" not in log.read_text()
    assert "no Mellanox device on this node" in log.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_reload_stays_until_a_signal(keeper: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """With nothing to load it stays, and a signal ends it within 2 s, never with 0."""
    assert keeper.poll() is None
    keeper.send_signal(number)
    assert keeper.wait(timeout=2) == 128 + number


def test_probe_is_light(tmp_path: Path) -> None:
    """It answers in one line, well under a second."""
    before = os.times()
    done = cli(tmp_path, "peermem", "probe")
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    assert used < 1, "seconds of processor time, which a busy machine does not lengthen much"
    assert len(done.stdout.splitlines()) == 1
    loaded = Path("/sys/module/mlx5_core/initstate").exists()
    assert done.returncode == int(loaded and not Path("/sys/module/nvidia_peermem/initstate").exists())


def test_wrong_settings_are_told(tmp_path: Path) -> None:
    """A switch that is neither true nor false ends it with 2 and a hint."""
    done = cli(tmp_path, "peermem", "reload", USE_HOST_MOFED="maybe")
    assert done.returncode == 2
    assert "USE_HOST_MOFED is 'maybe'" in done.stderr
    assert "hint: it takes true or false" in done.stderr
