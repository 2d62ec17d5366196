"""A store that a container reaches by the root of another process only: the host's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_toolchain import FakeToolchain

MAKE_THAT_TRUSTS_ITS_FOLDER = """\
for word; do [ "$last" != -C ] || tree=$word; last=$word; done
cd "$tree" && cd "$(/bin/pwd -P)" && [ -e Kbuild ] || exit 2
cp {modules}/*.ko .
"""


def test_build_into_the_hosts_store(tmp_path: Path) -> None:
    """make finds its folder by name, which it could not in a store that is in another mount namespace."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a mount namespace")
    rig = FakeToolchain.make(tmp_path / "rig")
    rig.program("make", MAKE_THAT_TRUSTS_ITS_FOLDER.format(modules=rig.root / "modules"))
    host = tmp_path / "host"
    host.mkdir()
    build = f"{sys.executable} -m nvdriver_build build --source {rig.source} --headers {rig.headers}"
    script = f"mount -t tmpfs none {host} && exec {build} --output {tmp_path}/set"
    environment = {"PATH": rig.path, "NVDRIVER_STORE": f"/proc/{os.getpid()}/root{host}/store"}
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "set" / "manifest.json").is_file()
    assert len(list((host / "store" / "sets").iterdir())) == 1, "published where the host sees it"
