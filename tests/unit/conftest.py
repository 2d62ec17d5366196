"""What unit tests share: a folder to unpack to, a small disk, one that cannot be written to, two keys,
nodes with a shared folder, a registry that lies.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Iterator

import pytest
from clusters import Cluster
from hostile_registry import Hostile, hostile_registry
from keys import Identity, make_identity
from oci_registry import OciRegistry, oci_registry


def _mount(place: Path, options: str) -> None:
    subprocess.run(("mount", "-t", "tmpfs", "-o", options, "tmpfs", place), check=True)


def _unmount(place: Path) -> None:
    subprocess.run(("umount", "-l", place), check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own that holds 256 KiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    place = tmp_path / "small"
    place.mkdir()
    _mount(place, "size=256k")
    yield place
    _unmount(place)


@pytest.fixture
def read_only_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own that nobody can write to; root neither."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a read-only file system")
    place = tmp_path / "read-only"
    place.mkdir()
    _mount(place, "ro,size=64k")
    yield place
    _unmount(place)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty folder that is alone in its own."""
    folder = tmp_path / "around" / "place"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(scope="session")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    """Who may build for a node."""
    return make_identity(tmp_path_factory.mktemp("ours"), "Build key")


@pytest.fixture
def cluster(tmp_path: Path, ours: Identity) -> Cluster:
    """Nodes that share a folder, in which there is one set, signed by us."""
    return Cluster(tmp_path / "cluster", ours)


@pytest.fixture
def hostile() -> Iterator[Hostile]:
    """A registry that says what it is told to say."""
    with hostile_registry() as found:
        yield found


@pytest.fixture(scope="session")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    """Who may not."""
    return make_identity(tmp_path_factory.mktemp("theirs"), "Other key")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OciRegistry]:
    """A registry of a module's own, with TLS and a login."""
    with oci_registry(tmp_path_factory.mktemp("registry")) as found:
        yield found
