"""Where modules come from: the store first, then a build, each proven against the kernel."""

from __future__ import annotations

import multiprocessing
import signal
from pathlib import Path
from typing import Any, List

import pytest
from fake_toolchain import MODULES, VERSION, FakeToolchain, module_bytes
from kernel_trees import RELEASE, RHEL_COMPILER, SYMBOLS
from sample_driver.archives import pack
from structlog.testing import capture_logs
from wishes import commands_of, wish_of

from nvdriver_build.commands import SystemCommands
from nvdriver_build.errors import (
    BuildError,
    CompilerMismatch,
    FitError,
    HeadersError,
    ModuleFormatError,
    SigningError,
    SourceError,
    Stopped,
    StoreError,
    UsageError,
)
from nvdriver_build.kernel import find_headers, target_from_headers
from nvdriver_build.obtain import modules_to_build, obtain, opened_source, require_fit
from nvdriver_build.signing import NOT_KNOWN, KernelTrust
from nvdriver_build.store import Store


@pytest.fixture
def rig(tmp_path: Path) -> FakeToolchain:
    return FakeToolchain.make(tmp_path)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_first_built_then_found(rig: FakeToolchain, store: Store) -> None:
    """The first time it is built, with the log kept; afterwards it is found, and no program is started."""
    built = obtain(wish_of(rig), store, commands_of(rig))
    assert (built.origin, built.fit.fit, built.jobs) == ("built", "exact", 3)
    assert [path.stem for path in built.set.paths] == list(MODULES)
    assert "CC [M]" in store.log(built.set.key).read_text()
    found = obtain(wish_of(rig), store, SystemCommands("/nowhere"))
    assert (found.origin, found.fit.fit, found.jobs) == ("store", "exact", None)
    assert (found.set, rig.make_calls()) == (built.set, 1)


def test_the_manifest_tells_how_it_was_made(rig: FakeToolchain, store: Store) -> None:
    """Compiler, make's words and proof are told, and no path of this machine is in the manifest."""
    built = obtain(wish_of(rig), store, commands_of(rig))
    provenance = built.set.manifest.provenance
    assert (provenance.compiler, provenance.proof) == (RHEL_COMPILER, "release: a test")
    assert "CC=gcc" in provenance.make_flags
    assert str(rig.root) not in (built.set.folder / "manifest.json").read_text()


def test_another_wish_is_another_set(rig: FakeToolchain, store: Store) -> None:
    """Other modules, debug information or another source are built anew, beside what is there."""
    keys = {obtain(wish_of(rig), store, commands_of(rig)).set.key}
    keys.add(obtain(wish_of(rig, debug_info=True), store, commands_of(rig)).set.key)
    keys.add(obtain(wish_of(rig, modules=("nvidia",)), store, commands_of(rig)).set.key)
    (rig.source / "nvidia" / "nv.c").write_text('MODULE_LICENSE("Dual MIT/GPL"); // changed\n')
    keys.add(obtain(wish_of(rig), store, commands_of(rig)).set.key)
    assert (len(keys), rig.make_calls()) == (4, 4)


def test_jobs_and_compiler_are_not_part_of_the_key(rig: FakeToolchain, store: Store) -> None:
    """What does not change the modules does not make them be built again."""
    first = obtain(wish_of(rig), store, commands_of(rig))
    again = obtain(wish_of(rig, jobs=7, proof="other", allow_compiler_mismatch=True), store, commands_of(rig))
    assert (again.set, again.origin) == (first.set, "store")


def test_a_damaged_set_is_built_anew(rig: FakeToolchain, store: Store) -> None:
    """A flipped byte in the store is never given out: the set is dropped, the log says so, it is rebuilt."""
    first = obtain(wish_of(rig), store, commands_of(rig))
    good = first.set.paths[0].read_bytes()
    first.set.paths[0].write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with capture_logs() as logs:
        again = obtain(wish_of(rig), store, commands_of(rig))
    assert "a damaged set is dropped from the store" in [log["event"] for log in logs]
    assert (again.origin, again.set.paths[0].read_bytes()) == ("built", good)


def test_what_does_not_fit_is_not_kept(rig: FakeToolchain, store: Store) -> None:
    """A build with a wrong CRC is FitError naming module, symbol and both CRCs, and is not in the store."""
    rig.modules(crcs={**SYMBOLS, "printk": 0xBAD})
    with pytest.raises(FitError, match=r"nvidia needs printk with CRC 0x00000bad.*0x22222222") as caught:
        obtain(wish_of(rig), store, commands_of(rig))
    assert f"do not fit kernel {RELEASE}" in caught.value.message
    assert "; and 1 more" in caught.value.message
    assert store.entries() == ()


def test_a_hit_is_proven_too(rig: FakeToolchain, store: Store) -> None:
    """What is found in the store is compared with the kernel again: signatures, say, that it asks for now."""
    obtain(wish_of(rig), store, commands_of(rig))
    with pytest.raises(SigningError, match="is not signed"):
        obtain(wish_of(rig, trust=KernelTrust(enforced=True)), store, commands_of(rig))
    assert rig.make_calls() == 1


