"""`doctor` says what `run` would do, in the order in which `run` would find out."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Dict

import pytest
from cli_runs import cli, document
from fake_host import FakeHost
from fake_keyrings import write_proc_keys
from fake_toolchain import FakeToolchain
from kernel_trees import RELEASE
from keys import make_identity
from trees import write_tree

from nvdriver_build.commands import SystemCommands
from nvdriver_build.config import read_config
from nvdriver_build.files import sha256_file
from nvdriver_build.node.doctor import Check, examine


@pytest.fixture
def rig(tmp_path: Path) -> FakeToolchain:
    return FakeToolchain.make(tmp_path / "rig")


@pytest.fixture
def node(tmp_path: Path) -> FakeHost:
    """A node that runs the kernel of the rig's headers, without a GPU."""
    node = FakeHost(tmp_path / "node")
    write_tree(node.root / "proc/sys/kernel", {"osrelease": f"{RELEASE}\n", "version": "#1 SMP\n"})
    return node


def checks_of(node: FakeHost, rig: FakeToolchain, **settings: str) -> Dict[str, Check]:
    given = {
        "PATH": rig.path,
        "NVDRIVER_STORE": str(rig.root / "store"),
        "NVDRIVER_HEADERS": str(rig.headers),
        "NVDRIVER_SOURCE": str(rig.source),
        **settings,
    }
    config = read_config({name: value for name, value in given.items() if value})
    found = examine(config, node.host, os.uname().machine, SystemCommands(rig.path))
    return {check.name: check for check in found}


def first_bad(checks: Dict[str, Check]) -> Check:
    return next(check for check in checks.values() if check.ok is False)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the rig's headers are for x86_64")
def test_all_is_well(node: FakeHost, rig: FakeToolchain) -> None:
    """Where `run` would go on, nothing is bad; source, headers and GPU are named."""
    node.pci("0000:01:00.0")
    checks = checks_of(node, rig)
    assert not [
        check for check in checks.values() if check.ok is False and check.name not in ("space", "kmod")
    ]
    assert "driver 999.10.01 (open)" in checks["source"].detail
    assert str(rig.headers) in checks["headers"].detail
    assert checks["gpu"].detail == "0000:01:00.0 (10de:2330)"


def test_the_gpu_comes_first(node: FakeHost, rig: FakeToolchain) -> None:
    """Without a GPU `run` ends with 19, whatever else is missing."""
    checks = checks_of(node, rig, NVDRIVER_HEADERS="/nowhere", NVDRIVER_SOURCE="")
    assert (first_bad(checks).name, first_bad(checks).code) == ("gpu", 19)
    assert (checks["headers"].code, checks["source"].code) == (10, 11)


def test_one_taken_gpu_of_two_is_no_end(node: FakeHost, rig: FakeToolchain) -> None:
    """`run` ends where every GPU is taken; one that is left, or a rival that has none, is only told."""
    node.pci("0000:01:00.0", driver="vfio-pci")
    assert checks_of(node, rig)["gpu"].code == 15
    node.pci("0000:02:00.0")
    node.module("nouveau")
    check = checks_of(node, rig)["gpu"]
    assert (check.ok, check.code) == (None, None)
    assert "0000:01:00.0 (10de:2330) is bound to vfio-pci" in check.detail


def test_enforced_signatures_without_a_certificate_are_an_end(node: FakeHost, rig: FakeToolchain) -> None:
    """Where the kernel takes signed modules only and nobody signs, `run` ends with 14: the hint names how."""
    write_tree(node.root / "sys/module/module/parameters", {"sig_enforce": "Y\n"})
    check = checks_of(node, rig)["security"]
    assert (check.ok, check.code) == (False, 14)
    assert "NVDRIVER_SIGN_KEY" in str(check.hint)


def test_whether_the_kernel_trusts_our_certificate(
    node: FakeHost, rig: FakeToolchain, tmp_path: Path
) -> None:
    """Trusted is good, not trusted an end where it is asked for, unknown neither; a bad file is 14."""
    rig.program("keyctl", "exit 1")  # this machine's keys are not the node's
    ours = make_identity(tmp_path / "keys", "Build key")
    key_id = str(ours.certificate.key_id)
    settings = {"NVDRIVER_SIGN_CERT": str(ours.file), "NVDRIVER_SIGN_KEY": str(ours.key)}
    unknown = checks_of(node, rig, **settings)["security"]
    assert (unknown.ok, "it is not known whether" in unknown.detail) == (None, True)
    write_tree(node.root / "sys/module/module/parameters", {"sig_enforce": "Y\n"})
    write_proc_keys(node.root / "proc", [key_id])
    good = checks_of(node, rig, **settings)["security"]
    assert (good.ok, good.code) == (True, None)
    assert f"trusts Common Name: Build key (subject key id {key_id})" in good.detail
    only = checks_of(node, rig, **{**settings, "NVDRIVER_SIGN_KEY": ""})["security"]
    assert "no key here" in only.detail
    write_proc_keys(node.root / "proc", [])
    bad = checks_of(node, rig, **settings)["security"]
    assert (bad.ok, bad.code, "mokutil --import" in str(bad.hint)) == (False, 14, True)
    broken = checks_of(node, rig, NVDRIVER_SIGN_CERT=str(ours.key))["security"]
    assert (broken.ok, broken.code) == (False, 14)


