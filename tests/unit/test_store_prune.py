"""What may go from a store: by age, size and kernel; never what is kept, nor what is used meanwhile."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any, List, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st
from module_sets import put, recipe
from structlog.testing import capture_logs

from nvdriver_build import store as store_room
from nvdriver_build.errors import StoreError
from nvdriver_build.sets import Manifest, ModuleSet
from nvdriver_build.store import Entry, Rules, Store
from nvdriver_build.store import entries as entries_room
from nvdriver_build.store.pruning import IN_USE, unwanted

DAY = 86400.0
NOW = 1000 * DAY


def entry(
    key: str,
    days: float = 0.5,
    size: int = 10,
    kernel: str = "k1",
    problem: Optional[str] = None,
    unread: bool = False,
) -> Entry:
    """A set that was used some days ago."""
    of = recipe(kernel_release=kernel)
    manifest = Manifest(of.key, of, "standard", "", "", None, ())  # type: ignore[arg-type]
    found = None if problem else ModuleSet(Path("/nowhere"), manifest)
    return Entry(key, found, size, NOW - days * DAY, problem, unread)


def gone(entries: List[Entry], rules: Rules, keep: str = "") -> str:
    return "".join(sorted(each.key for each in unwanted(entries, keep, rules, NOW)))


def test_by_age() -> None:
    """What nobody used for so long goes, and what is damaged, whenever that was used."""
    entries = [entry("a", 1), entry("b", 9), entry("c", 0, problem="damaged")]
    assert gone(entries, Rules(5 * DAY)) == "bc"
    assert gone(entries, Rules(5 * DAY), keep="bc") == ""


def test_by_size() -> None:
    """The last used stay as far as there is room; what is kept counts, too, and what goes anyway does not."""
    entries = [entry("a", 4, 10), entry("b", 3, 10), entry("c", 2, 10), entry("d", 1, 10, problem="damaged")]
    assert gone(entries, Rules(90 * DAY, size=20)) == "ad"
    assert gone(entries, Rules(90 * DAY, size=20), keep="a") == "bd"
    assert gone(entries, Rules(90 * DAY, size=0)) == "abcd"
    assert gone([entry("a", 2, 1), entry("b", 1, 10)], Rules(90 * DAY, size=5)) == "ab", "the last used first"


def test_by_kernel() -> None:
    """With kernels named, theirs stay, those of the running one, and of the one that was used before it."""
    kernels = {"a": "k1", "b": "k2", "c": "k3", "d": "k4", "e": "k4"}
    entries = [entry(key, number, kernel=kernel) for number, (key, kernel) in enumerate(kernels.items())]
    assert gone(entries, Rules(90 * DAY, kernels={"k4"}, running="k1")) == "c"
    assert gone(entries, Rules(90 * DAY, kernels={"k9"}, running="k3")) == "bde"
    assert gone(entries, Rules(90 * DAY, running="k1")) == "", "without a name kernels do not count"


ALL_RULES = (Rules(0), Rules(90 * DAY, size=0), Rules(90 * DAY, kernels={"k9"}, running="k8"))
"""By age, by size, by kernel: each takes what it can."""


@pytest.mark.parametrize("rules", ALL_RULES)
def test_what_may_be_about_to_be_loaded(rules: Rules) -> None:
    """What was used within the last hour stays, whatever the rule; what is damaged goes all the same."""
    just, before = 0.9 * IN_USE / DAY, 1.1 * IN_USE / DAY
    entries = [
        entry("a", just),
        entry("b", just, problem="damaged"),
        entry("c", -just, kernel="k4"),
        entry("d", just),
    ]
    assert gone(entries, rules) == "b"
    last, other = entry("e", before, kernel="k2"), entry("f", before, kernel="k3")
    assert gone([*entries, last, other], rules) == "bef"


def test_a_clock_that_was_ahead_keeps_nothing() -> None:
    """A set whose time is to come is no more in use than any other, once the clock is right."""
    assert gone([entry("a", -1, size=50)], Rules(90 * DAY, size=20)) == "a"


@pytest.mark.parametrize("rules", ALL_RULES)
def test_what_cannot_be_read_now_stays(rules: Rules) -> None:
    """It may be good, and be in the kernel, which nobody can tell; its size counts."""
    entries = [entry("a", 100, problem="cannot be read now", unread=True), entry("b", 99, problem="damaged")]
    assert gone(entries, rules) == "b"
    assert gone([*entries, entry("c", 1), entry("d", 2)], Rules(90 * DAY, size=20)) == "bd"


_entries = st.lists(
    st.builds(
        entry,
        key=st.sampled_from("abcdefgh"),
        days=st.integers(0, 20),
        size=st.integers(0, 30),
        kernel=st.sampled_from(["k1", "k2", "k3"]),
        problem=st.sampled_from([None, None, "damaged"]),
    ),
    unique_by=lambda each: each.key,
)


@given(_entries, st.sets(st.sampled_from("abcdefgh")), st.integers(0, 60))
def test_what_stays(entries: List[Entry], keep: set[str], size: int) -> None:
    """What is kept stays, whatever it is; of the rest stays only what is sound, young and has room."""
    rules = Rules(10 * DAY, size=size, kernels={"k2"}, running="k1")
    out = {each.key for each in unwanted(entries, keep, rules, NOW)}
    stays = [each for each in entries if each.key not in out]
    assert not out & keep
    others = [each for each in stays if each.key not in keep and each.used <= NOW - IN_USE]
    assert not others or sum(each.size for each in stays) <= size
    assert all(each.problem is None and each.used >= NOW - 10 * DAY for each in others)


@pytest.mark.parametrize("moment", ["before", "between"])
def test_what_is_used_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """A set that is taken while it is pruned is not dropped, at whichever step that is."""
    store = Store(tmp_path / "store")
    made = put(store, recipe())
    long_ago = time.time() - 100 * DAY
    os.utime(made.folder, (long_ago, long_ago))
    check = Store.check

    def listed(self: Store) -> tuple[Entry, ...]:
        found = check(self)
        if moment == "before":
            assert store.find(recipe()) == made
        return found

    rename = Path.rename

    def used_first(path: Path, target: Path) -> Path:
        if path == made.folder:
            assert moment == "between", "it was out of sight for nothing"
            os.utime(path)
        return rename(path, target)

    monkeypatch.setattr(Store, "check", listed)
    monkeypatch.setattr(Path, "rename", used_first)
    assert store.prune((), Rules(DAY)) == ()
    monkeypatch.undo()
    assert store.find(recipe()) == made


@pytest.mark.parametrize("rules", ALL_RULES)
def test_what_run_has_found_is_not_pruned_before_it_is_copied(tmp_path: Path, rules: Rules) -> None:
    """A set that was taken before prune has looked stays, too: it may not be in the kernel yet."""
    store = Store(tmp_path / "store")
    made = put(store, recipe(kernel_release="k1"))
    other = put(store, recipe(kernel_release="k2"))
    last = put(store, recipe(kernel_release="k3"))
    for each, ago in ((made, 2 * IN_USE), (other, 2 * IN_USE), (last, -1)):
        os.utime(each.folder, (time.time() - ago,) * 2)
    assert store.find(made.manifest.recipe) == made
    assert store.prune((), rules) == (other.key,)
    assert store.find(made.manifest.recipe) == made


@pytest.mark.parametrize("order", ["back before the reader goes on", "the reader goes on before it is back"])
def test_a_reader_that_meets_a_prune_gets_the_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    """Prune has it out of sight, sees that it is used, puts it back: who was reading it drops nothing."""
    store = Store(tmp_path / "store")
    made = put(store, recipe())
    os.utime(made.folder, (time.time() - 100 * DAY,) * 2)
    used, away, met, back = (threading.Event() for _ in range(4))
    rename, utime, opened = Path.rename, os.utime, entries_room.open_entry
    found: List[Optional[ModuleSet]] = []

    def read() -> None:
        found.append(store.find(recipe()))
        met.set()

    reader = threading.Thread(target=read)

    def renamed(path: Path, target: Path) -> Path:
        if path == made.folder and not reader.ident:  # prune has looked, and nobody had used it
            reader.start()
            assert used.wait(10)
            rename(path, target)
            away.set()
            assert met.wait(10)
            return target
        rename(path, target)
        if target == made.folder:
            back.set()
        return target

    def told_used(path: Path) -> None:
        utime(path)
        used.set()
        assert away.wait(10)

    def looked(folder: Path, **more: Any) -> ModuleSet:
        try:
            return opened(folder, **more)
        except StoreError:
            if order.startswith("back"):
                met.set()
                assert back.wait(10)
            raise

    def slept(seconds: float) -> None:
        met.set()
        assert back.wait(10)

    monkeypatch.setattr(Path, "rename", renamed)
    monkeypatch.setattr(os, "utime", told_used)
    monkeypatch.setattr(store_room, "open_entry", looked)
    monkeypatch.setattr(time, "sleep", slept)
    with capture_logs() as logs:
        assert store.prune((), Rules(DAY)) == ()
        reader.join(30)
    monkeypatch.undo()
    assert (found, logs) == ([made], [])
    assert store.find(recipe()) == made


def test_a_set_that_goes_while_it_is_read_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it does not come back within a second, it is as one that was never there: nothing is told."""
    store = Store(tmp_path / "store")
    made = put(store, recipe())
    opened = entries_room.open_entry
    pauses: List[float] = []

    def gone_first(folder: Path, **more: Any) -> ModuleSet:
        shutil.rmtree(made.folder)
        return opened(folder, **more)

    monkeypatch.setattr(store_room, "open_entry", gone_first)
    monkeypatch.setattr(time, "sleep", pauses.append)
    with capture_logs() as logs:
        assert store.find(recipe()) is None
    assert (logs, 0.5 < sum(pauses) < 2) == ([], True)
    pauses.clear()
    assert (store.find(recipe()), pauses) == (None, []), "a plain miss waits for nothing"