def test_a_set_of_another_kernel_does_not_fit(rig: FakeToolchain, store: Store, tmp_path: Path) -> None:
    """`require_fit` refuses a set that was built for a kernel of another release with other CRCs."""
    built = obtain(wish_of(rig), store, commands_of(rig))
    other = FakeToolchain.make(tmp_path / "other")
    (other.headers / "Module.symvers").write_text("0x00000001\tprintk\tvmlinux\tEXPORT_SYMBOL\t\n")
    target = target_from_headers(find_headers(other.headers))
    with pytest.raises(FitError, match="printk") as caught:
        require_fit(built.set, target, NOT_KNOWN)
    assert caught.value.exit_code == 13


def test_nothing_to_build_with_is_told(rig: FakeToolchain, store: Store) -> None:
    """Without headers a miss is HeadersError that names driver, kernel and store; a hit needs none."""
    with pytest.raises(HeadersError, match=f"no set for driver {VERSION} on {RELEASE} in {store.root}"):
        obtain(wish_of(rig, headers=None), store, commands_of(rig))
    obtain(wish_of(rig), store, commands_of(rig))
    assert obtain(wish_of(rig, headers=None), store, commands_of(rig)).origin == "store"


def test_an_enforcing_kernel_is_told_before_anything_is_built(rig: FakeToolchain, store: Store) -> None:
    """Where only signed modules load, nothing is compiled that could not be used; a miss is told once."""
    with capture_logs() as logs, pytest.raises(SigningError, match="takes signed modules only"):
        obtain(wish_of(rig, trust=KernelTrust(enforced=True)), store, commands_of(rig))
    assert rig.make_calls() == 0
    assert [log["event"] for log in logs] == ["not in the store"]


def test_no_compiler_is_told_before_anything_is_built(rig: FakeToolchain, store: Store) -> None:
    """No gcc, and one of another major version, end with exit 10 before make is started."""
    rig.program("gcc", "echo 'gcc (GCC) 13.1.0'")
    with pytest.raises(CompilerMismatch, match=r"13\.1\.0"):
        obtain(wish_of(rig), store, commands_of(rig))
    (rig.root / "bin" / "gcc").unlink()
    with pytest.raises(CompilerMismatch, match="no compiler found"):
        obtain(wish_of(rig), store, SystemCommands(str(rig.root / "bin")))
    assert (rig.make_calls(), store.entries()) == (0, ())


BAD_MAKES = {
    "exit 2": "make ended with 2",
    "echo 'nvidia/nv.c:7:3: error: no such thing' >&2; exit 2": "nvidia/nv.c:7: no such thing",
    "kill -9 $$": "killed by SIGKILL",
    "exit 0": r"left no nvidia\.ko",
    "echo 'cc1: error: No space left on device'; exit 2": "No space left on device",
}


@pytest.mark.parametrize("script", sorted(BAD_MAKES))
def test_a_failed_build_leaves_nothing(rig: FakeToolchain, store: Store, script: str) -> None:
    """However make fails: BuildError with cause and log, no set and no leftover; the next one works."""
    good = (rig.root / "bin" / "make").read_text()
    rig.program("make", script)
    with pytest.raises(BuildError, match=BAD_MAKES[script]) as caught:
        obtain(wish_of(rig), store, commands_of(rig))
    told = caught.value.message + (caught.value.hint or "")
    assert ".log" in told or "SIGKILL" in told
    assert (store.entries(), list((store.root / "work").iterdir())) == ((), [])
    rig.program("make", good.partition("\n")[2])
    assert obtain(wish_of(rig), store, commands_of(rig)).origin == "built"


def test_a_killed_make_hints_at_memory(rig: FakeToolchain, store: Store) -> None:
    """SIGKILL is most often the memory killer: the hint says what would mend it."""
    rig.program("make", "kill -9 $$")
    with pytest.raises(BuildError) as caught:
        obtain(wish_of(rig), store, commands_of(rig))
    assert "fewer jobs" in (caught.value.hint or "")


def test_rubbish_of_make_is_told(rig: FakeToolchain, store: Store) -> None:
    """A module that is no module is told by its file, and nothing is kept."""
    (rig.root / "modules" / "nvidia-uvm.ko").write_bytes(b"\x7fELF rubbish")
    with pytest.raises(ModuleFormatError, match=r"nvidia-uvm\.ko"):
        obtain(wish_of(rig), store, commands_of(rig))
    assert store.entries() == ()


def test_no_space_for_a_build_is_told(rig: FakeToolchain, small_disk: Path) -> None:
    """Where the disk is too small for the modules, the error says so, and the store stays usable."""
    big = module_bytes("nvidia") + bytes(300_000)
    (rig.root / "modules" / "nvidia.ko").write_bytes(big)
    store = Store(small_disk / "store")
    with pytest.raises((StoreError, BuildError), match="No space left on device"):
        obtain(wish_of(rig), store, commands_of(rig))
    assert store.entries() == ()
    rig.modules()
    assert obtain(wish_of(rig), store, commands_of(rig)).origin == "built"


