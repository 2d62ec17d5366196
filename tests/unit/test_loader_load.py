"""Loading: order, proof, failures told by cause, and what stays when one module fails."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Iterator, Optional

import pytest
from fake_host import FakeHost

from nvdriver_build.commands import SystemCommands
from nvdriver_build.errors import InUseError, LoadError, NoGpuError
from nvdriver_build.loader import load as loading
from nvdriver_build.loader.host import LOAD_ORDER
from nvdriver_build.loader.kernel_log import Reader
from nvdriver_build.loader.load import load
from nvdriver_build.loader.root import ModuleRoot

IDS = {name: f"{number:040x}" for number, name in enumerate(LOAD_ORDER, 1)}
HOLDERS = {
    "nvidia": ["nvidia_uvm", "nvidia_modeset"],
    "nvidia_uvm": [],
    "nvidia_modeset": ["nvidia_drm"],
    "nvidia_drm": [],
    "nvidia_peermem": [],
}


class Log:
    """A kernel log: it has nothing but what `lines` holds while it is followed."""

    def __init__(self, *lines: str) -> None:
        self.lines = lines

    @contextlib.contextmanager
    def follow(self) -> Iterator[Reader]:
        yield lambda: self.lines


@pytest.fixture
def node(tmp_path: Path) -> FakeHost:
    """A node whose modprobe would load all of NVIDIA's modules."""
    node = FakeHost(tmp_path)
    node.pci("0000:01:00.0", driver="nvidia")
    for name, build_id in IDS.items():
        node.module(name, build_id=build_id, planned=True)
    return node


def root_of(node: FakeHost, helpers: tuple[str, ...] = ()) -> ModuleRoot:
    return ModuleRoot(node.root / "root", "6.1.0-test", IDS, helpers)


def asked_for(node: FakeHost) -> list[str]:
    """The programs that ran, without the options that each modprobe gets."""
    options = f"-d {node.root}/root -C {node.root}/root/modprobe.d -S 6.1.0-test "
    return [line.replace(options, "") for line in node.ran]


def test_modules_are_loaded_in_nvidias_order(node: FakeHost) -> None:
    """Whatever the order of the wish, one modprobe a module, each with the private root and its options."""
    names = ["nvidia_drm", "nvidia_modeset", "nvidia", "nvidia_uvm"]
    done = load(names, root_of(node), node.commands, node.host, Log().follow)
    assert asked_for(node) == [f"modprobe {name}" for name in LOAD_ORDER[:4]]
    assert list(done.seconds) == list(LOAD_ORDER[:4])
    assert all(0 < seconds < 60 for seconds in done.seconds.values())
    assert done.notices == ()


def test_module_that_is_there_is_left_alone(node: FakeHost) -> None:
    """A live module of the same build is not loaded again, and took no time."""
    node.module("nvidia", build_id=IDS["nvidia"])
    done = load(["nvidia", "nvidia_uvm"], root_of(node), node.commands, node.host, Log().follow)
    assert asked_for(node) == ["modprobe nvidia_uvm"]
    assert done.seconds["nvidia"] == 0.0


def test_another_build_that_is_loaded_is_refused(node: FakeHost) -> None:
    """modprobe would call it a success: the build id tells that the kernel has another driver."""
    node.module("nvidia", build_id="ee" * 20)
    with pytest.raises(LoadError) as caught:
        load(["nvidia", "nvidia_uvm"], root_of(node), node.commands, node.host, Log().follow)
    assert caught.value.message == (
        "the kernel does not have the module that was to be loaded: "
        f"nvidia is of another build: wanted {IDS['nvidia']}, loaded is {'ee' * 20}"
    )
    assert caught.value.hint == "another driver was loaded before: unload it first"
    assert node.ran == []


def test_modprobe_that_lies_is_not_believed(node: FakeHost) -> None:
    """Exit 0 without a live module, or with another build, is a failure."""
    (node.root / "plan/nvidia/initstate").write_text("coming\n")
    with pytest.raises(LoadError, match="nvidia is coming, not live"):
        load(["nvidia"], root_of(node), node.commands, node.host, Log().follow)


