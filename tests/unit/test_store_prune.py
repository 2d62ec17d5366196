"""What may go from a store: by age, size and kernel; never what is kept, nor what is used meanwhile."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import List, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st
from module_sets import put, recipe

from nvdriver_build.sets import Manifest, ModuleSet
from nvdriver_build.store import Entry, Rules, Store
from nvdriver_build.store.pruning import unwanted

DAY = 86400.0
NOW = 1000 * DAY


def entry(
    key: str, days: float = 0, size: int = 10, kernel: str = "k1", problem: Optional[str] = None
) -> Entry:
    """A set that was used some days ago."""
    of = recipe(kernel_release=kernel)
    manifest = Manifest(of.key, of, "standard", "", "", None, ())  # type: ignore[arg-type]
    found = None if problem else ModuleSet(Path("/nowhere"), manifest)
    return Entry(key, found, size, NOW - days * DAY, problem)


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
    others = [each for each in stays if each.key not in keep]
    assert not others or sum(each.size for each in stays) <= size
    assert all(each.problem is None and each.used >= NOW - 10 * DAY for each in others)


@pytest.mark.parametrize("moment", ["before", "between"])
def test_what_is_used_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """A set that is taken while it is pruned is not dropped, at whichever step that is."""
    store = Store(tmp_path / "store")
    made = put(store, recipe())
    long_ago = time.time() - 100 * DAY
    os.utime(made.folder, (long_ago, long_ago))
    entries = Store.entries

    def listed(self: Store) -> tuple[Entry, ...]:
        found = entries(self)
        if moment == "before":
            assert store.find(recipe()) == made
        return found

    rename = Path.rename

    def used_first(path: Path, target: Path) -> Path:
        if path == made.folder:
            os.utime(path)
        return rename(path, target)

    monkeypatch.setattr(Store, "entries", listed)
    if moment == "between":
        monkeypatch.setattr(Path, "rename", used_first)
    assert store.prune((), Rules(DAY)) == ()
    monkeypatch.undo()
    assert store.find(recipe()) == made