def test_a_read_only_store_still_serves(rig: FakeToolchain, read_only_disk: Path) -> None:
    """Where nothing can be put in, StoreError names the store before anything is compiled."""
    with pytest.raises(StoreError, match=f"the store {read_only_disk}/store cannot be used: Read-only"):
        obtain(wish_of(rig), Store(read_only_disk / "store"), commands_of(rig))
    assert rig.make_calls() == 0


@pytest.mark.parametrize("what", ["nvidia/nv.c", ".config", "Module.symvers"])
def test_what_changes_during_a_build_is_in_no_set(rig: FakeToolchain, store: Store, what: str) -> None:
    """A key names what was there at the start; what was read of it since, nobody knows."""
    file = (rig.source if what.endswith(".c") else rig.headers) / what
    script = (rig.root / "bin/make").read_text()
    rig.program("make", f"echo >>{file}\n{script}")
    with pytest.raises(BuildError, match="changed during the build"):
        obtain(wish_of(rig), store, commands_of(rig))
    assert store.entries() == ()


def test_a_signal_ends_a_build(rig: FakeToolchain, store: Store) -> None:
    """Stopped comes through: make and its children are gone, and so is what they made."""
    rig.program("make", "sleep 60 & sleep 60")
    calls: List[int] = []

    def check() -> None:
        calls.append(1)
        if len(calls) > 20:
            raise Stopped(signal.SIGTERM)

    with pytest.raises(Stopped):
        obtain(wish_of(rig), store, SystemCommands(rig.path, check))
    assert (store.entries(), list((store.root / "work").iterdir())) == ((), [])


def test_progress_is_told(rig: FakeToolchain, store: Store) -> None:
    """While make runs, steps done, steps in all and seconds are told."""
    rig.program("make", "echo ' CC [M]  nvidia/nv.o'; sleep 0.6; exit 2")
    told: List[Any] = []
    with pytest.raises(BuildError):
        obtain(wish_of(rig), store, commands_of(rig), progress=lambda *numbers: told.append(numbers))
    done, total, elapsed = told[-1]
    assert (done, total > 1) == (1, True)
    assert 0 < elapsed < 30


def test_two_at_once_build_once(rig: FakeToolchain, store: Store) -> None:
    """Two processes that want the same set make one build; the second finds what the first has made."""
    good = (rig.root / "bin" / "make").read_text().partition("\n")[2]
    rig.program("make", f"sleep 0.5\n{good}")
    workers = [multiprocessing.Process(target=_obtain, args=(rig, store)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 3
    assert rig.make_calls() == 1


def _obtain(rig: FakeToolchain, store: Store) -> None:
    assert obtain(wish_of(rig), store, commands_of(rig)).fit.fit == "exact"


def test_modules_are_built_in_load_order(rig: FakeToolchain) -> None:
    """Without a wish all but nvidia-peermem; with one those, in the order in which they are loaded."""
    source = wish_of(rig).source
    assert modules_to_build(source) == MODULES
    assert modules_to_build(source, ["nvidia-drm", "nvidia", "nvidia-modeset"]) == (
        "nvidia", "nvidia-modeset", "nvidia-drm",
    )  # fmt: skip
    with pytest.raises(SourceError, match=f"driver {VERSION} has no module nvidia-fs; it has nvidia, "):
        modules_to_build(source, ["nvidia", "nvidia-fs"])
    with pytest.raises(UsageError, match="nvidia-peermem is not built"):
        modules_to_build(source, ["nvidia-peermem"])


def test_an_archive_and_its_tree_are_one_source(rig: FakeToolchain, store: Store) -> None:
    """A set built from a tree is found for an archive of it; the unpacked source is gone afterwards."""
    built = obtain(wish_of(rig), store, commands_of(rig))
    archive = pack(rig.source, rig.root / "source.tar.xz")
    with opened_source(archive, "auto", store, commands_of(rig), None) as source:
        assert obtain(wish_of(rig, source=source), store, commands_of(rig)).set == built.set
        assert source.root.is_dir()
    assert not source.root.exists()


def test_a_source_that_does_not_fit_on_the_disk_is_told(rig: FakeToolchain, small_disk: Path) -> None:
    """No space for unpacking is the store's fault, not the archive's, and leaves nothing."""
    (rig.source / "nvidia" / "nv-kernel.o_binary").write_bytes(bytes(1_000_000))
    archive = pack(rig.source, rig.root / "source.tar.xz")
    store = Store(small_disk / "store")
    refused = pytest.raises(StoreError, match="is full: No space left on device")
    with refused, opened_source(archive, "auto", store, commands_of(rig), None):
        pass
    assert list((store.root / "work").iterdir()) == []
