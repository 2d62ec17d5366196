"""SIGKILL at any moment: nobody ever sees half of anything, the next run works and leaves nothing behind."""

from __future__ import annotations

import itertools
import os
import random
import shutil
from pathlib import Path
from typing import List, Set

import pytest
from crashes import killed_after, killed_at_each_step
from fake_toolchain import FakeToolchain
from keys import make_identity
from module_sets import put, recipe, write_set
from wishes import commands_of, wish_of

from nvdriver_build.cli import output as output_folder
from nvdriver_build.files import atomic, lock, private_folder, publish, publish_folder
from nvdriver_build.obtain import obtain
from nvdriver_build.sets import open_set
from nvdriver_build.store import Store

KILLS = 100
RECIPES = [recipe(driver_version=str(number)) for number in range(4)]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def names(folder: Path) -> List[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def visible(store: Store) -> List[str]:
    """The keys that the store shows, each proven to be whole, byte by byte."""
    entries = store.check()
    assert [entry.problem for entry in entries] == [None] * len(entries)
    assert names(store.root / "sets") == sorted(entry.key for entry in entries)
    return [entry.key for entry in entries]


def work_all_the_time(store: Store, seed: int) -> None:
    """Publish, find and drop sets, as builds and prunes do, until killed."""
    choose = random.Random(seed)
    for _ in itertools.count():
        wanted = choose.choice(RECIPES)
        with store.building(wanted.key, 10):
            if store.find(wanted) is None:
                put(store, wanted, size=20_000)
            elif choose.random() < 0.5:
                store.drop(wanted.key)


def test_random_kills_of_publishes(store: Store) -> None:
    """100 kills at random moments: all that is visible is whole, and the next user of the store cleans up."""
    choose = random.Random(20260101)
    left = 0
    for turn in range(KILLS):
        killed_after(choose.uniform(0, 0.03), lambda: work_all_the_time(store, turn))  # noqa: B023
        visible(store)
        left += len(names(store.root / "work")) > 0
        assert len(names(store.root / "work")) <= 1
    assert left > KILLS / 10, "hardly a kill met a publish: the test proves nothing"
    for wanted in RECIPES:
        assert store.find(wanted) or put(store, wanted)
    assert names(store.root / "work") == []
    assert len(visible(store)) == len(RECIPES)


def test_kills_of_a_publish(store: Store) -> None:
    """Killed before any of its steps, a set is not there or whole; the next publish works and cleans up."""
    wanted = RECIPES[0]

    def prepare() -> None:
        shutil.rmtree(store.root, ignore_errors=True)

    steps = []
    for step in killed_at_each_step(prepare, lambda: put(store, wanted)):
        steps.append(step)
        assert visible(store) in ([], [wanted.key])
        assert put(store, wanted) == store.find(wanted)
        assert names(store.root / "work") == []
    assert visible(store) == [wanted.key]
    assert len(steps) > 20


def test_kills_of_a_second_publish(store: Store) -> None:
    """Killed while it publishes what is there already, a set stays as it was."""
    good = put(store, RECIPES[0])
    inode = good.folder.stat().st_ino
    for _ in killed_at_each_step(lambda: None, lambda: put(store, RECIPES[0])):
        assert (visible(store), good.folder.stat().st_ino) == ([good.key], inode)


def test_kills_of_a_drop(store: Store) -> None:
    """Killed while it is dropped, a set is there, whole, or gone; another set stays."""
    kept, dropped = put(store, RECIPES[0]), RECIPES[1]

    def prepare() -> None:
        put(store, dropped)

    for _ in killed_at_each_step(prepare, lambda: store.drop(dropped.key)):
        assert set(visible(store)) - {dropped.key} == {kept.key}
        store.drop(dropped.key)
        assert (visible(store), names(store.root / "work")) == ([kept.key], [])


def test_kills_while_a_damaged_set_is_rebuilt(store: Store) -> None:
    """Killed between finding the damage and the new set, the damaged set is never given out."""
    wanted = RECIPES[0]

    def prepare() -> None:
        (put(store, wanted).folder / "nvidia.ko").write_bytes(b"damaged")

    def act() -> None:
        assert store.find(wanted) is None
        put(store, wanted)

    for _ in killed_at_each_step(prepare, act):
        found = store.find(wanted)
        assert found is None or open_set(found.folder) == found
        assert put(store, wanted) == store.find(wanted)
        assert names(store.root / "work") == []


@pytest.mark.once
def test_kills_of_signing(tmp_path: Path) -> None:
    """Killed at each step of it, a signed set is not there or whole, and the unsigned one stays."""
    rig, store = FakeToolchain.make(tmp_path), Store(tmp_path / "store")
    identity = make_identity(tmp_path / "keys", "Build key")
    wish = wish_of(rig, certificate=identity.certificate, signer=identity.signer, modules=("nvidia",), jobs=1)
    unsigned = obtain(wish.unsigned(), store, commands_of(rig)).set.key
    signed = wish.recipe()

    def prepare() -> None:
        store.drop(signed.key)

    seen = set()
    for _ in killed_at_each_step(prepare, lambda: obtain(wish, store, commands_of(rig))):
        keys = visible(store)
        seen.add(len(keys))
        assert set(keys) - {signed.key} == {unsigned}
        again = obtain(wish, store, commands_of(rig))
        assert (again.origin, again.set.key, names(store.root / "work")) == ("store", signed.key, [])
    assert (seen, rig.make_calls()) == ({1, 2}, 1)


def test_kills_of_a_file(tmp_path: Path) -> None:
    """Killed while it is published, a file is the old one or the new one; the rest goes a minute later."""
    path = tmp_path / "folder" / "file"

    def prepare() -> None:
        shutil.rmtree(tmp_path / "folder", ignore_errors=True)
        publish(path, "old" * 1000)

    seen = set()
    for _ in killed_at_each_step(prepare, lambda: publish(path, "new" * 1000)):
        seen.add(path.read_text())
        for leftover in path.parent.glob(".file*"):
            os.utime(leftover, (0, 0))
        publish(path, "next")
        assert names(path.parent) == ["file"]
    assert seen == {"old" * 1000, "new" * 1000}


def test_kills_of_a_new_file(tmp_path: Path) -> None:
    """Where there was no file, there is none or the whole of it."""
    path = tmp_path / "folder" / "file"
    seen = set()
    for _ in killed_at_each_step(
        lambda: shutil.rmtree(tmp_path / "folder", True), lambda: publish(path, "new")
    ):
        seen.add(path.read_text() if path.exists() else None)
    assert seen == {None, "new"}


def test_kills_of_a_folder(tmp_path: Path) -> None:
    """A folder with folders in it appears whole or not at all; the private one goes with the next use."""
    work, place = tmp_path / "work", tmp_path / "place"

    def act() -> None:
        with private_folder(work) as private:
            for name in ("a", "b/c", "b/d/e"):
                publish(private / "new" / name, name)
            publish_folder(private / "new", place)

    def prepare() -> None:
        shutil.rmtree(place, ignore_errors=True)

    for _ in killed_at_each_step(prepare, act):
        if place.exists():
            assert {path.name for path in place.rglob("*") if path.is_file()} == {"a", "c", "e"}
        with private_folder(work) as private:
            assert names(work) == [private.parent.name]
    assert place.exists()


def test_kills_of_an_output(tmp_path: Path) -> None:
    """Killed while `build` replaces its output, that is the old set or the new one."""
    assert kills_of_an_output(tmp_path) == {"old", "new"}


def test_kills_where_two_folders_cannot_change_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that cannot do that in one step: the old set, the new one, or for a moment none."""
    monkeypatch.setattr(atomic, "_RENAME_EXCHANGE", 1 << 30)  # no flag that a kernel knows: EINVAL
    assert kills_of_an_output(tmp_path) == {"old", "new", "none"}


def kills_of_an_output(folder: Path) -> Set[str]:
    """What is seen of an output whose replacement is killed at each step; the next one works and sweeps."""
    output = folder / "output"
    old, new = (write_set(folder / name, each) for name, each in zip(("old", "new"), RECIPES))

    def prepare() -> None:
        shutil.rmtree(output, ignore_errors=True)
        output_folder.write_set(old, output)

    seen = set()
    for _ in killed_at_each_step(prepare, lambda: output_folder.write_set(new, output)):
        there = open_set(output).key if output.exists() else "none"
        seen.add({old.key: "old", new.key: "new"}.get(there, there))
        output_folder.write_set(new, output)
        assert open_set(output).key == new.key
        assert names(folder) == ["new", "old", "output"]
    return seen


def test_kills_of_a_lock_holder(tmp_path: Path) -> None:
    """Killed before, while and after it holds a lock, nobody keeps others out."""

    def act() -> None:
        with lock(tmp_path / "locks" / "key", 5):
            publish(tmp_path / "file", "content")

    for _ in killed_at_each_step(lambda: None, act):
        with lock(tmp_path / "locks" / "key", 0):
            pass