def test_a_drop_takes_what_is_damaged_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A good set that came into the damaged one's place after it was looked at is put back, and found."""
    store = Store(tmp_path / "store")
    made = put(store, recipe())
    good = shutil.copytree(made.folder, tmp_path / "good")
    inode = good.stat().st_ino
    made.paths[0].write_bytes(b"damaged")
    rename = Path.rename

    def replaced_first(path: Path, target: Path) -> Path:
        if path == made.folder and good.exists():
            rename(made.folder, tmp_path / "damaged")
            rename(good, made.folder)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", replaced_first)
    assert store.find(recipe()) == made
    assert made.folder.stat().st_ino == inode


def test_two_that_drop_one_damaged_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes second finds nothing to drop, and no set."""
    store = Store(tmp_path / "store")
    made = put(store, recipe())
    made.paths[0].write_bytes(b"damaged")
    rename = Path.rename

    def dropped_first(path: Path, target: Path) -> Path:
        if path == made.folder:
            rename(made.folder, tmp_path / "dropped")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", dropped_first)
    assert store.find(recipe()) is None


def test_what_was_damaged_for_a_moment_is_not_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set that another prune had out of sight while this one looked is good once it is back."""
    store = Store(tmp_path / "store")
    made = put(store, recipe())
    opened, away = entries_room.open_entry, [tmp_path / "away"]

    def away_first(folder: Path, **more: Any) -> ModuleSet:
        if not away:
            return opened(folder, **more)
        place = made.folder.rename(away.pop())
        try:
            return opened(folder, **more)
        finally:
            place.rename(made.folder)

    monkeypatch.setattr(entries_room, "open_entry", away_first)
    assert store.prune((), Rules(DAY)) == ()
    assert (away, store.find(recipe())) == ([], made)
