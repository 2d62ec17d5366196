"""The operator's pod with the real driver: from nothing to a checked set, and again with the store kept."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import pytest
from attrs import frozen
from pod_node import STORE, PodNode
from pod_rig import Pod, within
from podman_rig import Podman
from real_build import RealBuild
from vm.kit import KitKernel

pytestmark = pytest.mark.real

LOAD_FAILED = 15
SOON = 5.0
"""Seconds from the start of the containers to stage `load` where the store has the set (issue)."""


@frozen
class Played:
    """What came of a pod that has played; its store stays."""

    node: PodNode
    code: int
    status: Dict[str, Any]
    driver: List[str]
    toolkit: List[str]


@pytest.fixture(scope="module")
def played(
    podman: Podman,
    driver_image: str,
    toolkit: Callable[[str], Path],
    kernel_a: KitKernel,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Played]:
    """Both containers started at once, as a kubelet does; they build the real driver."""
    folder = tmp_path_factory.mktemp("real-pod")
    with contextlib.ExitStack() as stack:
        node = stack.enter_context(PodNode.used(folder / "node", kernel_a))
        pod = stack.enter_context(Pod(podman, node, driver_image, toolkit("fits"), folder / "shared"))
        beside, driver = pod.toolkit(), pod.driver()
        code = driver.waits(600)
        beside.says("standing by")
        assert beside.runs
        yield Played(node, code, pod.status, driver.text.splitlines(), beside.text.splitlines())


def test_from_nothing_to_a_checked_set(played: Played) -> None:
    """The set is built beside, proven and kept; only this machine's kernel refuses it, at `load`."""
    status = played.status
    assert (played.code, status["stage"]) == (LOAD_FAILED, "load"), "\n".join(played.driver)
    assert (status["fit"], status["origin"], status["error"]["kind"]) == ("exact", "built", "LoadError")
    assert status["proof"].startswith("symvers: ")
    assert (played.node.store / "sets" / status["key"] / "manifest.json").is_file()
    assert len([line for line in played.toolkit if "Waiting for nvidia-driver-ctr" in line]) >= 1
    assert played.node.trapped == ()


def test_byte_for_byte_what_build_makes(played: Played, real_build_a: RealBuild) -> None:
    """The pod and `nvdriver-build build`, on another root file system, make one set of one source."""
    found = played.node.store / "sets" / played.status["key"]
    assert played.status["key"] == real_build_a.document["key"]
    names = sorted(path.name for path in real_build_a.folder.glob("*.ko"))
    assert names == sorted(path.name for path in found.glob("*.ko")) and len(names) == 4
    for name in names:
        assert (found / name).read_bytes() == (real_build_a.folder / name).read_bytes(), name


def test_the_nodes_store_is_sound(played: Played, podman: Podman, driver_image: str) -> None:
    """`store verify` in another container finds the one set, whole."""
    mount = ("-v", f"{played.node.store}:{STORE}", "--entrypoint", "nvdriver-build")
    done = podman.run(*mount, driver_image, "store", "verify", "--json")
    assert played.status["key"] in done.stdout
    assert json.loads(done.stdout)["schema"] == 1


def test_again_with_the_store_kept(
    played: Played, podman: Podman, driver_image: str, toolkit: Callable[[str], Path], tmp_path: Path
) -> None:
    """A pod that is made anew compiles nothing, is at stage `load` within 5 s, and dismisses the toolkit."""
    with Pod(podman, played.node, driver_image, toolkit("fits"), tmp_path / "shared") as pod:
        driver = pod.driver()
        beside = pod.prepared_toolkit()
        at_load = driver.says('"stage": "load"')
        assert driver.waits() == LOAD_FAILED
        assert pod.status["origin"] == "store"
        beside.says("standing by")
        assert not [line for line in beside.said() if "asked for" in line.text or "building" in line.text]
        assert not (pod.shared / "sources").exists()
        within(SOON, "stage load", at_load.at - driver.began)


def test_the_log_says_how_it_went(played: Played) -> None:
    """The stages stand in the driver's log in their order, and what the build waits for meanwhile."""
    documents = [json.loads(line) for line in played.driver if line.startswith("{")]
    stages = [each["stage"] for each in documents if each["event"] == "stage"]
    assert stages == ["look", "obtain", "prepare", "load"]
    assert any(each["event"] == "progress" for each in documents)
