"""The life of a driver on a node made of files: order, loss, signals at every step, what is left behind."""

from __future__ import annotations

import contextlib
import functools
import shutil
import sys
from pathlib import Path
from typing import Any, Callable, List

import pytest
import structlog
from fake_host import FakeHost
from fake_toolchain import SYSTEM_PATH, FakeToolchain, module_bytes
from fake_userland import FakeUserland
from kernel_trees import RELEASE, SYMBOLS, symvers_text
from keys import Identity
from structlog.testing import capture_logs
from trees import write_tree

from nvdriver_build.cli import logs
from nvdriver_build.commands import SystemCommands
from nvdriver_build.config import read_config
from nvdriver_build.errors import (
    FitError,
    InUseError,
    LoadError,
    NoGpuError,
    SigningError,
    SourceError,
    Stopped,
    UsageError,
    WrongVersion,
)
from nvdriver_build.loader.host import driver_modules
from nvdriver_build.loader.kernel_log import KernelLog
from nvdriver_build.mofed import CLIENT_SYMBOLS
from nvdriver_build.node.getting import Ways
from nvdriver_build.node.life import Node
from nvdriver_build.node.peermem import MofedPlace
from nvdriver_build.node.status import loaded_keys
from nvdriver_build.readiness import Readiness
from nvdriver_build.store import Store

NAMES = ("nvidia", "nvidia_uvm", "nvidia_modeset", "nvidia_drm")


