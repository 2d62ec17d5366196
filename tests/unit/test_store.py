"""The store: what is put in is found whole or not at all, and what is damaged is dropped and told."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest
from module_sets import put, recipe, write_set
from structlog.testing import capture_logs

from nvdriver_build.errors import Stopped, StoreError, UsageError
from nvdriver_build.sets import FOREIGN, MANIFEST, ModuleSet
from nvdriver_build.store import Rules, Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def leftovers(store: Store) -> List[str]:
    return sorted(path.name for path in (store.root / "work").iterdir())


def age(found: ModuleSet, days: float) -> None:
    then = time.time() - days * 86400
    os.utime(found.folder, (then, then))


def test_what_is_put_in_is_found(store: Store) -> None:
    """A set is found by its recipe, and by no other; the work leaves nothing behind."""
    made = put(store, recipe())
    assert store.find(recipe()) == made
    assert made.folder == store.root / "sets" / recipe().key
    assert store.find(recipe(kind="proprietary")) is None
    assert leftovers(store) == []


@pytest.mark.parametrize("there", ["foreign", "damaged", "good"])
def test_what_is_there_already_stays_if_it_is_good(there: str, store: Store) -> None:
    """Where nobody vouches for it, or it is damaged, it is dropped for the set that is put in."""
    old = put(store, recipe(), size=3000)
    if there == "foreign":
        (old.folder / FOREIGN).write_text("registry\n")
    elif there == "damaged":
        old.paths[0].write_bytes(b"")
    made = put(store, recipe(), size=2000)
    assert (made.foreign, made.manifest == old.manifest) == (None, there == "good")
    assert store.find(recipe()) == made
    assert leftovers(store) == []


def test_the_store_is_its_owners_alone(store: Store) -> None:
    """The root is made when something is put in, with mode 0700, and not by looking."""
    assert store.find(recipe()) is None
    assert (store.entries(), store.check(), store.prune((), Rules(0))) == ((), (), ())
    assert not store.root.exists()
    put(store, recipe())
    assert store.root.stat().st_mode & 0o777 == 0o700


def test_a_store_that_is_open_to_others_is_refused(store: Store) -> None:
    """What others can write would be loaded into the kernel; the error says how to close it."""
    put(store, recipe())
    for mode in (0o770, 0o702, 0o1777):
        store.root.chmod(mode)
        for act in (store.find, lambda of: put(store, of)):
            with pytest.raises(StoreError, match=f"is open to others .*mode {mode:04o}") as caught:
                act(recipe())
            assert "chmod 700" in str(caught.value.hint)
    store.root.chmod(0o750)
    assert store.find(recipe()) is not None
    os.chown(store.root, 12345, -1)
    with pytest.raises(StoreError, match="owner 12345"):
        store.find(recipe())


def test_a_new_volume_becomes_private(store: Store) -> None:
    """An empty folder that is open to all, as a new emptyDir is, is made the store of its owner."""
    store.root.mkdir()
    store.root.chmod(0o1777)
    assert store.find(recipe()) is None
    put(store, recipe())
    assert store.root.stat().st_mode & 0o7777 == 0o700


def test_a_hit_sweeps(store: Store) -> None:
    """What a killed builder left, 200 MB maybe, goes at a hit as well, which needs no workspace."""
    put(store, recipe())
    write_set(store.root / "work" / ".nvdriver-build-0123456789abcdef" / "work" / "set", recipe())
    assert store.find(recipe())
    assert leftovers(store) == []


def test_a_miss_says_why(store: Store) -> None:
    """A miss can be explained by what differs between what is wanted and what is there."""
    put(store, recipe(kernel_release="5.14.0"))
    assert store.find(recipe()) is None
    assert "kernel_release 5.14.0, wanted is 6.1.0-1-amd64" in store.explain_miss(recipe())


def test_the_first_set_stays(store: Store) -> None:
    """Where two publish one key, the second takes what is there: a published set is never changed."""
    put(store, recipe())
    before = (store.root / "sets" / recipe().key).stat().st_ino
    with store.workspace() as work:
        write_set(work / "set", recipe())
        (work / "set" / "extra").write_text("mine")
        assert store.add(work / "set", recipe().key) == store.find(recipe())
    assert (store.root / "sets" / recipe().key).stat().st_ino == before
    assert not (store.root / "sets" / recipe().key / "extra").exists()


def _flip(folder: Path) -> None:
    data = bytearray((folder / "nvidia.ko").read_bytes())
    data[7] ^= 0x10
    (folder / "nvidia.ko").write_bytes(data)


def _cut(folder: Path) -> None:
    (folder / MANIFEST).write_bytes((folder / MANIFEST).read_bytes()[:-20])


def _flip_fact(folder: Path) -> None:
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text.replace('"config_digest": "3', '"config_digest": "4'))


def _other(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    write_set(folder, recipe(driver_version="1"))


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def _file(folder: Path) -> None:
    _empty(folder)
    folder.rmdir()
    folder.write_text("a file where the set was")


def _instead(folder: Path) -> Path:
    """The place of a module that is gone."""
    (folder / "nvidia.ko").unlink()
    return folder / "nvidia.ko"


def _dangling(folder: Path) -> None:
    _instead(folder).symlink_to("gone")


DAMAGE: Dict[str, Callable[[Path], Any]] = {
    "a flipped byte": _flip,
    "a flipped byte of the manifest": _flip_fact,
    "a missing module": lambda folder: (folder / "nvidia-uvm.ko").unlink(),
    "a missing manifest": lambda folder: (folder / MANIFEST).unlink(),
    "a cut manifest": _cut,
    "an empty manifest": lambda folder: (folder / MANIFEST).write_text(""),
    "another set under this name": _other,
    "an empty folder": _empty,
    "a file": _file,
    "a dangling link": _dangling,
    "a loop of links": lambda folder: _instead(folder).symlink_to("nvidia.ko"),
    "a folder": lambda folder: _instead(folder).mkdir(),
    "a pipe": lambda folder: os.mkfifo(_instead(folder)),
    "a file without end": lambda folder: _instead(folder).symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("damage", sorted(DAMAGE))
def test_a_damaged_set_is_dropped_told_and_rebuilt(store: Store, damage: str) -> None:
    """It is never given out: the first look drops it and says so, and a new one can take its place."""
    DAMAGE[damage](put(store, recipe()).folder)
    good = put(store, recipe(kind="proprietary"))
    assert [entry.problem is not None for entry in store.check() if entry.key == recipe().key] == [True]
    with pytest.raises(StoreError):
        store.get(recipe().key)
    with capture_logs() as logs:
        assert store.find(recipe()) is None
    assert [log["event"] for log in logs] == ["a damaged set is dropped from the store"]
    assert not os.path.lexists(store.root / "sets" / recipe().key)
    assert store.find(recipe()) is None
    assert store.find(good.manifest.recipe) == good
    assert store.find(put(store, recipe()).manifest.recipe)
    assert leftovers(store) == []


def test_a_damaged_set_that_cannot_be_dropped_is_not_given_out(store: Store) -> None:
    """On a store that is mounted read-only, a good set is found, and a damaged one is StoreError."""
    put(store, recipe())
    _flip(put(store, recipe(arch="arm64")).folder)
    subprocess.run(("mount", "--bind", store.root, store.root), check=True)
    try:
        subprocess.run(("mount", "-o", "remount,bind,ro", store.root), check=True)
        assert store.find(recipe())
        with pytest.raises(StoreError, match="Read-only file system"):
            store.find(recipe(arch="arm64"))
    finally:
        subprocess.run(("umount", "-l", store.root), check=True)


def test_what_is_published_is_checked(store: Store) -> None:
    """A set that was damaged before it was published, or has another key, is told at once."""
    with store.workspace() as work:
        write_set(work / "set", recipe())
        with pytest.raises(StoreError, match=recipe().key):
            store.add(work / "set", "0" * 64)
    with pytest.raises(StoreError, match="is no key"), store.workspace() as work:
        store.add(work / "set", "../escape")


def test_entries_are_listed(store: Store) -> None:
    """Each set with its size and the time of its last use, the last used first; strangers are passed over."""
    old, new = put(store, recipe()), put(store, recipe(arch="arm64"))
    age(old, 3)
    age(new, 2)
    store.find(recipe())
    (store.root / "sets" / "README").write_text("")
    first, second = store.entries()
    assert (first.key, second.key) == (old.key, new.key)
    assert first.set == old
    assert abs(first.used - time.time()) < 60
    assert first.size == sum(path.stat().st_size for path in old.folder.iterdir())
    assert first.problem is None


def test_listing_bears_a_set_that_goes(store: Store) -> None:
    """A set that another process drops meanwhile is just not listed."""
    put(store, recipe())
    stop = multiprocessing.Event()
    other = multiprocessing.Process(target=_come_and_go, args=(store, stop))
    other.start()
    try:
        for _ in range(300):
            assert {entry.problem for entry in store.entries()} == {None}
    finally:
        stop.set()
        other.join()
    assert other.exitcode == 0


def _come_and_go(store: Store, stop: Any) -> None:
    while not stop.is_set():
        put(store, recipe(arch="arm64"))
        store.drop(recipe(arch="arm64").key)


def test_get_takes_a_prefix(store: Store) -> None:
    """The start of a key is enough where only one set has it; else UsageError says how many have."""
    made = put(store, recipe())
    assert store.get(made.key[:6]) == made
    put(store, recipe(arch="arm64"))
    for prefix, count in (("", 2), ("xyz", 0), ("../", 0)):
        with pytest.raises(UsageError, match=f"^{count} sets in"):
            store.get(prefix)


def test_prune_keeps_what_is_used(store: Store) -> None:
    """What nobody used for some days goes, with its log, and so does what is damaged; a key to keep stays."""
    old, kept, fresh, damaged = (put(store, recipe(driver_version=str(n))) for n in range(4))
    for each in (old, kept):
        age(each, 10)
    _cut(damaged.folder)
    store.log(old.key).parent.mkdir()
    store.log(old.key).write_text("log")
    assert set(store.prune({kept.key}, Rules(9 * 86400))) == {old.key, damaged.key}
    assert {entry.key for entry in store.entries()} == {kept.key, fresh.key}
    assert not store.log(old.key).exists()
    assert store.prune({kept.key}, Rules(9 * 86400)) == ()
    assert leftovers(store) == []


def test_prune_drops_what_verify_calls_damaged(store: Store) -> None:
    """One byte of a module more is seen only by who reads all of it."""
    good, damaged = (put(store, recipe(driver_version=str(n))) for n in range(2))
    with damaged.paths[0].open("ab") as file:
        file.write(b"x")
    assert {entry.key for entry in store.check() if entry.problem} == {damaged.key}
    assert store.prune((), Rules(9 * 86400)) == (damaged.key,)
    assert [entry.key for entry in store.check()] == [good.key]


def test_drop_of_what_is_gone_is_fine(store: Store) -> None:
    """Dropping twice is no error."""
    put(store, recipe())
    store.drop(recipe().key)
    store.drop(recipe().key)


def test_one_builder_of_a_key(store: Store) -> None:
    """While one process builds a key others wait, and are told where to look if it takes too long."""
    key, other = recipe().key, recipe(arch="arm64").key
    refused = pytest.raises(StoreError, match="another process has been building")
    with store.building(key, 0), store.building(other, 0), refused as caught, store.building(key, 0.2):
        pass
    assert str(store.log(recipe().key)) in (caught.value.hint or "")
    with store.building(recipe().key, 0):
        pass


def test_waiting_for_a_builder_ends_with_a_signal(store: Store) -> None:
    """Who waits for another's build is ended by a signal at once, not when that build is done."""

    def check() -> None:
        raise Stopped(signal.SIGTERM)

    key = recipe().key
    with store.building(key, 0), pytest.raises(Stopped), store.building(key, 3600, check):
        pass


def test_publishers_and_droppers_at_once(store: Store) -> None:
    """Processes that publish, find and drop the same keys at once see whole sets only."""
    workers = [multiprocessing.Process(target=_publish_find_drop, args=(store, seed)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert leftovers(store) == []


def _publish_find_drop(store: Store, seed: int) -> None:
    for turn in range(25):
        wanted = recipe(driver_version=str((seed + turn) % 3))
        with store.building(wanted.key, 300):
            with capture_logs() as logs:
                found = store.find(wanted)
            assert logs == []
            if found is None:
                put(store, wanted)
            elif turn % 5 == 4:
                store.drop(wanted.key)


def test_store_is_its_owners_alone_whatever_comes_first(tmp_path: Path) -> None:
    """Also where a lock is the first thing in it."""
    place = Store(tmp_path / "deep" / "store")
    with place.building(recipe().key, 0):
        assert place.root.stat().st_mode & 0o777 == 0o700
