"""A set of another kernel is used where it is proven to fit: found by an index, told loudly."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any, Dict, Mapping, Optional

import pytest
from attrs import evolve
from crashes import killed_at_each_step
from fake_toolchain import FakeToolchain, module_bytes
from hypothesis import given
from hypothesis import strategies as st
from kernel_trees import CONFIG, RELEASE, SYMBOLS, build_tree, symvers_text
from module_sets import PROVENANCE, recipe
from structlog.testing import capture_logs
from trees import write_tree

from nvdriver_build.commands import SystemCommands
from nvdriver_build.errors import HeadersError
from nvdriver_build.fit import COMPATIBLE, check_fit
from nvdriver_build.kernel import KernelTarget, find_headers, target_from_headers
from nvdriver_build.obtain import Obtained, Wish, modules_to_build, obtain
from nvdriver_build.sets import Recipe, describe
from nvdriver_build.source import open_source
from nvdriver_build.store import Rules, Store

NEXT = "5.14.0-427.99.1.el9_4.x86_64"


class Rig:
    """A store with the set of one kernel, built there, and other kernels beside it."""

    def __init__(self, root: Path) -> None:
        self.toolchain = FakeToolchain.make(root / "toolchain")
        self.store = Store(root / "store")
        self.built = self.get(self.target())

    def target(
        self,
        release: str = RELEASE,
        config: Mapping[str, str] = CONFIG,
        symbols: Optional[Mapping[str, int]] = None,
    ) -> KernelTarget:
        """A kernel; `symbols` differ from the first kernel's, or are more."""
        folder = self.toolchain.root / "kernels"
        shutil.rmtree(folder, ignore_errors=True)
        write_tree(folder, build_tree(release, config, symvers_text({**SYMBOLS, **(symbols or {})})))
        return target_from_headers(find_headers(folder))

    def get(self, target: KernelTarget, *, reuse: bool = True, **differ: Any) -> Obtained:
        """What `run` would get on that kernel; HeadersError where it would have to be built."""
        commands = SystemCommands(self.toolchain.path)
        source = open_source(self.toolchain.source, "auto", self.toolchain.root, commands)
        headers = find_headers(self.toolchain.headers) if target.release == RELEASE else None
        values: Dict[str, Any] = {
            "source": source,
            "target": target,
            "headers": headers,
            "proof": "release: a test",
            "modules": modules_to_build(source),
            "reuse": reuse,
            **differ,
        }
        return obtain(Wish(**values), self.store, commands)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_a_set_of_another_kernel_serves_and_is_told(rig: Rig) -> None:
    """Same symbols and configuration under another release: that set is used, and the log says whose."""
    with capture_logs() as logs:
        found = rig.get(rig.target(NEXT, symbols={"more": 7}))
    assert (found.set, found.origin, found.fit.fit) == (rig.built.set, "store", COMPATIBLE)
    (told,) = [log for log in logs if log["log_level"] == "warning"]
    assert told["event"].startswith("a set that was built for another kernel is used")
    assert (told["built_for"], told["kernel"], told["crcs"]) == (RELEASE, NEXT, found.fit.crcs_proven)


@pytest.mark.parametrize(
    "other",
    [
        {"symbols": {"printk": 1}},
        {"symbols": {"module_layout": 1}},
        {"config": {**CONFIG, "KASAN": "y"}},
        {"config": {**CONFIG, "PREEMPT_BUILD": "n"}},
    ],
    ids=["another CRC", "another module_layout", "another configuration", "another vermagic"],
)
def test_what_differs_is_built_anew(rig: Rig, other: Mapping[str, Any]) -> None:
    """One CRC or one setting that differs, and the set of the other kernel is not used."""
    with pytest.raises(HeadersError, match=NEXT):
        rig.get(rig.target(NEXT, **other))


def test_settings_that_change_no_layout_do_not_count(rig: Rig) -> None:
    """LOCALVERSION, BUILD_SALT and the compiler's text may differ."""
    config = {**CONFIG, "LOCALVERSION": '"-x"', "BUILD_SALT": '"5"', "CC_VERSION_TEXT": '"gcc 11.5"'}
    assert rig.get(rig.target(NEXT, config)).fit.fit == COMPATIBLE