def test_whether_the_kernel_trusts_who_publishes(node: FakeHost, rig: FakeToolchain, tmp_path: Path) -> None:
    """A node with trust and a registry, as in our DaemonSets, takes what is published: one certificate that
    the kernel trusts will do, none an end. Without a registry there is nothing to take.
    """
    rig.program("keyctl", "exit 1")  # this machine's keys are not the node's
    write_tree(node.root / "sys/module/module/parameters", {"sig_enforce": "Y\n"})
    old, new = make_identity(tmp_path / "keys", "Old key"), make_identity(tmp_path / "keys", "New key")
    trusted = tmp_path / "trust.pem"
    trusted.write_text(old.file.read_text() + new.file.read_text())
    settings = {"NVDRIVER_TRUST": str(trusted), "NVDRIVER_REGISTRY": str(tmp_path / "shared")}
    unknown = checks_of(node, rig, **settings)["security"]
    assert (unknown.ok, unknown.code, "it is not known whether" in unknown.detail) == (None, None, True)
    write_proc_keys(node.root / "proc", [str(new.certificate.key_id)])
    good = checks_of(node, rig, **settings)["security"]
    assert (good.ok, good.hint, good.code) == (True, None, None)
    assert "does not trust Common Name: Old key" in good.detail
    assert ", trusts Common Name: New key" in good.detail
    write_proc_keys(node.root / "proc", [])
    bad = checks_of(node, rig, **settings)["security"]
    assert (bad.ok, bad.code, "mokutil --import CERT" in str(bad.hint)) == (False, 14, True)
    alone = checks_of(node, rig, **{**settings, "NVDRIVER_REGISTRY": ""})["security"]
    assert (alone.ok, alone.code, "NVDRIVER_SIGN_KEY" in str(alone.hint)) == (False, 14, True)
    gone = checks_of(node, rig, NVDRIVER_TRUST=str(tmp_path / "gone.pem"))["security"]
    assert (gone.ok, gone.code) == (False, 14)


def test_a_broken_store_is_a_line(node: FakeHost, rig: FakeToolchain) -> None:
    """A store that cannot be is told with 17, and the other checks are made; a support bundle has it, too."""
    checks = checks_of(node, rig, NVDRIVER_STORE="/etc/passwd/x")
    assert (checks["store"].ok, checks["store"].code) == (False, 17)
    assert "Not a directory" in checks["store"].detail
    assert checks["source"].ok
    done = cli(rig.root, "support-bundle", "--output", "x.tar.gz", NVDRIVER_STORE="/etc/passwd/x")
    assert done.returncode == 0, done.stderr


def test_a_store_with_a_damaged_set_is_no_end(node: FakeHost, rig: FakeToolchain) -> None:
    """`run` drops such a set and builds it anew: that is told, and is not bad."""
    (rig.root / "store/sets" / ("0" * 64)).mkdir(parents=True)
    check = checks_of(node, rig)["store"]
    assert (check.ok, check.code, check.detail.endswith("1 damaged")) == (None, None, True)


def test_a_store_with_a_set_that_cannot_be_read_is_no_end(node: FakeHost, rig: FakeToolchain) -> None:
    """It is told apart from damage: nothing drops it."""
    folder = rig.root / "store/sets" / ("0" * 64)
    folder.mkdir(parents=True)
    (folder / "manifest.json").symlink_to("/proc/self/mem")  # a plain file whose first byte is EIO
    check = checks_of(node, rig)["store"]
    assert (check.ok, check.code) == (None, None)
    assert check.detail.endswith("0 damaged, 1 that cannot be read now")


def test_a_source_that_run_refuses_is_bad(node: FakeHost, rig: FakeToolchain) -> None:
    """Another version than DRIVER_VERSION, what is no archive, a `.run` without its sum: all end with 11."""

    def source(**settings: str) -> Check:
        return checks_of(node, rig, **settings)["source"]

    assert source(DRIVER_VERSION="999.10.01").ok
    assert "DRIVER_VERSION is 1.2.3" in source(DRIVER_VERSION="1.2.3").detail
    rubbish, installer = rig.root / "rubbish", rig.root / "x.run"
    rubbish.write_text("no archive")
    installer.write_text("#!/bin/sh\n")
    found = sha256_file(installer)
    for check in (
        source(DRIVER_VERSION="1.2.3"),
        source(NVDRIVER_SOURCE=str(rubbish)),
        source(NVDRIVER_SOURCE="/dev/null"),
        source(NVDRIVER_SOURCE=str(installer)),
        source(NVDRIVER_SOURCE=str(installer), NVDRIVER_RUN_SHA256="0" * 64),
    ):
        assert (check.ok, check.code) == (False, 11), check
    assert source(NVDRIVER_SOURCE=str(installer), NVDRIVER_RUN_SHA256=found.upper()).ok
    for form in ("tar", "gztar", "xztar"):
        archive = shutil.make_archive(str(rig.root / "archive"), form, rig.source)
        assert source(NVDRIVER_SOURCE=archive).ok


