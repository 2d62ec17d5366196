"""The command line run as people run it: in a process and an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List

from fake_toolchain import FakeToolchain


def environment(root: Path, path: str = os.environ["PATH"], **more: str) -> Dict[str, str]:
    """Only what a command needs; everything that it may write lies below `root`."""
    return {
        "PATH": path,
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "NVDRIVER_STORE": str(root / "store"),
        "NVDRIVER_RUN_DIR": str(root / "run"),
        **more,
    }


def cli(
    root: Path, *words: object, path: str = os.environ["PATH"], **more: str
) -> subprocess.CompletedProcess[str]:
    """Run the command as people do; a traceback fails the test whatever else it is about."""
    argv = [sys.executable, "-m", "nvdriver_build", *map(str, words)]
    done = subprocess.run(
        argv, env=environment(root, path, **more), capture_output=True, text=True, errors="replace",
        check=False, timeout=60, cwd=root,
    )  # fmt: skip
    assert "Traceback" not in done.stderr + done.stdout
    assert "Exception ignored" not in done.stderr
    return done


def build_words(rig: FakeToolchain, *more: object) -> List[object]:
    return ["build", "--source", rig.source, "--headers", rig.headers, "--output", rig.root / "out", *more]


def document(done: subprocess.CompletedProcess[str]) -> Any:
    """The one JSON document on standard output."""
    found = json.loads(done.stdout)
    assert found["schema"] == 1
    return found
