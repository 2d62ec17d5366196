"""Unloading: holders first, refused while in use before anything is touched, never forced."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from fake_host import FakeHost
from hypothesis import given
from hypothesis import strategies as st

from nvdriver_build.commands import SystemCommands
from nvdriver_build.errors import InUseError, LoadError
from nvdriver_build.loader.host import LoadedModule
from nvdriver_build.loader.unload import require_unused, unload, unload_order


@pytest.fixture
def node(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


def whole_driver(node: FakeHost) -> None:
    """NVIDIA's modules and two of other people that hold them."""
    node.module("nvidia", holders=["nvidia_uvm", "nvidia_modeset", "gdrdrv", "nvidia_peermem"])
    node.module("nvidia_uvm")
    node.module("nvidia_modeset", holders=["nvidia_drm"])
    node.module("nvidia_drm")
    node.module("gdrdrv", holders=["on_top"])
    node.module("on_top")
    node.module("nvidia_peermem")
    node.module("ib_core", holders=["nvidia_peermem"])


@st.composite
def holder_graphs(draw: st.DrawFn) -> dict[str, LoadedModule]:
    """Modules that hold each other without a circle, as the kernel has them; nvidia holds no other."""
    names = draw(st.permutations([f"m{number}" for number in range(draw(st.integers(0, 8)))]))
    names = ["nvidia", *names] if draw(st.booleans()) else names
    modules = {}
    for position, name in enumerate(names):
        later = names[position + 1 :]
        holders = draw(st.lists(st.sampled_from(later), unique=True)) if later else []
        outside = draw(st.lists(st.just("outside"), max_size=1))
        modules[name] = LoadedModule(name, "live", 0, (*holders, *outside), None, None, None)
    return modules


@given(holder_graphs())
def test_every_module_goes_after_all_of_its_holders(modules: dict[str, LoadedModule]) -> None:
    """For any graph of holders: all modules, each once, each after those that hold it."""
    order = unload_order(modules)
    assert sorted(order) == sorted(modules)
    for name, module in modules.items():
        for holder in set(module.holders) & set(modules):
            assert order.index(holder) < order.index(name)
    assert "nvidia" not in modules or order[-1] == "nvidia"


def test_whole_driver_goes(node: FakeHost) -> None:
    """All modules of the driver go one by one, plainly, and those of the kernel stay."""
    whole_driver(node)
    order = unload(node.host, node.commands)
    assert node.ran == [f"rmmod {name}" for name in order]
    assert sorted(order) == [
        "gdrdrv", "nvidia", "nvidia_drm", "nvidia_modeset", "nvidia_peermem", "nvidia_uvm", "on_top"
    ]  # fmt: skip
    assert [path.name for path in node.modules.iterdir()] == ["ib_core"]


def test_nothing_loaded_is_nothing_to_do(node: FakeHost) -> None:
    """A node without the driver is left as it is."""
    node.module("drm")
    assert unload(node.host, node.commands) == ()
    assert node.ran == []


def test_driver_in_use_is_left_whole(node: FakeHost) -> None:
    """The refusal comes before the first rmmod, and names modules, processes and what frees them."""
    whole_driver(node)
    node.module("nvidia_uvm", used=2)
    node.process(321, "python3", {"5": "/dev/nvidia-uvm", "6": "/dev/nvidia0"})
    with pytest.raises(InUseError) as caught:
        unload(node.host, node.commands, patience=0.1)
    assert caught.value.message == (
        "the driver is in use: nvidia_uvm (references: 2); "
        "by python3 (pid 321: /dev/nvidia-uvm, /dev/nvidia0)"
    )
    assert "drain the node's GPU pods" in (caught.value.hint or "")
    assert node.ran == []


def test_user_that_cannot_be_seen_is_admitted(node: FakeHost) -> None:
    """References without a visible process are told as such."""
    node.module("nvidia", holders=["nvidia_uvm"], used=1)
    node.module("nvidia_uvm")
    with pytest.raises(InUseError) as caught:
        require_unused(node.host, patience=0)
    assert caught.value.message == (
        "the driver is in use: nvidia (references: 2, by module nvidia_uvm); "
        "by no process that is visible here (hostPID shows all), or the kernel itself"
    )


