"""What is read of a node: modules, devices, processes."""

from __future__ import annotations

import mmap
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_host import FakeHost, build_id_note
from hypothesis import given
from hypothesis import strategies as st
from trees import write_tree

from nvdriver_build.loader.devices import Claim, claimants, mellanox_present, nvidia_devices
from nvdriver_build.loader.host import (
    Host,
    LoadedModule,
    _build_id,
    driver_modules,
    loaded,
    missing,
)
from nvdriver_build.loader.processes import Holder, processes_holding

HOLD = "import sys, time; file = open(sys.argv[1], 'r+b'); print(flush=True); time.sleep(60)"
MAP = (
    "import mmap, sys, time; file = open(sys.argv[1], 'r+b'); area = mmap.mmap(file.fileno(), 4096);"
    "file.close(); print(flush=True); time.sleep(60)"
)


@pytest.fixture
def node(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


def test_loaded_modules_have_their_facts(node: FakeHost) -> None:
    """A loaded module's state, holders, build id and versions are read; one that is built in is none."""
    node.module("nvidia", holders=["nvidia_uvm", "nvidia_modeset"], used=2, build_id="00ff" * 10)
    write_tree(node.modules, {"nvidia/version": "535.261.03\n", "nvidia/srcversion": "B5C8\n"})
    write_tree(node.modules, {"tcp_cubic/parameters/beta": "717\n", "tcp_cubic/version": "2.3\n"})
    assert loaded(node.host) == {
        "nvidia": LoadedModule(
            name="nvidia",
            state="live",
            refcount=4,
            holders=("nvidia_modeset", "nvidia_uvm"),
            build_id="00ff" * 10,
            version="535.261.03",
            srcversion="B5C8",
        )
    }


def test_kernel_without_unloading_has_no_reference_counts(node: FakeHost) -> None:
    """Without CONFIG_MODULE_UNLOAD there is neither refcnt nor holders."""
    write_tree(node.modules, {"nvidia/initstate": "live\n"})
    module = loaded(node.host)["nvidia"]
    assert (module.refcount, module.holders, module.build_id) == (None, (), None)


def test_real_modules_of_this_machine_are_read() -> None:
    """The real /sys and /proc, whatever they hold, are read without an error."""
    host = Host()
    assert set(driver_modules(host)) <= set(loaded(host))
    assert isinstance(nvidia_devices(host), tuple)
    assert isinstance(processes_holding(host), tuple)


def test_driver_is_nvidia_and_all_that_hold_it(node: FakeHost) -> None:
    """The driver is NVIDIA's modules and what holds them, at any distance; nvidiafb is the kernel's."""
    node.module("nvidia", holders=["nvidia_modeset", "gdr_of_somebody"])
    node.module("nvidia_modeset", holders=["nvidia_drm"])
    node.module("nvidia_drm")
    node.module("gdr_of_somebody", holders=["leaf"])
    node.module("leaf")
    node.module("nvidia_fs")
    node.module("nvidiafb")
    node.module("drm", holders=["nvidia_drm"])
    expected = {"nvidia", "nvidia_modeset", "nvidia_drm", "gdr_of_somebody", "leaf", "nvidia_fs"}
    assert set(driver_modules(node.host)) == expected


def test_missing_says_what_is_wrong_with_each_module(node: FakeHost) -> None:
    """Absent, not yet live, of another build: each is a sentence; a build id of None asks for life only."""
    node.module("nvidia", build_id="aa" * 20)
    node.module("nvidia_uvm", build_id="bb" * 20, state="coming")
    node.module("nvidia_drm", build_id="cc" * 20)
    node.module("nvidia_peermem")
    wanted = {"nvidia": "aa" * 20, "nvidia_drm": None}
    assert missing(node.host, wanted) == ()
    assert missing(
        node.host,
        {"nvidia": "dd", "nvidia_uvm": "bb" * 20, "nvidia_modeset": None, "nvidia_peermem": "ee"},
    ) == (
        f"nvidia is of another build: wanted dd, loaded is {'aa' * 20}",
        "nvidia_uvm is coming, not live",
        "nvidia_modeset is not loaded",
        "nvidia_peermem is of another build: wanted ee, loaded is None",
    )


def test_missing_is_cheap_enough_for_every_second(node: FakeHost) -> None:
    """A look at five modules takes well under a hundredth of the second between two looks."""
    names = {f"nvidia_{number}": f"{number:040x}" for number in range(5)}
    for name, build_id in names.items():
        node.module(name, build_id=build_id)
    started = time.process_time()
    for _ in range(20):
        assert missing(node.host, names) == ()
    assert (time.process_time() - started) / 20 < 0.01


@given(st.binary(max_size=64))
def test_damaged_build_id_note_is_none(tmp_path_factory: pytest.TempPathFactory, note: bytes) -> None:
    """Whatever lies in the note, it gives a build id or None."""
    folder = tmp_path_factory.getbasetemp() / "note"
    write_tree(folder, {}).joinpath("notes").mkdir(exist_ok=True)
    (folder / "notes/.note.gnu.build-id").write_bytes(note)
    found = _build_id(folder)
    assert found is None or build_id_note(found)[16:] in note


def test_gpus_are_display_controllers_of_nvidia(node: FakeHost) -> None:
    """VGA and 3D controllers of vendor 10de count; its audio and another vendor's GPU do not."""
    node.pci("0000:01:00.0", driver="nvidia")
    node.pci("0000:02:00.0", pci_class="0x030000")
    node.pci("0000:01:00.1", pci_class="0x040300")
    node.pci("0000:03:00.0", vendor="0x1002")
    assert [str(device) for device in nvidia_devices(node.host)] == [
        "0000:01:00.0 (10de:2330)",
        "0000:02:00.0 (10de:2330)",
    ]
    assert [device.driver for device in nvidia_devices(node.host)] == ["nvidia", None]


def test_mellanox_is_seen(node: FakeHost) -> None:
    """Vendor 15b3 of any class."""
    node.pci("0000:01:00.0")
    assert not mellanox_present(node.host)
    node.pci("0000:05:00.0", vendor="0x15b3", pci_class="0x020700")
    assert mellanox_present(node.host)


def test_drivers_in_the_way_are_told(node: FakeHost) -> None:
    """A GPU that nouveau or vfio-pci has is a claim, and so is a rival that is only loaded; ours is none."""
    node.pci("0000:01:00.0", driver="nvidia")
    assert claimants(node.host) == ()
    node.pci("0000:02:00.0", driver="vfio-pci")
    node.module("nouveau")
    node.module("vfio_pci")
    assert [str(claim) for claim in claimants(node.host)] == [
        "0000:02:00.0 (10de:2330) is bound to vfio-pci",
        "nouveau is loaded",
    ]
    node.pci("0000:03:00.0", driver="nouveau")
    assert [claim.driver for claim in claimants(node.host)] == ["vfio-pci", "nouveau"]
    assert all(isinstance(claim, Claim) for claim in claimants(node.host))


def test_processes_with_open_devices_are_named(node: FakeHost) -> None:
    """A process that has a device of the driver open or mapped is named with it; others are not."""
    node.process(7, "python3", {"0": "/dev/null", "3": "/dev/nvidiactl", "4": "/dev/nvidia-uvm"})
    node.process(12, "mapper", {}, "7f00-7f01 rw-s 00000000 00:05 123    /dev/nvidia0\n")
    node.process(9, "editor", {"0": "/home/dev/nvidia.txt", "1": "socket:[1]"})
    (node.root / "proc/13").mkdir()
    assert processes_holding(node.host) == (
        Holder(7, "python3", ("/dev/nvidia-uvm", "/dev/nvidiactl")),
        Holder(12, "mapper", ("/dev/nvidia0",)),
    )
    assert str(processes_holding(node.host)[1]) == "mapper (pid 12: /dev/nvidia0)"


@pytest.mark.parametrize("program", [HOLD, MAP], ids=["open", "mapped"])
def test_real_process_is_found(tmp_path: Path, program: str) -> None:
    """In the real /proc a process is found by its open file, and by a mapping that outlives it."""
    device = tmp_path / "dev/nvidia0"
    write_tree(tmp_path, {"dev/nvidia0": bytes(mmap.PAGESIZE)})
    argv = (sys.executable, "-c", program, str(device))
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        found = [holder for holder in processes_holding(Host()) if holder.pid == process.pid]
        process.kill()
    assert [holder.devices for holder in found] == [(str(device),)]
