"""`doctor` says what `run` would do, in the order in which `run` would find out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Dict

import pytest
from fake_host import FakeHost
from fake_toolchain import FakeToolchain
from kernel_trees import RELEASE
from trees import write_tree

from nvdriver_build.commands import SystemCommands
from nvdriver_build.config import read_config
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
    assert not [check for check in checks.values() if check.ok is False and check.code is not None]
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


def test_enforced_signatures_are_an_end(node: FakeHost, rig: FakeToolchain) -> None:
    """Sets are not signed yet, so that a kernel that enforces signatures ends `run` with 14."""
    write_tree(node.root / "sys/module/module/parameters", {"sig_enforce": "Y\n"})
    check = checks_of(node, rig)["security"]
    assert (check.ok, check.code) == (False, 14)