def test_module_that_is_not_live_yet_is_left_to_modprobe(node: FakeHost) -> None:
    """Somebody else's load that still runs is no module of ours: the kernel makes modprobe wait for it."""
    node.module("nvidia", build_id=IDS["nvidia"], state="coming")
    (node.root / "plan/nvidia/initstate").replace(node.root / "initstate")
    script = (node.root / "bin/modprobe").read_text()
    finish = f"cp {node.root}/initstate {node.modules}/nvidia/initstate\n"
    (node.root / "bin/modprobe").write_text(script + finish)
    load(["nvidia"], root_of(node), node.commands, node.host, Log().follow)
    assert asked_for(node) == ["modprobe nvidia"]


def test_failure_is_told_by_its_cause_and_rolled_back(node: FakeHost) -> None:
    """What this call loaded is unloaded, holders first; what was there before stays."""
    node.module("nvidia_fs")
    node.say("nvidia_drm", "modprobe: ERROR: could not insert 'nvidia_drm': Exec format error")
    log = Log("nvidia_drm: version magic 'a ' should be 'b '")
    for name in ("nvidia", "nvidia_modeset"):
        for holder in HOLDERS[name]:
            (node.root / f"plan/{name}/holders/{holder}").symlink_to(f"../../{holder}")
    (node.root / "plan/nvidia_modeset/holders/nvidia_drm").unlink()
    with pytest.raises(LoadError, match="nvidia_drm was built for another kernel"):
        load(LOAD_ORDER[:4], root_of(node), node.commands, node.host, log.follow)
    removed = [line.split()[1] for line in asked_for(node) if line.startswith("rmmod")]
    assert sorted(removed) == ["nvidia", "nvidia_modeset", "nvidia_uvm"]
    assert removed[-1] == "nvidia"
    assert [path.name for path in node.modules.iterdir()] == ["nvidia_fs"]


def test_roll_back_that_fails_does_not_hide_the_cause(node: FakeHost) -> None:
    """The first failure is the one to tell, whatever rmmod says after it."""
    node.say("nvidia_uvm", "modprobe: ERROR: could not insert 'nvidia_uvm': Cannot allocate memory")
    node.say("nvidia", "rmmod: ERROR: could not remove module nvidia: Operation not permitted", busy=True)
    with pytest.raises(LoadError, match="the kernel has no memory to load nvidia_uvm"):
        load(["nvidia", "nvidia_uvm"], root_of(node), node.commands, node.host, Log().follow)


def test_no_gpu(node: FakeHost) -> None:
    """NVIDIA's words in the kernel log decide, here for exit code 19."""
    node.say("nvidia", "modprobe: ERROR: could not insert 'nvidia': No such device")
    with pytest.raises(NoGpuError, match="there is no NVIDIA GPU on this node"):
        load(["nvidia"], root_of(node), node.commands, node.host, Log("NVRM: No NVIDIA GPU found.").follow)


def test_gpu_that_another_driver_has_is_looked_up(node: FakeHost) -> None:
    """Where the log does not say it, /sys tells who has the GPU."""
    node.pci("0000:02:00.0", driver="nouveau")
    node.say("nvidia", "modprobe: ERROR: could not insert 'nvidia': No such device")
    with pytest.raises(LoadError, match=r"0000:02:00.0 \(10de:2330\) is bound to nouveau"):
        load(["nvidia"], root_of(node), node.commands, node.host, Log().follow)


def test_helpers_come_first_and_may_fail(node: FakeHost) -> None:
    """Optional in-tree modules are loaded before; a failure is a notice, the driver works without."""
    node.module("i2c_core")
    node.say("ipmi_devintf", "modprobe: ERROR: could not insert 'ipmi_devintf': No such device")
    root = root_of(node, ("i2c_core", "ipmi_msghandler", "ipmi_devintf"))
    done = load(["nvidia"], root, node.commands, node.host, Log().follow)
    assert asked_for(node) == ["modprobe -a ipmi_msghandler ipmi_devintf", "modprobe nvidia"]
    assert done.notices == (
        "optional modules (ipmi_msghandler, ipmi_devintf): "
        "modprobe: ERROR: could not insert 'ipmi_devintf': No such device",
    )


