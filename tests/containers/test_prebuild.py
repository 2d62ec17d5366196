"""`prebuild` in a Driver Toolkit container, for its own kernel and for that of another toolkit, published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Callable, Dict

from bundled import ROOT, make_bundle
from keys import make_identity
from podman_rig import Podman
from prebuilt_taker import take
from sample_driver import make_sample_driver
from vm.kit import KitKernel


def test_prebuild(
    podman: Podman, toolkit: Callable[[str], Path], kernel_a: KitKernel, kernel_b: KitKernel, tmp_path: Path
) -> None:
    """Without network, one call serves both kernels; a node without a compiler takes its set from there."""
    for name in ("store", "shared"):
        (tmp_path / name).mkdir()
    source = make_sample_driver(tmp_path / "sample", kind="open")
    keys = make_identity(tmp_path / "keys", "Build key")
    assert make_bundle(tmp_path / "bundle").returncode == 0
    mounts: Dict[Path, str] = {
        source: "/source:ro",
        keys.key.parent: "/keys:ro",
        toolkit("wrong-kernel"): "/toolkit-b:ro",
        tmp_path / "store": "/store",
        tmp_path / "shared": "/shared",
        tmp_path / "bundle/site-packages": "/usr/lib/nvdriver-build/site-packages:ro",
        ROOT / "container/nvdriver-build": "/usr/local/bin/nvdriver-build:ro",
    }
    words = [word for place, inside in mounts.items() for word in ("-v", f"{place}:{inside}")]
    settings = {
        "NVDRIVER_STORE": "/store",
        "NVDRIVER_REGISTRY": "/shared",
        "NVDRIVER_SIGN_KEY": "/keys/Build key.key",
        "NVDRIVER_SIGN_CERT": "/keys/Build key.pem",
    }
    words += [word for name, value in settings.items() for word in ("-e", f"{name}={value}")]
    command = "prebuild --json --source /source --headers / --headers /toolkit-b"
    done = podman.run(
        *words,
        *("-e", "PATH=/usr/local/bin:/usr/sbin:/usr/bin", "--rootfs", f"{toolkit('fits')}:O"),
        *("/usr/local/bin/nvdriver-build", *command.split()),
    )
    rows = json.loads(done.stdout)["sets"]
    assert [(row["kernel_release"], row["from"], row["published"]) for row in rows] == [
        (kernel_a.release, "built", True),
        (kernel_b.release, "built", True),
    ]
    for kernel, row in zip((kernel_a, kernel_b), rows):
        taken = take(tmp_path, source, kernel, keys.file)
        assert (taken["from"], taken["key"]) == ("registry", row["key"])
    for path in (*tmp_path.glob("store/logs/*"), *tmp_path.glob("shared/**/manifest.json")):
        assert "PRIVATE KEY" not in path.read_text()
