"""A machine that builds nothing, and takes what a prebuild has published."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from vm.kit import KitKernel


def take(root: Path, source: Path, kernel: KitKernel, certificate: Path) -> Any:
    """What a machine with nothing but the certificate gets, by a PATH that has no make and no compiler."""
    bare = root / "bin"
    bare.mkdir(exist_ok=True)
    if not (bare / "openssl").exists():
        (bare / "openssl").symlink_to("/usr/bin/openssl")
    argv = [sys.executable, "-m", "nvdriver_build", "build", "--json", "--source", str(source)]
    argv += ["--headers", str(kernel.headers), "--output", str(root / f"out-{kernel.release}")]
    environment = {
        **os.environ,
        "PATH": str(bare),
        "NVDRIVER_STORE": str(root / f"node-{kernel.release}"),
        "NVDRIVER_REGISTRY": str(root / "shared"),
        "NVDRIVER_SIGN_CERT": str(certificate),
    }
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