def test_holder_without_a_link_is_no_user(node: FakeHost) -> None:
    """nvidia_fs may take nvidia by symbol_get, which shows as a reference without a holder: it goes first."""
    node.module("nvidia", used=1)
    node.module("nvidia_fs")
    assert unload(node.host, node.commands, patience=0) == ("nvidia_fs", "nvidia")


def test_short_use_is_waited_for(node: FakeHost) -> None:
    """A process that lets go within the patience does not stop the unloading."""
    node.module("nvidia", used=1)
    timer = threading.Timer(0.3, (node.modules / "nvidia/refcnt").write_text, ("0\n",))
    timer.start()
    assert unload(node.host, node.commands, patience=5) == ("nvidia",)
    timer.join()


def test_init_that_runs_is_waited_for(node: FakeHost) -> None:
    """A module whose init still runs, as after a modprobe that was killed, is given time."""
    node.module("nvidia", state="coming", used=1)

    def finish() -> None:
        (node.modules / "nvidia/refcnt").write_text("0\n")
        (node.modules / "nvidia/initstate").write_text("live\n")

    timer = threading.Timer(0.3, finish)
    timer.start()
    assert unload(node.host, node.commands, patience=0) == ("nvidia",)
    timer.join()


def test_rmmod_that_finds_it_busy_is_tried_again(node: FakeHost) -> None:
    """A use between the look and the rmmod may pass as well."""
    node.module("nvidia")
    node.say(
        "nvidia",
        "rmmod: ERROR: Module nvidia is in use",
        "rmmod: ERROR: could not remove module nvidia: Resource temporarily unavailable",
        busy=True,
    )
    assert unload(node.host, node.commands) == ("nvidia",)
    assert node.ran == ["rmmod nvidia"] * 3


def test_use_that_lasts_is_told_by_its_holder(node: FakeHost) -> None:
    """Where rmmod alone knows of the use, its module and the processes are named."""
    node.module("nvidia")
    node.process(5, "nvidia-smi", {"3": "/dev/nvidiactl"})
    node.say("nvidia", *["rmmod: ERROR: Module nvidia is in use"] * 99, busy=True)
    with pytest.raises(
        InUseError, match=r"nvidia \(references: 0\); by nvidia-smi \(pid 5: /dev/nvidiactl\)"
    ):
        unload(node.host, node.commands, patience=0.2)


def test_refusal_for_another_reason_is_told_at_once(node: FakeHost) -> None:
    """What waiting does not help is not waited for."""
    node.module("nvidia")
    node.say("nvidia", "rmmod: ERROR: could not remove module nvidia: Operation not permitted", busy=True)
    started = time.monotonic()
    with pytest.raises(LoadError, match=r"nvidia was not unloaded: .*Operation not permitted"):
        unload(node.host, node.commands, patience=30)
    assert time.monotonic() - started < 20
    assert node.ran == ["rmmod nvidia"]


def test_module_that_went_by_itself_is_fine(node: FakeHost) -> None:
    """Somebody else's rmmod in between, here of the driver manager, is as good as ours."""
    node.module("nvidia", holders=["nvidia_uvm"])
    node.module("nvidia_uvm")
    script = (node.root / "bin/rmmod").read_text()
    gone = f"#!/bin/sh\nrm -rf {node.modules}/nvidia_uvm {node.modules}/nvidia\n"
    (node.root / "bin/rmmod").write_text(gone + script.partition("\n")[2])
    assert unload(node.host, node.commands) == ("nvidia_uvm", "nvidia")


def test_missing_rmmod_is_told(node: FakeHost) -> None:
    """A container without kmod cannot unload."""
    node.module("nvidia")
    with pytest.raises(LoadError, match="nvidia was not unloaded: rmmod: no such program"):
        unload(node.host, SystemCommands(str(node.root / "empty")))


def test_unload_does_not_stand_where_a_file_has_a_modules_name(
    node: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kmod's rmmod takes a file of the module's name in its folder for the module: it is run in /proc."""
    node.module("nvidia")
    script = (node.root / "bin/rmmod").read_text()
    (node.root / "bin/rmmod").write_text(script.replace('rmmod $*"', 'rmmod $* in $PWD"'))
    unload(node.host, node.commands)
    assert node.ran == [f"rmmod nvidia in {node.host.proc}"]
