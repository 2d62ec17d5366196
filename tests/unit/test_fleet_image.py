"""What the controller's image holds runs on each Python that it may have, without anything else."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from bundled import ROOT, pythons
from cluster_objects import V1, imagestream, node

MODERN = ("3.11", "3.12", "3.13")
MAKE = """
import sys
from pathlib import Path
import bundle
bundle.fleet(Path(sys.argv[1]), Path(sys.argv[2]), bundle.OLDEST_ZIP)
"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the image, laid out as scripts/build-fleet-image does it."""
    folder = tmp_path_factory.mktemp("fleet") / "site-packages"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    argv = [sys.executable, "-c", MAKE, str(folder), str(cache / "nvdriver-build/wheels")]
    subprocess.run(argv, check=True, env={**os.environ, "PYTHONPATH": f"{ROOT}/scripts:{ROOT}"})
    return folder


@pytest.mark.once
def test_the_controllers_packages(packages: Path, tmp_path: Path) -> None:
    """`fleet plan` with YAML, and what talks to an API: no package of the system's is needed."""
    (tmp_path / "nodes").write_text(json.dumps({"kind": "List", "items": [node("a")]}))
    (tmp_path / "stream").write_text(json.dumps(imagestream(V1)))
    (tmp_path / "settings").write_text("image: quay.io/example/driver\n")
    files = ["--nodes", tmp_path / "nodes", "--imagestream", tmp_path / "stream"]
    there = {version: path for version, path in pythons().items() if version in MODERN}
    if not there:
        pytest.skip("no Python of 3.11 to 3.13 beside the virtual environment's")
    for python in there.values():
        command = [python, "-I", "-S", packages / "nvdriver_bundle.py", "fleet"]
        rendered = run(*command, "render", "--settings", tmp_path / "settings", *files)
        assert rendered.returncode == 0 and "kind: DaemonSet" in rendered.stdout, rendered.stderr
        nowhere = run(*command, "watch", "--image", "x", "--kubeconfig", tmp_path / "none")
        assert nowhere.returncode == 20 and "Traceback" not in nowhere.stderr, nowhere.stderr


def run(*argv: object) -> subprocess.CompletedProcess[str]:
    """Without anything of this environment, as in the image."""
    given = {"PATH": "/usr/bin:/bin"}
    return subprocess.run(
        list(map(str, argv)), env=given, capture_output=True, text=True, check=False, timeout=60
    )


def test_the_lock_has_what_the_extra_asks_for() -> None:
    """The versions are those that the tests run with."""
    tested = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    locked = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "container/fleet.lock").read_text(), re.MULTILINE))
    assert {"PyYAML", "lightkube", "prometheus_client"} <= set(locked)
    assert locked == {name: tested[name] for name in locked}
