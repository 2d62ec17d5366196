"""The real source, unpacked and built once a machine: other tests take the set from a store, as users do."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict

import filelock
from attrs import frozen
from vm.kit import KitKernel

PACKAGE = Path(__file__).parents[1] / "nvdriver_build"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nvdriver-build" / "tests"
MAKERS = ("build/*.py", "obtain/making.py", "sets/*.py", "source.py")
"""What decides how a set is built: a change of any of it builds anew."""


@frozen
class RealBuild:
    """A set of the real driver: its source tree, the store it is in, a copy, and what `build --json` said."""

    source: Path
    store: Path
    folder: Path
    document: Dict[str, Any]


def unpacked(tarball: Path) -> Path:
    """Debian's source tarball as a tree, unpacked once; the kernel tree in it."""
    name = hashlib.sha256(f"{tarball.name} {tarball.stat().st_size}".encode()).hexdigest()[:16]
    place = CACHE / "sources" / name
    place.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{place}.lock"):
        if not place.exists():
            with tempfile.TemporaryDirectory(dir=place.parent) as private:
                subprocess.run(["tar", "-C", private, "-xf", str(tarball)], check=True)
                (Path(private) / "modules").rename(place)
    return next(path for path in place.iterdir() if path.is_dir())


def build_real(tarball: Path, kernel: KitKernel) -> RealBuild:
    """Build through the command line, or take what an earlier test has built with the same code."""
    source = unpacked(tarball)
    place = CACHE / "builds" / _code_digest()
    place.mkdir(parents=True, exist_ok=True)
    store, folder = place / "store", place / f"{source.name}-{kernel.release}"
    argv = [sys.executable, "-m", "nvdriver_build", "build", "--json", "--source", str(source)]
    argv += ["--headers", str(kernel.headers), "--output", str(folder)]
    with filelock.FileLock(f"{folder}.lock"):
        finished = subprocess.run(
            argv, stdout=subprocess.PIPE, check=True, env={**os.environ, "NVDRIVER_STORE": str(store)}
        )
    return RealBuild(source, store, folder, json.loads(finished.stdout))


def _code_digest() -> str:
    files = sorted(path for pattern in MAKERS for path in PACKAGE.glob(pattern))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]
