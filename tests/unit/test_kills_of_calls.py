"""SIGKILL at each write, fsync, rename, unlink of publish, pull, prune and sign in turn, by strace."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Callable, List

import pytest
from clusters import Cluster
from crashes import killed_at_each_call
from keys import make_identity
from module_sets import put, recipe

from nvdriver_build.errors import NvdriverError
from nvdriver_build.sets import FOREIGN
from nvdriver_build.store import Rules, Store

LEAST = {"publish": 15, "pull": 40, "prune": 10, "sign": 40, "give": 20}
"""Kills that each has at least, or the test proves nothing."""


@pytest.fixture
def cluster(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    return Cluster(tmp_path, make_identity(tmp_path_factory.mktemp("ours"), "Build key"))


def whole(store: Store) -> List[str]:
    """What the store shows, every byte of it compared."""
    entries = store.check()
    assert [entry.problem for entry in entries] == [None] * len(entries)
    return [entry.key for entry in entries]


@pytest.mark.once
@pytest.mark.parametrize("what", LEAST)
def test_no_kill_leaves_a_damaged_set(what: str, cluster: Cluster) -> None:
    """After each kill what is shown is whole; the same act again succeeds, and nothing half-made is left."""
    place = cluster.root / "node"
    store = Store(place)
    acts: dict[str, Callable[[], object]] = {
        "publish": lambda: put(store, recipe()),
        "pull": lambda: cluster.node("node"),
        "prune": lambda: store.prune((), Rules(0)),
        "sign": lambda: cluster.signed_node("node"),
        "give": lambda: cluster.shared.push(cluster.built),
    }
    kills = 0
    for _ in killed_at_each_call(lambda: prepare(what, cluster, place), acts[what]):
        kills += 1
        whole(store)
        whole(Store(cluster.shared.root))
        assert what != "pull" or all((folder / FOREIGN).exists() for folder in place.glob("sets/*"))
        try:
            acts[what]()
        except NvdriverError as error:
            raise AssertionError(f"not mended by itself: {error}") from error
        assert len(whole(store)) == {"publish": 1, "pull": 1, "prune": 0, "sign": 2, "give": 0}[what]
        assert not list(place.glob("work/*")), "something half-made is left"
    assert kills >= LEAST[what]


def prepare(what: str, cluster: Cluster, place: Path) -> None:
    """A store as it is before the act."""
    shutil.rmtree(place, ignore_errors=True)
    if what in ("prune", "sign"):
        shutil.copytree(cluster.root / "builder", place)
        for folder in place.glob("sets/*"):
            os.utime(folder, (1, 1))  # what was used just now is not pruned
    if what == "give":
        shutil.rmtree(cluster.shared.root, ignore_errors=True)