def test_missing_programs_are_named(node: FakeHost, rig: FakeToolchain) -> None:
    """Without make or strip a build ends with 12, without kmod's programs a load with 15."""
    assert checks_of(node, rig)["tools"].ok
    bare = SystemCommands(str(rig.root / "bin"))
    (rig.root / "bin/make").unlink()
    config = read_config({"PATH": bare.path, "NVDRIVER_STORE": str(rig.root / "store")})
    checks = {check.name: check for check in examine(config, node.host, "x86_64", bare)}
    assert (checks["tools"].code, checks["tools"].detail) == (12, "not on PATH: make")
    assert (checks["kmod"].code, checks["kmod"].detail) == (15, "not on PATH: depmod, modprobe, rmmod")


def test_bad_parameter_files_are_an_end(node: FakeHost, rig: FakeToolchain) -> None:
    """A line that is no parameter ends `run` with 2, by file and line; good ones are counted."""
    place = write_tree(rig.root / "drivers", {"nvidia.conf": "NVreg_A=1 NVreg_B=2\n"})
    assert checks_of(node, rig, NVDRIVER_PARAMETERS=str(place))["params"].detail == f"2 of nvidia in {place}"
    (place / "nvidia.conf").write_text("rm -rf \\\n")
    check = checks_of(node, rig, NVDRIVER_PARAMETERS=str(place))["params"]
    assert (check.ok, check.code, f"{place}/nvidia.conf, line 1" in check.detail) == (False, 2, True)


def test_little_space_is_an_end(node: FakeHost, rig: FakeToolchain, small_disk: Path) -> None:
    """A build that has no space ends with 12."""
    check = checks_of(node, rig, NVDRIVER_STORE=str(small_disk / "store"))["space"]
    assert (check.ok, check.code) == (False, 12)


def test_a_store_that_cannot_be_written_to_is_an_end(
    node: FakeHost, rig: FakeToolchain, read_only_disk: Path
) -> None:
    """Every build ends with 17 there, root's, too."""
    check = checks_of(node, rig, NVDRIVER_STORE=str(read_only_disk / "store"))["space"]
    assert (check.ok, check.code) == (False, 17)


def test_named_headers_say_nothing_of_run(rig: FakeToolchain) -> None:
    """`doctor --headers` looks at headers that `run` would not use: no word of how `run` ends."""
    done = cli(rig.root, "doctor", "--headers", rig.headers, path=rig.path)
    assert (
        done.stdout.splitlines()[-1] == f"run would not use {rig.headers}: without --headers its end is told"
    )
    assert document(cli(rig.root, "doctor", "--headers", rig.headers, "--json"))["would_exit"] is None


def test_text_is_a_line_a_check(rig: FakeToolchain) -> None:
    """People get a mark, a name and a sentence for each check, its hint below; the last line is the end."""
    words = {"path": rig.path, "NVDRIVER_HEADERS": "/nowhere", "NVDRIVER_SOURCE": str(rig.source)}
    done = cli(rig.root, "doctor", **words)
    lines = done.stdout.splitlines()
    named = document(cli(rig.root, "doctor", "--json", **words))
    assert done.returncode == 0
    assert [line[4:13].strip() for line in lines[:-1] if not line.startswith(" " * 14)] == [
        check["name"] for check in named["checks"]
    ]
    place = lines.index("BAD headers   no kernel headers at /nowhere")
    assert lines[place + 1].startswith("              hint: install kernel-devel-")
    assert f"ok  source    {rig.source}: driver 999.10.01 (open)" in lines
    bad = next(check for check in named["checks"] if check["ok"] is False)
    assert lines[-1] == f"run would end at {bad['name']} (exit {bad['code']})"
    assert named["would_exit"] == bad["code"]


def test_the_registry_is_told(node: FakeHost, rig: FakeToolchain, tmp_path: Path) -> None:
    """None, one that nobody is trusted for, one that serves, one that does not: only a bad setting is bad."""
    assert (checks_of(node, rig)["registry"].ok, checks_of(node, rig)["registry"].hint) == (None, None)
    shared = {"NVDRIVER_REGISTRY": str(tmp_path / "shared")}
    check = checks_of(node, rig, **shared)["registry"]
    assert (check.ok, "nobody is trusted" in check.detail) == (None, True)
    trust = {**shared, "NVDRIVER_TRUST": str(make_identity(tmp_path, "Build key").file)}
    check = checks_of(node, rig, **trust)["registry"]
    assert (check.ok, "for sets signed by Common Name: Build key" in check.detail) == (True, True)
    (tmp_path / "shared").write_text("")
    check = checks_of(node, rig, **trust)["registry"]
    assert (check.ok, "cannot be used" in check.detail) == (None, True)
    check = checks_of(node, rig, **{**shared, "NVDRIVER_TRUST": str(tmp_path / "gone.pem")})["registry"]
    assert (check.ok, check.code) == (False, 14)