class Rig:
    """A node with one GPU and a driver to build; `life` gives its Node, whose `steps` are calls of `stop`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.toolchain = FakeToolchain.make(write_tree(root / "toolchain", {}))
        self.node = FakeHost(write_tree(root / "node", {}))
        kernel = {"osrelease": f"{RELEASE}\n", "version": "#1 SMP PREEMPT_DYNAMIC a test\n"}
        write_tree(root / "node/proc/sys/kernel", kernel)
        self.node.pci("0000:01:00.0")
        for name in NAMES:
            self.node.module(name, planned=True)
        self.seen: List[Any] = []
        self.userland = FakeUserland()
        self.run_dir = root / "run"

    @property
    def readiness(self) -> Readiness:
        return Readiness(self.run_dir)

    def loaded(self) -> List[str]:
        return sorted(driver_modules(self.node.host))

    def life(self, at: Callable[[int], None] = lambda step: None, **settings: str) -> Node:
        """A driver whose `at` is called at every look for a signal, with a number."""
        path = f"{self.root}/node/bin:{self.root}/toolchain/bin:{SYSTEM_PATH}"
        config = read_config(
            {
                "PATH": path,
                "NVDRIVER_STORE": str(self.root / "store"),
                "NVDRIVER_SOURCE": str(self.toolchain.source),
                "NVDRIVER_HEADERS": str(self.toolchain.headers),
                "NVDRIVER_MODULE_TREE": str(self.root / "node/lib/modules" / RELEASE),
                "NVDRIVER_PARAMETERS": str(self.root / "drivers"),
                "NVDRIVER_RUN_DIR": str(self.run_dir),
                **settings,
            }
        )
        count = iter(range(10**6))
        commands = SystemCommands(path, lambda: at(next(count)))
        return Node(
            config=config,
            host=self.node.host,
            machine="x86_64",
            commands=commands,
            leaving=SystemCommands(path),
            journal=KernelLog(self.root / "no-log").follow,
            stop=lambda: at(next(count)),
            progress=lambda *_: None,
            readiness=self.readiness,
            ways=Ways(config, commands, MofedPlace(self.node.host, self.root / "mofed")),
            userland=self.userland,
            modules=self.root / "modules",
            pause=lambda _: None,
        )

    def stop_when_ready(self, act: Callable[[], None] = lambda: None) -> Callable[[int], None]:
        """Act once when Ready is announced, then ask to end."""

        def at(_: int) -> None:
            if self.readiness.ready:
                act()
                raise Stopped(15)

        return at


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def assert_clean(rig: Rig) -> None:
    assert rig.loaded() == []
    assert list((rig.root / "run/validations").iterdir()) == []
    assert not rig.readiness.pid_file.exists()
    assert not rig.readiness.state.exists()
    assert not rig.userland.up


def test_life_from_nothing_to_nothing(rig: Rig) -> None:
    """Built, loaded in order, announced last of all; a signal withdraws readiness, then unloads."""

    def look() -> None:
        rig.seen.append((rig.loaded(), rig.readiness.read_status()))

    rig.life(rig.stop_when_ready(look)).run()
    loaded, status = rig.seen[0]
    assert loaded == sorted(NAMES)
    assert status is not None
    assert (status.ready, status.origin, status.fit, status.driver_version) == (
        True,
        "built",
        "exact",
        "999.10.01",
    )
    assert list(status.timings) == ["look", "obtain", "prepare", "load", "start", "ready"]
    assert set(status.modules) == set(NAMES)
    order = [line.split()[-1] for line in rig.node.ran]
    assert (order[:4], set(order[4:7]), order[7:]) == (list(NAMES), set(NAMES) - {"nvidia"}, ["nvidia"])
    assert_clean(rig)
    calls = rig.userland.calls
    assert calls[:3] == ["require_supported", "before_load", "after_load"]
    assert calls.index("undo") < calls.index("clean")


def test_signal_at_every_step_leaves_nothing(rig: Rig) -> None:
    """Whenever the signal comes, `run` returns, and nothing is loaded, announced or half-made."""
    for step in range(400):
        rig.life(functools.partial(_stop_at, step)).run()
        assert_clean(rig)
        status = rig.readiness.read_status()
        if status is not None and "ready" in (status.timings or {}):
            break
    assert step >= 5, "a signal came before each stage, and once after readiness"
    assert list((rig.root / "store/work").iterdir()) == []


def _stop_at(last: int, number: int) -> None:
    if number == last:
        raise Stopped(15)


def test_lost_daemon_takes_readiness_away_until_it_is_back(rig: Rig) -> None:
    """A daemon that is down is told in the status; Ready, and what the validator wrote, come back with it."""
    seen: List[Any] = []
    validated = rig.readiness.driver_ready

    def at(_: int) -> None:
        if rig.readiness.ready and not seen:
            rig.userland.lost = ("nvidia-persistenced (pid 7) died",)
            validated.write_text("IS_HOST_DRIVER=false\n")
            seen.append("down")
        elif seen == ["down"] and rig.readiness.announced == "NotReady":
            status = rig.readiness.read_status()
            assert status is not None and status.error is not None and not validated.exists()
            seen.append(status.error["message"])
            rig.userland.lost = ()
        elif len(seen) == 2 and rig.readiness.ready:
            assert validated.exists()
            raise Stopped(15)

    rig.life(at).run()
    assert seen[1] == "the driver is not whole: nvidia-persistenced (pid 7) died"
    assert_clean(rig)


def test_what_is_no_error_of_ours_is_in_the_status_too(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug, or a foul place, is told like every end, and leaves no readiness, whatever else fails."""

    def foul(*_: object) -> None:
        raise ZeroDivisionError("what nobody thought of")

    for act in ("after_load", "undo"):
        monkeypatch.setattr(FakeUserland, act, foul)
    with pytest.raises(ZeroDivisionError):
        rig.life().run()
    status = rig.readiness.read_status()
    assert status is not None and status.error is not None
    assert status.error["message"] == "ZeroDivisionError: what nobody thought of"
    assert list((rig.root / "run/validations").iterdir()) == []


def test_a_set_of_another_kernel_serves_until_that_is_switched_off(rig: Rig) -> None:
    """After a kernel update that changes no symbol nothing is built, and status says whose set it is."""

    def look() -> None:
        rig.seen.append(rig.readiness.read_status())

    rig.life(rig.stop_when_ready(look)).run()
    updated = RELEASE.replace("427.13", "427.99")
    (rig.root / "node/proc/sys/kernel/osrelease").write_text(f"{updated}\n")
    release_h = rig.toolchain.headers / "include/generated/utsrelease.h"
    release_h.write_text(f'#define UTS_RELEASE "{updated}"\n')
    rig.life(rig.stop_when_ready(look)).run()
    first, second = rig.seen[:2]
    assert (first.origin, first.fit, first.built_for) == ("built", "exact", RELEASE)
    assert (second.origin, second.fit, second.built_for) == ("store", "compatible", RELEASE)
    assert (second.key, second.kernel_release, rig.toolchain.make_calls()) == (first.key, updated, 1)
    rig.life(rig.stop_when_ready(look), NVDRIVER_REUSE="exact").run()
    assert (rig.seen[-1].origin, rig.toolchain.make_calls()) == ("built", 2)
    assert_clean(rig)


