"""The controller's image: runs as any user, on a root file system that it cannot write to."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from bundled import ROOT
from cluster_objects import V1, imagestream, node
from podman_rig import Podman

from nvdriver_build.fleet.manifests import Driver, controller_objects

IMAGE = "localhost/nvdriver-build-tests/fleet:test"


def test_the_controllers_image(podman: Podman, base_image: str, tmp_path: Path) -> None:
    """As its Deployment has it: a user that nobody knows, no capabilities, nothing writable but /tmp. It
    plans, and it starts to watch: what it lacks then is a cluster.
    """
    program = [sys.executable, str(ROOT / "scripts/build_fleet_image.py"), "--builder", str(podman.program)]
    words = [*program, "--base", base_image, "--tag", IMAGE]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    try:
        (tmp_path / "nodes").write_text(json.dumps({"kind": "List", "items": [node("a")]}))
        (tmp_path / "stream").write_text(json.dumps(imagestream(V1)))
        tmp_path.chmod(0o755)
        made = controller_objects(Driver("x", fleet_image=IMAGE), {})
        (container,) = made[1]["spec"]["template"]["spec"]["containers"]
        (tmp_path / "settings.json").write_text(made[0]["data"]["settings.json"])
        limits = ["--user", "1000660000:0", "--cap-drop=all", "--security-opt=no-new-privileges"]
        limits += ["--read-only", "--read-only-tmpfs=false", "--tmpfs", "/tmp", "--pull=never"]
        mounts = ["-v", f"{tmp_path}:/etc/nvdriver-build/fleet:ro"]
        files = ["--nodes", "/etc/nvdriver-build/fleet/nodes"]
        files += ["--imagestream", "/etc/nvdriver-build/fleet/stream"]
        planned = podman.run(*limits, *mounts, IMAGE, "fleet", "plan", "--json", *files)
        assert [each["state"] for each in json.loads(planned.stdout)["groups"]] == ["can build"]
        entry, *command = container["command"]
        watch = ["--entrypoint", entry, IMAGE, *command, *container["args"]]
        failed = podman.run(*limits, *mounts, *watch, check=False)
        assert failed.returncode == 20 and "Traceback" not in failed.stderr, failed.stderr
    finally:
        podman("rmi", "-f", IMAGE, check=False)
