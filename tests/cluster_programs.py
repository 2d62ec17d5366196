"""`fleet` as people run it, in processes of its own, against the cluster of a kubeconfig."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any, Dict

import yaml
from attrs import asdict
from cluster_rig import wait_for

from nvdriver_build.fleet.manifests import Driver

FLEET = (sys.executable, "-m", "nvdriver_build", "fleet")
_SAMPLE = re.compile(r'^nvdriver_fleet_api_requests_total\{kind="(\w+)",status="(\d+)",verb="(\w+)"\} (\S+)')


def settings(driver: Driver, path: Path) -> Path:
    """A settings file of this driver."""
    told = {name: value for name, value in asdict(driver).items() if value not in (None, (), {}, False)}
    plain: Dict[str, Any] = {
        name: list(value) if isinstance(value, tuple) else value for name, value in told.items()
    }
    path.write_text(yaml.safe_dump(plain))
    return path


def fleet(kubeconfig: Path, *words: object, code: int = 0) -> str:
    """What it prints; it has to end with this exit code and without a traceback."""
    argv = [*FLEET, *map(str, words), "--kubeconfig", str(kubeconfig)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert "Traceback" not in done.stderr
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


class Watch:
    """A `fleet watch`, until `end` or `kill`. What it logged is in `log`."""

    def __init__(self, kubeconfig: Path, settings: Path, log: Path) -> None:
        self.log, self.address = log, f"127.0.0.1:{_free_port()}"
        words = ["watch", "--settings", str(settings), "--listen", self.address]
        argv = [*FLEET, *words, "--kubeconfig", str(kubeconfig), "--log-format", "json"]
        with log.open("wb") as file:
            self.process = subprocess.Popen(argv, stderr=file, stdout=file, env=dict(os.environ))

    def __enter__(self) -> Watch:
        wait_for(self._ready)
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.end()
        assert "Traceback" not in self.log.read_text()

    def end(self) -> None:
        """As kubelets end it."""
        self.process.send_signal(signal.SIGTERM)
        try:
            assert self.process.wait(30) == 128 + signal.SIGTERM
        finally:
            self.kill()

    def kill(self) -> None:
        """As a node ends it that loses its power."""
        self.process.kill()
        self.process.wait()

    def read(self, path: str) -> str:
        """What it answers."""
        with urllib.request.urlopen(f"http://{self.address}/{path}", timeout=10) as answer:
            return str(answer.read().decode())

    def leads(self) -> bool:
        """Whether it is the one that writes."""
        return "nvdriver_fleet_leader 1.0" in self.read("metrics")

    def requests(self) -> Counter[str]:
        """Its requests to the API: `list nodes 200` and how often."""
        found: Counter[str] = Counter()
        for line in self.read("metrics").splitlines():
            sample = _SAMPLE.match(line)
            if sample:
                kind, status, verb, count = sample.groups()
                found[f"{verb} {kind} {status}"] += int(float(count))
        return found

    def _ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return self.read("readyz") == "ok\n"
        except OSError:
            return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