def test_a_set_of_another_compiler_is_told_where_it_is_taken(rig: Rig) -> None:
    """No key names the compiler: who refuses another one is warned of what somebody else has allowed."""
    rig.toolchain.program("gcc", "case $1 in -print*) echo /bin/sh ;; *) echo 'gcc (GCC) 13.1.0' ;; esac")
    said = "it was built by another compiler than its kernel was"
    for setting in ("allow", "refuse"):
        with capture_logs() as told:
            rig.life(rig.stop_when_ready(), NVDRIVER_COMPILER_MISMATCH=setting).run()
        assert [log["compiler"] for log in told if log["event"] == said] == ["gcc (GCC) 13.1.0"]
    assert rig.toolchain.make_calls() == 1


def test_attaches_only_to_what_both_digests_name(rig: Rig) -> None:
    """After a kill the same set, parameters and DRIVER_CONFIG_DIGEST attach; else it is loaded anew."""
    digest = {"DRIVER_CONFIG_DIGEST": "1234"}

    def killed() -> None:
        raise KeyboardInterrupt  # as near to SIGKILL as a test gets: what follows is not part of `run`

    def start(**settings: str) -> int:
        before = len(rig.node.ran)
        with contextlib.suppress(KeyboardInterrupt):
            rig.life(rig.stop_when_ready(killed), **settings).run()
        return len([line for line in rig.node.ran[before:] if line.startswith("modprobe")])

    assert start(**digest) == 4
    assert rig.readiness.state.read_text() == "1234\n", "the driver manager reads the operator's digest there"
    assert start(**digest) == 0
    assert start(DRIVER_CONFIG_DIGEST="5678") == 4
    assert start(DRIVER_CONFIG_DIGEST="5678") == 0
    write_tree(rig.root / "drivers", {"nvidia.conf": "NVreg_A=1\n"})
    assert start(DRIVER_CONFIG_DIGEST="5678") == 4, "a changed file counts, whatever the operator's digest"


def test_word_of_a_driver_that_others_unloaded_is_not_said_of_the_next(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between its load and its announcement, a driver is not taken for the one before."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rig.life(rig.stop_when_ready(killed)).run()
    for name in NAMES:
        shutil.rmtree(rig.node.modules / name)
    write_tree(rig.root / "drivers", {"nvidia.conf": "NVreg_A=1\n"})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FakeUserland, "after_load", killed)
        rig.life().run()
    assert rig.loaded() == sorted(NAMES)

    (rig.root / "drivers/nvidia.conf").unlink()
    before = len(rig.node.ran)
    rig.life(rig.stop_when_ready(lambda: rig.seen.append(rig.node.ran[before:]))).run()
    assert [line.split()[0] for line in rig.seen.pop()] == ["rmmod"] * 4 + ["modprobe"] * 4


def with_mofed(rig: Rig) -> None:
    """Give the node a Mellanox device and a MOFED that is ready, the toolchain a nvidia-peermem for it."""
    rig.node.pci("0000:02:00.0", vendor="0x15b3", pci_class="0x020000")
    client = dict.fromkeys(CLIENT_SYMBOLS, 12648430)
    rows = symvers_text(client).replace("vmlinux", "drivers/infiniband/core/ib_core")
    write_tree(
        rig.root / "mofed",
        {".driver-ready": "", f"usr/src/ofa_kernel/x86_64/{RELEASE}/Module.symvers": rows},
    )
    module = module_bytes("nvidia-peermem", {**SYMBOLS, **client}, depends="ib_core")
    (rig.toolchain.root / "modules/nvidia-peermem.ko").write_bytes(module)
    rig.node.module("nvidia_peermem", planned=True)


