"""`support-bundle`: what a support case needs, and no secrets."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path
from typing import Dict

from cli_runs import cli
from fake_toolchain import FakeToolchain
from trees import write_tree

SECRET = "hunter2-do-not-tell"


def bundle(root: Path, **settings: str) -> Dict[str, bytes]:
    done = cli(root, "support-bundle", "--output", "case.tar.gz", **settings)
    assert done.returncode == 0, done.stderr
    with tarfile.open(root / "case.tar.gz") as tar:
        found = {member.name: tar.extractfile(member) for member in tar}
        content = {name: file.read() for name, file in found.items() if file is not None}
    assert done.stdout == f"case.tar.gz: {len(content)} files\n"
    return {name[len("nvdriver-support/") :]: data for name, data in content.items()}


def test_facts_status_and_logs_are_in_it(tmp_path: Path) -> None:
    """The checks of `doctor`, the settings, the status, every log of a build, what programs say."""
    rig = FakeToolchain.make(tmp_path)
    write_tree(tmp_path / "run/nvdriver-build", {"status.json": '{"stage": "load"}\n'})
    write_tree(tmp_path / "store/logs", {f"{'a' * 64}.log": "cc: error\n"})
    files = bundle(tmp_path, path=rig.path)
    checks = {check["name"] for check in json.loads(files["doctor.json"])}
    assert {"kernel", "gpu", "headers", "source", "store", "space", "tools", "kmod"} <= checks
    assert json.loads(files["config.json"])["store"] == str(tmp_path / "store")
    assert files[f"files{tmp_path}/run/nvdriver-build/status.json"] == b'{"stage": "load"}\n'
    assert files[f"files{tmp_path}/store/logs/{'a' * 64}.log"] == b"cc: error\n"
    assert {"version", "modules.json", "dmesg.txt", "lsmod.txt", "lspci.txt"} <= set(files)


def test_no_secret_is_in_it(tmp_path: Path) -> None:
    """Of the environment only our settings, of the parameters' folder only .conf files; its owner's alone."""
    write_tree(
        tmp_path / "drivers",
        {"nvidia.conf": "NVreg_EnableMSI=1\n", "token": SECRET, ".secret.conf.bak": SECRET},
    )
    files = bundle(
        tmp_path,
        NVDRIVER_PARAMETERS=str(tmp_path / "drivers"),
        NVDRIVER_REGISTRY=f"me:{SECRET}@h.example.com/r",
        NGC_API_KEY=SECRET,
        REGISTRY_PASSWORD=SECRET,
    )
    assert files[f"files{tmp_path}/drivers/nvidia.conf"] == b"NVreg_EnableMSI=1\n"
    assert [name for name, data in files.items() if SECRET.encode() in data] == []
    assert [name for name in files if Path(name).name in ("token", ".secret.conf.bak")] == []
    assert (tmp_path / "case.tar.gz").stat().st_mode & 0o777 == 0o600


def test_a_broken_store_does_not_end_it(tmp_path: Path) -> None:
    """It is one of the reasons for a support case."""
    checks = json.loads(bundle(tmp_path, NVDRIVER_STORE="/etc/passwd/x")["doctor.json"])
    assert next(check["code"] for check in checks if check["name"] == "store") == 17


def test_a_place_that_cannot_be_looked_at_does_not_end_it(tmp_path: Path) -> None:
    """The system refuses a name, or a folder to this user: all else is in the bundle."""
    files = bundle(tmp_path, NVDRIVER_RUN_DIR="/" + "x" * 300)
    assert {"version", "doctor.json", "config.json", "modules.json", "dmesg.txt"} <= set(files)


def test_nothing_but_a_file_is_replaced(tmp_path: Path) -> None:
    """A device, a pipe or a folder in its place stays; by a link the file that it leads to is meant."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "null", "folder"):
        kind = (tmp_path / name).stat().st_mode
        done = cli(tmp_path, "support-bundle", "--output", name)
        assert (done.returncode, done.stderr.splitlines()[0]) == (2, f"error: {name} is there, and no file")
        assert (tmp_path / name).stat().st_mode == kind
    (tmp_path / "case.tar.gz").symlink_to("real")
    bundle(tmp_path)
    assert (tmp_path / "real").is_file() and (tmp_path / "case.tar.gz").is_symlink()