def test_what_the_kernel_holds_against_a_module_is_kept(node: FakeHost) -> None:
    """A module that loads with a complaint is loaded, and the complaint is told."""
    log = Log("nvidia: unknown parameter 'NVreg_Foo' ignored")
    done = load(["nvidia"], root_of(node), node.commands, node.host, log.follow)
    assert done.notices == ("nvidia has no parameter NVreg_Foo: ignored",)


def test_load_of_somebody_else_is_waited_for(node: FakeHost) -> None:
    """Busy passes: modprobe is tried again, and only then."""
    busy = "modprobe: ERROR: could not insert 'nvidia': Device or resource busy"
    node.say("nvidia", busy, busy)
    load(["nvidia"], root_of(node), node.commands, node.host, Log().follow)
    assert asked_for(node) == ["modprobe nvidia"] * 3


@pytest.mark.parametrize(
    "words", ["No such device", "Exec format error", "Invalid argument", "Operation not permitted"]
)
def test_what_does_not_pass_is_not_tried_again(node: FakeHost, words: str) -> None:
    """A retry helps against nothing but other loads and unloads."""
    node.say("nvidia", f"modprobe: ERROR: could not insert 'nvidia': {words}")
    with pytest.raises(LoadError):
        load(["nvidia"], root_of(node), node.commands, node.host, Log().follow)
    assert asked_for(node) == ["modprobe nvidia"]


def test_lasting_business_is_told(node: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the other side does not finish, that is said."""
    monkeypatch.setattr(loading, "_OTHERS", 0.2)
    node.say("nvidia", *["modprobe: ERROR: could not insert 'nvidia': Device or resource busy"] * 50)
    with pytest.raises(LoadError, match="nvidia is being loaded or unloaded by somebody else"):
        load(["nvidia"], root_of(node), node.commands, node.host, Log().follow)


@pytest.mark.parametrize(
    ("program", "limit", "words"),
    [
        (None, 5.0, "modules not loaded: modprobe: no such program"),
        ("exec sleep 60", 0.3, "modules not loaded: modprobe .*not done after 0.3 s"),
        ("kill -9 $$", 5.0, "modules not loaded: modprobe .*killed by SIGKILL"),
    ],
    ids=["absent", "hangs", "killed"],
)
def test_modprobe_that_does_not_end_is_told(
    node: FakeHost, monkeypatch: pytest.MonkeyPatch, program: Optional[str], limit: float, words: str
) -> None:
    """A missing, hanging or killed modprobe is a LoadError, with the command line."""
    monkeypatch.setattr(loading, "TIMEOUT", limit)
    modprobe = node.root / "bin/modprobe"
    modprobe.write_text(f"#!/bin/sh\n{program}\n")
    if program is None:
        modprobe.unlink()
    with pytest.raises(LoadError, match=words):
        load(["nvidia"], root_of(node), SystemCommands(f"{node.root}/bin:/bin"), node.host, Log().follow)


def test_rollback_leaves_a_driver_in_use(node: FakeHost) -> None:
    """A module that somebody already uses stays: it is never forced out, and the cause is still told."""
    node.say("nvidia_uvm", "modprobe: ERROR: could not insert 'nvidia_uvm': Cannot allocate memory")
    node.say("nvidia", *["rmmod: ERROR: Module nvidia is in use"] * 100, busy=True)
    with pytest.raises(LoadError) as caught:
        load(["nvidia", "nvidia_uvm"], root_of(node), node.commands, node.host, Log().follow)
    assert not isinstance(caught.value, InUseError)
    assert (node.modules / "nvidia").exists()
    assert all("-f" not in line for line in node.ran)