def test_peermem_is_a_set_of_its_own(rig: Rig) -> None:
    """With RDMA, MOFED and its device: built after the driver, loaded last; its going is not the driver's."""
    with_mofed(rig)

    def at(_: int) -> None:
        if rig.readiness.ready and not rig.seen:
            rig.seen.append(rig.loaded())
            shutil.rmtree(rig.node.modules / "nvidia_peermem")
            rig.seen.append("MOFED takes it out for its update")
        elif rig.seen:
            rig.seen.append(rig.readiness.ready)
            if len(rig.seen) > 6:
                raise Stopped(15)

    rig.life(at, GPU_DIRECT_RDMA_ENABLED="true").run()
    assert rig.seen[0] == sorted([*NAMES, "nvidia_peermem"])
    assert set(rig.seen[2:]) == {True}
    assert rig.node.ran[len(NAMES)].split()[-1] == "nvidia_peermem"
    manifests = [entry.set.manifest for entry in Store(rig.root / "store").entries() if entry.set]
    recipes = {manifest.recipe.modules: manifest.recipe for manifest in manifests}
    assert recipes[("nvidia-peermem",)].mofed_symvers_sha256
    assert recipes[("nvidia", "nvidia-uvm", "nvidia-modeset", "nvidia-drm")].mofed_symvers_sha256 is None
    assert rig.toolchain.make_calls() == 2
    assert_clean(rig)
    rig.seen.clear()
    rig.life(rig.stop_when_ready(), GPU_DIRECT_RDMA_ENABLED="true").run()
    assert rig.toolchain.make_calls() == 2, "both come from the store"


def test_peermem_of_another_kernel_serves(rig: Rig) -> None:
    """After a kernel update that changes no symbol, of MOFED's neither, nothing is built."""
    with_mofed(rig)
    rig.life(rig.stop_when_ready(), GPU_DIRECT_RDMA_ENABLED="true").run()
    updated = RELEASE.replace("427.13", "427.99")
    (rig.root / "node/proc/sys/kernel/osrelease").write_text(f"{updated}\n")
    release_h = rig.toolchain.headers / "include/generated/utsrelease.h"
    release_h.write_text(f'#define UTS_RELEASE "{updated}"\n')
    mofed = rig.root / "mofed/usr/src/ofa_kernel/x86_64"
    (mofed / RELEASE).rename(mofed / updated)
    rig.life(rig.stop_when_ready(lambda: rig.seen.append(rig.loaded())), GPU_DIRECT_RDMA_ENABLED="true").run()
    assert rig.seen == [sorted([*NAMES, "nvidia_peermem"])]
    assert rig.toolchain.make_calls() == 2


@pytest.mark.parametrize("lacking", ["device", "wish"])
def test_no_peermem_without_device_or_wish(rig: Rig, lacking: str) -> None:
    """Without RDMA, or without a Mellanox device, MOFED is not waited for and nothing of it is built."""
    with_mofed(rig)
    if lacking == "device":
        shutil.rmtree(rig.root / "node/sys/bus/pci/devices/0000:02:00.0")
    rig.life(rig.stop_when_ready(), GPU_DIRECT_RDMA_ENABLED=str(lacking == "device").lower()).run()
    assert rig.toolchain.make_calls() == 1


def test_failed_load_leaves_no_firmware(rig: Rig) -> None:
    """What was put in place for the driver goes where it did not load; it stays beside one that is in use."""
    rig.node.say("nvidia", *["modprobe: ERROR: could not insert 'nvidia': No such device"] * 3)
    with pytest.raises((LoadError, NoGpuError)):
        rig.life().run()
    assert rig.userland.calls[-2:] == ["undo", "clean"]
    rig.node.module("nvidia", used=1)
    rig.userland.calls.clear()
    with pytest.raises(InUseError):
        rig.life().run()
    assert "clean" not in rig.userland.calls


def test_stub_of_peermem_is_refused(rig: Rig) -> None:
    """A nvidia-peermem that does not use MOFED's symbols would fail in its init: it is not even loaded."""
    with_mofed(rig)
    stub = module_bytes("nvidia-peermem")
    (rig.toolchain.root / "modules/nvidia-peermem.ko").write_bytes(stub)
    with pytest.raises(FitError, match="it is a stub whose init fails"):
        rig.life(GPU_DIRECT_RDMA_ENABLED="true").run()
    assert rig.loaded() == []


