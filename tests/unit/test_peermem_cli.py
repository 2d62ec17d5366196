"""`peermem` as its container and Kubernetes start it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Iterator

import pytest
from best_of_three import best_of_three, in_time
from cli_runs import cli, environment

from nvdriver_build.loader.devices import mellanox_present
from nvdriver_build.loader.host import Host


@contextlib.contextmanager
def keeping(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`peermem reload`, once it has said something."""
    if mellanox_present(Host()):
        pytest.skip("this machine has a Mellanox device: nothing is loaded on it for a test")
    argv = [sys.executable, "-m", "nvdriver_build", "peermem", "reload"]
    log = tmp_path / "log"
    with log.open("w") as file, subprocess.Popen(argv, env=environment(tmp_path), stderr=file) as process:
        until = time.monotonic() + 60
        while "no Mellanox device" not in log.read_text():
            assert time.monotonic() < until and process.poll() is None, log.read_text()
            time.sleep(0.05)
        yield process
        process.kill()
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@best_of_three
def test_reload_stays_until_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    """With nothing to load it stays, and a signal ends it within 2 s, never with 0."""
    with keeping(tmp_path) as keeper:
        assert keeper.poll() is None
        began = time.monotonic()
        keeper.send_signal(number)
        assert keeper.wait(timeout=60) == 128 + number
        seconds = time.monotonic() - began
    in_time(seconds, 2)


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
