"""podman, the stand-in Driver Toolkits and the driver images for the tests of this folder and of pods."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Callable, Iterator

import pytest
from pod_node import PodNode
from pod_rig import Pod
from podman_rig import Podman
from real_build import CACHE
from sample_driver.user_space import RunFile, make_run_file
from standin import toolkit_root
from vm.kit import KitKernel, load_kit


def pytest_itemcollected(item: pytest.Item) -> None:
    """Whatever starts containers has the mark."""
    if "podman" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.podman)


@pytest.fixture(scope="session")
def podman() -> Iterator[Podman]:
    """podman with a storage of its own; containers, pods and volumes are gone at the end."""
    if os.geteuid() != 0 or not shutil.which("podman") or not shutil.which("runc"):
        pytest.skip("needs root, podman and runc")
    with Podman(CACHE / "podman").used() as rig:
        yield rig


@pytest.fixture(scope="session")
def toolkit() -> Callable[[str], Path]:
    """The root of a stand-in Driver Toolkit, by the name of a variant of standin.py."""
    return toolkit_root


@pytest.fixture(scope="session")
def base_image(podman: Podman) -> str:
    """An image of Debian packages, with what a driver image needs of its base."""
    return podman.base_image("node", load_kit("node").root("node"))


@pytest.fixture(scope="session")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> RunFile:
    """The sample driver as a .run whose installer writes down its flags."""
    return make_run_file(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def sample_image(podman: Podman, base_image: str, run_file: RunFile) -> str:
    """The driver image of the sample driver, from a .run."""
    words = ("--run-file", run_file.path, "--sha256", run_file.sha256, "--driver-version", run_file.version)
    return podman.driver_image("sample", run_file.sha256 + base_image, "--base", base_image, *words)


@pytest.fixture(scope="session")
def sample_store(
    podman: Podman,
    sample_image: str,
    toolkit: Callable[[str], Path],
    kernel_a: KitKernel,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A node's store with the sample driver's set, built by a pod."""
    folder = tmp_path_factory.mktemp("sample-store")
    with PodNode.used(folder / "node", kernel_a) as node:
        with Pod(podman, node, sample_image, toolkit("fits"), folder / "shared") as pod:
            driver = pod.driver()
            pod.prepared_toolkit()
            assert driver.waits() == 15, driver.text
        shutil.copytree(node.store, folder / "store", symlinks=True)
    return folder / "store"


@pytest.fixture(scope="session")
def driver_image(podman: Podman, base_image: str, real_source: Path) -> str:
    """The driver image of the real open driver, from its source tree: no user space."""
    version = re.search(r'NV_VERSION_STRING=\\"([\d.]+)', (real_source / "Kbuild").read_text())
    assert version is not None
    words = ("--source", real_source, "--driver-version", version[1])
    return podman.driver_image("real", f"{real_source} {base_image}", "--base", base_image, *words)