def signed_elsewhere(rig: Rig, ours: Identity) -> dict[str, str]:
    """A kernel that takes signed modules only, and a registry with the driver's; the settings of both.

    The node has an empty store, and the certificate alone.
    """
    write_tree(rig.root / "node/sys/module/module/parameters", {"sig_enforce": "Y\n"})
    settings = {"NVDRIVER_REGISTRY": str(rig.root / "registry"), "NVDRIVER_TRUST": str(ours.file)}
    rig.life(rig.stop_when_ready(), **settings, **with_key(ours)).run()
    shutil.rmtree(rig.root / "store")
    with_mofed(rig)
    return {**settings, "GPU_DIRECT_RDMA_ENABLED": "true"}


def with_key(identity: Identity) -> dict[str, str]:
    return {"NVDRIVER_SIGN_KEY": str(identity.key), "NVDRIVER_SIGN_CERT": str(identity.file)}


def look_at(rig: Rig) -> Callable[[int], None]:
    return rig.stop_when_ready(lambda: rig.seen.append((rig.loaded(), rig.readiness.read_status())))


@pytest.mark.parametrize("asked_for", [False, True])
def test_without_a_key_the_driver_comes_up_without_peermem(rig: Rig, ours: Identity, asked_for: bool) -> None:
    """Nobody can sign it ahead: a node under Secure Boot keeps its GPU, and says what is missing and why."""
    settings = signed_elsewhere(rig, ours)
    more = {"NVDRIVER_SIGN_CERT": str(ours.file)} if asked_for else {}
    with capture_logs() as logs:
        rig.life(look_at(rig), **settings, **more).run()
    ((loaded, status),) = rig.seen
    assert (loaded, status.origin) == (sorted(NAMES), "registry")
    assert (status.error, status.peermem_error["code"]) == (None, 14)
    assert "nvidia-peermem is left out" in status.peermem_error["message"]
    assert "NVDRIVER_SIGN_KEY" in status.peermem_error["hint"]
    assert not list((rig.root / "modules").rglob("nvidia-peermem.ko"))
    assert rig.toolchain.make_calls() == 1, "of the one who signs"
    warned = [log["event"] for log in logs if log["log_level"] == "warning"]
    assert status.peermem_error["message"] in warned


def test_a_key_brings_peermem_also_to_nodes_without_one(rig: Rig, ours: Identity) -> None:
    """Built and signed on one node it is published: others with the same MOFED take it."""
    settings = signed_elsewhere(rig, ours)
    for more in (with_key(ours), {}):
        rig.life(look_at(rig), **settings, **more).run()
        shutil.rmtree(rig.root / "store")
    assert [loaded for loaded, _ in rig.seen] == [sorted([*NAMES, "nvidia_peermem"])] * 2
    assert [status.peermem_error for _, status in rig.seen] == [None, None]


def test_a_key_that_cannot_sign_peermem_ends_the_driver(rig: Rig, ours: Identity, theirs: Identity) -> None:
    """Only where there is no key is it left out: this one is a mistake, which is told as always."""
    settings = signed_elsewhere(rig, ours)
    wrong = {**with_key(ours), "NVDRIVER_SIGN_KEY": str(theirs.key)}
    with pytest.raises(SigningError, match="cannot be signed"):
        rig.life(rig.stop_when_ready(), **settings, **wrong).run()
    assert rig.loaded() == []


def test_lost_module_takes_readiness_away_until_it_is_back(rig: Rig) -> None:
    """While a module is gone the ready files are gone; both come back with it."""

    def at(_: int) -> None:
        files = rig.readiness
        gone = not (rig.node.modules / "nvidia_drm").exists()
        if files.ready and not rig.seen:
            files.write_ctr_ready()
            rig.node.commands.run(["rmmod", "nvidia_drm"], timeout=60)
            rig.seen.append("lost")
        elif rig.seen == ["lost"] and gone and files.announced == "NotReady":
            assert not files.ctr_ready.exists()
            status = files.read_status()
            assert status is not None
            assert status.error is not None
            assert "nvidia_drm is not loaded" in status.error["message"]
            rig.node.commands.run(["modprobe", *"123456", "nvidia_drm"], timeout=60)
            rig.seen.append("back")
        elif rig.seen == ["lost", "back"] and files.ready:
            assert files.ctr_ready.exists(), "the startup probe, which wrote it, runs no more"
            raise Stopped(15)

    rig.life(at).run()
    assert rig.seen == ["lost", "back"]
    assert_clean(rig)