def test_reuse_can_be_switched_off(rig: Rig) -> None:
    """With NVDRIVER_REUSE=exact only the set of exactly this kernel will do."""
    with pytest.raises(HeadersError):
        rig.get(rig.target(NEXT), reuse=False)


@pytest.mark.parametrize("fields", [{"debug_info": True}, {"modules": ("nvidia",)}])
def test_only_the_same_driver_serves(rig: Rig, fields: Mapping[str, Any]) -> None:
    """Another list of modules, or debug information: never a set of something else than was asked for."""
    with pytest.raises(HeadersError):
        rig.get(rig.target(NEXT), **fields)


def test_the_own_kernels_set_comes_first(rig: Rig) -> None:
    """Where both are there, the exact set is taken."""
    target = rig.target(NEXT)
    exact = _put(rig.store, _recipe_for(rig, target), target, NEXT)
    found = rig.get(target)
    assert (found.set.key, found.fit.fit) == (exact.key, "exact")


def test_the_last_used_serves(rig: Rig) -> None:
    """Of several that fit, the one that was used last."""
    second = rig.target("5.14.0-427.50.1.el9_4.x86_64")
    made = _put(rig.store, _recipe_for(rig, second), second, second.release)
    for key, used in ((made.key, 1000), (rig.built.set.key, 2000)):
        os.utime(rig.store.root / "sets" / key, (used, used))
    assert rig.get(rig.target(NEXT)).set == rig.built.set
    os.utime(rig.built.set.folder, (500, 500))
    assert rig.get(rig.target(NEXT)).set.key == made.key


def test_an_index_that_is_lost_costs_a_build_at_most(rig: Rig) -> None:
    """Without the index the other kernel's set is not found; the next use of that set brings it back."""
    shutil.rmtree(rig.store.root / "index")
    with pytest.raises(HeadersError):
        rig.get(rig.target(NEXT))
    rig.get(rig.target(RELEASE))
    assert rig.get(rig.target(NEXT)).set == rig.built.set


def test_a_damaged_set_is_dropped_and_no_other_kernel_gets_it(rig: Rig) -> None:
    """A flipped byte: dropped, told, and forgotten by the index."""
    path = rig.built.set.paths[0]
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with capture_logs() as logs, pytest.raises(HeadersError):
        rig.get(rig.target(NEXT))
    assert any("damaged" in log["event"] for log in logs)
    assert not rig.built.set.folder.exists()
    assert list(rig.store.root.glob("index/*/*")) == []


def test_an_index_that_lies_is_not_believed(rig: Rig) -> None:
    """An entry that promises too much leads to a set that is proven, and refused."""
    (entry,) = rig.store.root.glob("index/*/*")
    entry.write_text("")
    with capture_logs() as logs, pytest.raises(HeadersError):
        rig.get(rig.target(NEXT, symbols={"printk": 1}))
    assert any("does not fit" in log["event"] and "printk" in log["why"] for log in logs)


@pytest.mark.parametrize("damage", [b"\xff\xfe\n", b"no line at all", b"0" * 5000])
def test_a_damaged_index_is_no_traceback(rig: Rig, damage: bytes) -> None:
    """Whatever stands in an entry, the worst is a build."""
    (entry,) = rig.store.root.glob("index/*/*")
    entry.write_bytes(damage)
    (entry.parent / f".{entry.name}.tmp-1").write_bytes(b"")
    (entry.parent / "other").write_bytes(b"")
    (entry.parent / ("f" * 64)).mkdir()
    with pytest.raises(HeadersError):
        rig.get(rig.target(NEXT))


def test_a_dropped_set_leaves_no_entry(rig: Rig) -> None:
    """Prune forgets in the index what it drops; an entry that outlived its set is removed when it is seen."""
    (entry,) = rig.store.root.glob("index/*/*")
    text = entry.read_text()
    os.utime(rig.built.set.folder, (1, 1))
    assert rig.store.prune((), Rules(0)) == (rig.built.set.key,)
    assert not entry.exists()
    entry.write_text(text)
    with pytest.raises(HeadersError):
        rig.get(rig.target(NEXT))
    assert not entry.exists()


