"""A folder that nodes share: what is pushed into it."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from clusters import Cluster
from pytest_mock import MockerFixture
from trees import nested

from nvdriver_build.errors import SigningError, Stopped, StoreError
from nvdriver_build.files import put_plain
from nvdriver_build.sets import MANIFEST, SIGNATURE
from nvdriver_build.store import SharedStore, Unbelievable


def test_an_unsigned_set_is_not_pushed(cluster: Cluster) -> None:
    """Nobody would take it, and it would stand where a signed one belongs."""
    (cluster.built.folder / SIGNATURE).unlink()
    shutil.rmtree(cluster.offered)
    with pytest.raises(SigningError, match=r"is not pushed: it has no manifest\.p7s"):
        cluster.shared.push(cluster.built)
    assert not cluster.offered.exists()


@pytest.mark.parametrize("name", [MANIFEST, SIGNATURE, "nvidia.ko"])
def test_a_push_replaces_what_somebody_put_there(name: str, cluster: Cluster) -> None:
    """Who may write there without a key must not keep a set from those who take signed ones only."""
    (cluster.offered / name).write_bytes(b"rubbish")
    assert cluster.shared.push(cluster.built)
    assert cluster.node("node").origin == "registry"
    shutil.rmtree(cluster.offered)
    cluster.offered.symlink_to(cluster.root)
    assert cluster.shared.push(cluster.built)
    assert not cluster.shared.push(cluster.built)
    assert not cluster.offered.is_symlink()


def test_a_push_writes_through_no_link(cluster: Cluster, mocker: MockerFixture) -> None:
    """Who may write there makes a folder of ours a link: nothing is written where it leads."""
    victim = cluster.root / "victim"
    victim.mkdir()
    (cluster.offered / MANIFEST).unlink()

    def swapped(ours: Path, root: Path, place: Path) -> None:
        if not place.parent.exists():
            place.parent.symlink_to(victim)
        put_plain(ours, root, place)

    mocker.patch("nvdriver_build.store.shared.put_plain", side_effect=swapped)
    with pytest.raises(StoreError, match=r"cannot be used: .*(Not a directory|Too many levels)"):
        cluster.shared.push(cluster.built)
    assert list(victim.iterdir()) == []


def test_a_slow_folder_has_an_end(cluster: Cluster, tmp_path: Path) -> None:
    """Nothing is read of it once its time is over; a signal is heard between two pieces of a module."""
    key = cluster.built.key
    with pytest.raises(StoreError, match="all the time that it gets is over"):
        cluster.shared.before(time.monotonic() - 1).offer(key)
    checks = iter([None, None])

    def check() -> None:
        try:
            next(checks)
        except StopIteration:
            raise Stopped(signal.SIGTERM) from None

    offer = SharedStore(cluster.shared.root, check).offer(key)
    assert offer is not None
    with pytest.raises(Stopped):
        offer.fetch(tmp_path / "set")


def test_a_server_that_is_gone_is_no_damaged_set(cluster: Cluster, mocker: MockerFixture) -> None:
    """The search ends: each further set would wait for the server again."""
    gone = OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
    mocker.patch("nvdriver_build.store.shared.read_plain", side_effect=gone)
    with pytest.raises(StoreError, match="timed out") as caught:
        cluster.shared.offer(cluster.built.key)
    assert not isinstance(caught.value, Unbelievable)


def test_a_folder_of_any_depth_stops_no_push(cluster: Cluster) -> None:
    """What somebody put in the place of a set is replaced and goes, however deep it is."""
    shutil.rmtree(cluster.offered)
    nested(cluster.offered, 1200)
    assert cluster.shared.push(cluster.built)
    assert not cluster.shared.push(cluster.built)
    assert list((cluster.shared.root / "work").iterdir()) == []
