"""Nodes and pods for the tests of this folder, which run one after another: they measure times."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Callable, Iterator, List

import pytest
from pod_node import PodNode
from pod_rig import MakePod, Pod
from podman_rig import Podman
from vm.kit import KitKernel


def pytest_itemcollected(item: pytest.Item) -> None:
    """One worker for all of this folder."""
    if "podman" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.xdist_group("pods"))


@pytest.fixture
def node(tmp_path: Path, kernel_a: KitKernel) -> Iterator[PodNode]:
    """A node that runs kernel A, with an empty store."""
    with PodNode.used(tmp_path / "node", kernel_a) as node:
        yield node


@pytest.fixture
def make_pod(
    podman: Podman, node: PodNode, sample_image: str, toolkit: Callable[[str], Path], tmp_path: Path
) -> Iterator[MakePod]:
    """Makes pods of the sample driver on the node; a toolkit is named, or '' where its image is missing.

    No pod may have called a package manager or a downloader, or read an entitlement; no mount may be left.
    """
    made: List[Pod] = []
    numbers = itertools.count()

    def make(name: str = "fits", **more: object) -> Pod:
        root = toolkit(name) if name else None
        pod = Pod(podman, node, sample_image, root, tmp_path / f"shared{next(numbers)}", **more)  # type: ignore[arg-type]
        made.append(pod.__enter__())
        return pod

    yield make
    for pod in made:
        pod.end()
    assert node.mounts == []
    assert node.trapped == ()


@pytest.fixture
def filled(node: PodNode, sample_store: Path) -> PodNode:
    """The node, with that set in its store."""
    shutil.copytree(sample_store, node.store, symlinks=True, dirs_exist_ok=True)
    return node