@pytest.mark.once
def test_kills_of_a_publish_and_of_a_drop(rig: Rig) -> None:
    """Killed before any step: the next use of the set has it found, and nothing that is gone is given out."""
    target, store = rig.target(NEXT), Store(rig.store.root.with_name("other"))
    of = rig.built.set.manifest.recipe
    wanted = _recipe_for(rig, target)

    def prepare() -> None:
        shutil.rmtree(store.root, ignore_errors=True)

    def publish_and_drop() -> None:
        _put(store, of, target, RELEASE)
        store.drop(of.key)

    seen = set()
    for _ in killed_at_each_step(prepare, publish_and_drop):
        offered = [found.key for found in store.fitting(wanted, target)]
        there = store.find(of) is not None
        seen.add((offered != [], there))
        assert offered in ([], [of.key]) and (there or not offered)
        again = [found.key for found in store.fitting(wanted, target)]
        assert again == ([of.key] if there else [])
    assert seen == {(False, False), (False, True), (True, True)}


def _recipe_for(rig: Rig, target: KernelTarget) -> Recipe:
    return evolve(
        rig.built.set.manifest.recipe,
        kernel_release=target.release,
        symvers_sha256=target.symvers_sha256,
        config_sha256=target.config_sha256,
    )


def _put(store: Store, of: Recipe, target: KernelTarget, release: str, crcs: Any = SYMBOLS) -> Recipe:
    """Publish a sound set of a kernel without building it."""
    vermagic = f"{release} {target.vermagic.partition(' ')[2]}"
    with store.workspace() as work:
        place = work / "set"
        place.mkdir()
        for name in of.modules:
            (place / f"{name}.ko").write_bytes(module_bytes(name, crcs, vermagic))
        describe(
            place,
            of,
            PROVENANCE,
            flavour=target.flavour,
            vermagic=vermagic,
            config_digest=target.config_digest,
        )
        store.add(place, of.key)
    return of


_crcs = st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), st.integers(1, 2))


@given(sets=st.lists(_crcs, max_size=4), kernel=_crcs)
def test_the_index_finds_just_what_fits(
    tmp_path_factory: pytest.TempPathFactory, sets: list[Dict[str, int]], kernel: Dict[str, int]
) -> None:
    """The index offers a set if and only if `check_fit`, asked about each, says that it is compatible."""
    root = tmp_path_factory.mktemp("index")
    store = Store(root / "store")
    write_tree(root / "kernel", build_tree(NEXT, CONFIG, symvers_text({"module_layout": 1, **kernel})))
    target = target_from_headers(find_headers(root / "kernel"))
    for number, crcs in enumerate(sets):
        of = recipe(kernel_release=f"6.{number}", arch="x86_64", modules=("nvidia",))
        _put(store, of, target, of.kernel_release, {"module_layout": 1, **crcs})
    wanted = recipe(kernel_release=NEXT, modules=("nvidia",))
    offered = {found.key for found in store.fitting(wanted, target)}
    fits = {
        entry.key
        for entry in store.entries()
        if entry.set is not None
        and check_fit(entry.set.read(), target, built_config=target.config_digest).fit == COMPATIBLE
    }
    assert offered == fits
    shutil.rmtree(root)


def test_a_thousand_sets_are_asked_in_a_fifth_of_a_second(tmp_path: Path) -> None:
    """No set is opened to see that it does not fit: 1,000 of 700 symbols each take less than 0.2 CPU-s."""
    symbols = {f"symbol_{number}": number + 1 for number in range(20_000)}
    write_tree(tmp_path, build_tree(NEXT, CONFIG, symvers_text({"module_layout": 1, **symbols})))
    target = target_from_headers(find_headers(tmp_path))
    store = Store(tmp_path / "store")
    needs = {"module_layout": 1, **dict(list(symbols.items())[:700]), "symbol_none": 1}
    _put(store, recipe(kernel_release="6.1", modules=("nvidia",)), target, "6.1", needs)
    (entry,) = store.root.glob("index/*/*")
    for number in range(1, 1000):
        shutil.copy(entry, entry.with_name(f"{number:064x}"))
    taken = []
    for _ in range(5):
        started = time.process_time()
        assert list(store.fitting(recipe(modules=("nvidia",)), target)) == []
        taken.append(time.process_time() - started)
    assert min(taken) < 0.2
