"""The bundle of scripts/bundle, and the Pythons of this machine that it may meet."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Dict, List

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / "scripts/bundle.py"
VERSIONS = ("3.6", "3.8", "3.9", "3.10", "3.11", "3.12", "3.13", "3.14")


def make_bundle(output: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the program; what it makes lies in `output`."""
    argv = [sys.executable, str(PROGRAM), "--output", str(output)]
    env = {**os.environ, **environment}
    return subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=300)


def pythons() -> Dict[str, str]:
    """The interpreters by version, from pyenv or PATH; no virtual environment's."""
    found = {version: _python(version) for version in VERSIONS}
    return {version: path for version, path in found.items() if path}


def _python(version: str) -> str:
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    candidates: List[str] = [str(path) for path in sorted(root.glob(f"{version}.*/bin/python"))]
    system = shutil.which(f"python{version}", path="/usr/bin:/usr/local/bin")
    return next(iter([*candidates, *([system] if system else [])]), "")