def test_same_set_is_attached_to_and_changed_parameters_reload(rig: Rig) -> None:
    """What a killed run left loaded stays loaded; with other parameters it is loaded anew."""

    def die(_: int) -> None:
        if rig.readiness.ready:
            raise SystemExit(137)

    with pytest.raises(SystemExit):
        rig.life(die).run()
    assert rig.loaded() == sorted(NAMES)

    before = len(rig.node.ran)
    rig.life(rig.stop_when_ready(lambda: rig.seen.append(rig.node.ran[before:]))).run()
    assert rig.seen.pop() == [], "attached: neither modprobe nor rmmod was started"

    with pytest.raises(SystemExit):
        rig.life(die).run()
    write_tree(rig.root / "drivers", {"nvidia-uvm.conf": "uvm_disable_hmm=1\n"})
    before = len(rig.node.ran)
    rig.life(rig.stop_when_ready(lambda: rig.seen.append(rig.node.ran[before:]))).run()
    assert [line.split()[0] for line in rig.seen.pop()] == ["rmmod"] * 4 + ["modprobe"] * 4


def test_driver_in_use_is_told_and_can_be_attached_to(rig: Rig) -> None:
    """A used driver is not unloaded: InUseError, no readiness, and the state stays for the next run."""

    def hold() -> None:
        (rig.node.modules / "nvidia/refcnt").write_text("5\n")

    with pytest.raises(InUseError, match="in use"):
        rig.life(rig.stop_when_ready(hold)).run()
    assert rig.loaded() == sorted(NAMES)
    assert rig.readiness.announced is None
    assert rig.readiness.state.exists()
    status = rig.readiness.read_status()
    assert status is not None
    assert status.error is not None
    assert status.error["code"] == 16


def test_stale_readiness_is_withdrawn_before_anything_else(rig: Rig) -> None:
    """What a crashed run left announced is gone at once, and stays gone where the run fails."""
    rig.readiness.write_ctr_ready()
    write_tree(rig.root / "run/validations", {".driver-daemons-status": "Ready\n", "driver-ready": "x\n"})
    (rig.root / "node/sys/bus/pci/devices/0000:01:00.0/vendor").write_text("0x8086\n")
    with pytest.raises(NoGpuError):
        rig.life().run()
    assert_clean(rig)


def test_second_run_is_refused_and_harms_nothing(rig: Rig) -> None:
    """While one run lives a second is InUseError, and the first one's readiness stays."""

    def second() -> None:
        with pytest.raises(InUseError, match="another driver runs on this node"):
            rig.life().run()
        assert rig.readiness.ready
        rig.seen.append("refused")

    rig.life(rig.stop_when_ready(second)).run()
    assert rig.seen == ["refused"]


def test_gpus_that_another_driver_has_are_told_before_a_build(rig: Rig) -> None:
    """Where every GPU is bound elsewhere nothing is built."""
    rig.node.pci("0000:02:00.0", driver="vfio-pci")
    (rig.root / "node/sys/bus/pci/devices/0000:01:00.0/driver").symlink_to("../../drivers/nouveau")
    with pytest.raises(LoadError, match=r"0000:01:00\.0.*nouveau.*0000:02:00\.0.*vfio-pci"):
        rig.life().run()
    assert rig.toolchain.make_calls() == 0


def test_source_of_another_version_is_refused(rig: Rig) -> None:
    """DRIVER_VERSION and the source have to agree; without either, what is missing is named."""
    with pytest.raises(SourceError, match=r"DRIVER_VERSION is 1\.2\.3, the source .* is 999\.10\.01"):
        rig.life(DRIVER_VERSION="1.2.3").run()
    with pytest.raises(SourceError, match="neither NVDRIVER_SOURCE nor DRIVER_VERSION"):
        rig.life(NVDRIVER_SOURCE="").run()
    assert_clean(rig)


