"""What a store cannot do is told: no space, no permission, no such place."""

from __future__ import annotations

import errno
import multiprocessing
import os
from pathlib import Path
from typing import List

import pytest
from module_sets import put, recipe, write_set

from nvdriver_build.errors import StoreError
from nvdriver_build.store import Rules, Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def leftovers(store: Store) -> List[str]:
    return sorted(path.name for path in (store.root / "work").iterdir())


def test_no_space_is_told(small_disk: Path) -> None:
    """A full disk is StoreError with a hint, wherever it is met, and leaves the store as it was."""
    store = Store(small_disk / "store")
    good = put(store, recipe())
    with pytest.raises(StoreError, match=r"is full: No space left on device") as caught:
        put(store, recipe(arch="arm64"), size=1_000_000)
    assert "space" in (caught.value.hint or "")
    assert (leftovers(store), [entry.key for entry in store.entries()]) == ([], [good.key])
    with (small_disk / "filler").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(4096))
    with pytest.raises(StoreError, match="No space left"), store.workspace() as work:
        write_set(work / "set", recipe(arch="arm64"))
    assert store.find(recipe()) == good


def test_a_store_that_cannot_be_made_is_told(read_only_disk: Path, tmp_path: Path) -> None:
    """A read-only disk, and a file in the root's place, are StoreError with the root's path."""
    (tmp_path / "file").write_text("")
    for root, why in ((read_only_disk / "store", "Read-only"), (tmp_path / "file", "exists|directory")):
        store = Store(root)
        with (
            pytest.raises(StoreError, match=f"the store {root} cannot be used: .*({why})"),
            store.workspace(),
        ):
            pass
        with pytest.raises(StoreError, match=f"the store {root}"), store.building("0" * 64, 0):
            pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_store_of_somebody_else_is_told(store: Store) -> None:
    """Without permission every look is StoreError; the node's store is root's alone."""
    put(store, recipe())
    stranger = multiprocessing.Process(target=_look_as_nobody, args=(store,))
    stranger.start()
    stranger.join()
    assert stranger.exitcode == 0


def _look_as_nobody(store: Store) -> None:
    os.setuid(65534)
    key = recipe().key
    for look in (store.entries, store.check, lambda: store.prune((), Rules(0)), lambda: store.find(recipe())):
        with pytest.raises(StoreError, match="Permission denied"):
            look()
    for act in (store.get, store.drop):
        with pytest.raises(StoreError, match="Permission denied"):
            act(key)


def test_errors_of_the_work_are_not_the_stores(store: Store) -> None:
    """A missing or forbidden file of something else is not told as a fault of the store."""
    for error in (
        PermissionError(errno.EACCES, "Permission denied", "/source"),
        FileNotFoundError("x"),
        ValueError(),
    ):
        with pytest.raises(type(error)) as caught, store.workspace():
            raise error
        assert caught.value is error
    with pytest.raises(OSError, match="/source"), store.building("0" * 64, 0):
        raise PermissionError(errno.EACCES, "Permission denied", "/source")