def test_parameter_that_is_no_parameter_ends_before_loading(rig: Rig) -> None:
    """A line that could leave its place in modprobe's configuration is UsageError, and nothing is loaded."""
    write_tree(rig.root / "drivers", {"nvidia.conf": "NVreg_A=1\ninstall x\\\n"})
    with pytest.raises(UsageError, match=r"nvidia\.conf, line 2"):
        rig.life().run()
    assert_clean(rig)


def test_load_set_takes_what_build_wrote(rig: Rig) -> None:
    """`load DIR` loads a set that fits, and announces nothing."""
    rig.life(rig.stop_when_ready()).run()
    folder = next((rig.root / "store/sets").iterdir())
    rig.life().load_set(folder)
    assert rig.loaded() == sorted(NAMES)
    assert rig.readiness.announced is None


def test_load_set_withdraws_what_a_crash_left_announced(rig: Rig) -> None:
    """`load` that fails leaves no readiness behind, and tells why; a signal in it leaves nothing loaded."""
    rig.life(rig.stop_when_ready()).run()
    folder = next((rig.root / "store/sets").iterdir())
    write_tree(rig.root / "run/validations", {".driver-daemons-status": "Ready\n"})
    rig.node.say("nvidia_uvm", "modprobe: ERROR: could not insert 'nvidia_uvm': Invalid argument")
    with pytest.raises(LoadError):
        rig.life().load_set(folder)
    assert_clean(rig)
    status = rig.readiness.read_status()
    assert status is not None
    assert status.error is not None

    def at(_: int) -> None:
        if "nvidia" in rig.loaded():
            raise Stopped(15)

    with pytest.raises(Stopped):
        rig.life(at).load_set(folder)
    assert_clean(rig)


def test_full_run_folder_keeps_no_readiness_and_no_driver(rig: Rig, small_disk: Path) -> None:
    """Where /run/nvidia has no byte left, a signal still takes readiness away and unloads."""
    rig.run_dir = small_disk / "nvidia"

    def fill() -> None:
        with contextlib.suppress(OSError), (small_disk / "full").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    rig.life(rig.stop_when_ready(fill)).run()
    assert rig.loaded() == []
    assert not rig.readiness.ready
    assert not rig.readiness.ctr_ready.exists()


def test_log_that_cannot_be_written_ends_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """With standard error on a full disk the driver lives and leaves as ever."""
    structlog_before = structlog.get_config()
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        logs.configure("json", 20)
        try:
            rig.life(rig.stop_when_ready()).run()
        finally:
            structlog.configure(**structlog_before)
            monkeypatch.undo()
        with contextlib.suppress(OSError):
            full.close()
    assert_clean(rig)


def test_loaded_sets_are_known_by_their_build_ids(rig: Rig) -> None:
    """What is in the kernel is never pruned, whatever status.json says meanwhile."""
    rig.life(rig.stop_when_ready()).run()
    store = Store(rig.root / "store")
    key = store.entries()[0].key
    assert loaded_keys(store.entries(), rig.node.host) == set()
    rig.node.module("nvidia_uvm")
    assert loaded_keys(store.entries(), rig.node.host) == {key}


def test_a_pod_for_another_system(rig: Rig) -> None:
    """`run` ends with exit 10 before a source is opened, a module loaded, or anything announced."""
    place = rig.root / "os-release"
    place.write_text("OSTREE_VERSION='9.6.20260616-0'\n")
    settings = {"RHCOS_VERSION": "416.94.202408260940-0", "NVDRIVER_SOURCE": "/nowhere"}
    life = rig.life(rig.stop_when_ready(), **settings)
    life.os_release = place
    with pytest.raises(WrongVersion):
        life.run()
    status = rig.readiness.read_status()
    assert status is not None and status.error is not None and status.error["kind"] == "WrongVersion"
    assert rig.loaded() == [] and not rig.readiness.ready
    assert not (rig.root / "store").exists()
