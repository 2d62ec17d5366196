"""The driver's device files, made from what /proc says."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Dict, Tuple

import pytest
from fake_host import FakeHost
from trees import Link, write_tree

from nvdriver_build.commands import SystemCommands
from nvdriver_build.errors import LoadError
from nvdriver_build.userspace.device_nodes import make_device_nodes, remove_device_nodes

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make device files")

DEVICES = """Character devices:
  1 mem
195 nvidia-frontend
236 nvidia-nvlink
237 nvidia-caps
511 nvidia-uvm

Block devices:
195 nvidia
259 blkext
"""
GPU = "Model: \t\t NVIDIA H100\nIRQ:   \t\t 0\nDevice Minor: \t {}\nGPU Excluded:\t No\n"
PARAMETERS = "ResmanDebugLevel: 4294967295\nModifyDeviceFiles: {}\nDeviceFileUID: {}\nDeviceFileMode: {}\n"
ALL = {
    "nvidiactl": (195, 255),
    "nvidia-modeset": (195, 254),
    "nvidia0": (195, 0),
    "nvidia11": (195, 11),
    "nvidia-uvm": (511, 0),
    "nvidia-uvm-tools": (511, 1),
}


@pytest.fixture
def fake(tmp_path: Path) -> FakeHost:
    """A node with all modules loaded and two GPUs; no nvidia-modprobe is on PATH."""
    host = FakeHost(tmp_path / "node")
    for name in ("nvidia", "nvidia_uvm", "nvidia_modeset"):
        host.module(name)
    gpus = {f"driver/nvidia/gpus/0000:0{minor}:00.0/information": GPU.format(minor) for minor in (0, 11)}
    write_tree(host.root / "proc", {"devices": DEVICES, **gpus})
    return host


def devices(fake: FakeHost) -> Dict[str, Tuple[int, int]]:
    """Character devices by name, with major and minor; all must be for anybody."""
    found = {}
    for path in sorted((fake.root / "dev").iterdir()):
        status = path.lstat()
        assert stat.S_ISCHR(status.st_mode)
        assert stat.S_IMODE(status.st_mode) == 0o666
        found[path.name] = (os.major(status.st_rdev), os.minor(status.st_rdev))
    return found


def test_every_module_gets_its_files(fake: FakeHost) -> None:
    """Control, modeset, each GPU by its minor, uvm and its tools: all for anybody, whatever the umask."""
    mask = os.umask(0o077)
    try:
        assert set(make_device_nodes(fake.host, fake.commands)) == set(ALL)
    finally:
        os.umask(mask)
    assert devices(fake) == ALL
    assert make_device_nodes(fake.host, fake.commands) == ()


@pytest.mark.parametrize("name", ["nvidia", "nvidia-frontend"])
def test_both_names_of_the_driver_are_known(fake: FakeHost, name: str) -> None:
    """Branch 535 registers as nvidia-frontend, later ones as nvidia; a block device of that name is none."""
    (fake.root / "proc/devices").write_text(
        f"Character devices:\n195 {name}\n195 nvidia-modeset\n195 nvidiactl\n\nBlock devices:\n7 nvidia\n"
    )
    assert set(make_device_nodes(fake.host, fake.commands)) == set(ALL) - {"nvidia-uvm", "nvidia-uvm-tools"}
    assert devices(fake)["nvidiactl"] == (195, 255)


def test_only_loaded_modules_get_files(fake: FakeHost) -> None:
    """Without modeset and uvm there are no files for them; without the driver none at all."""
    (fake.root / "proc/devices").write_text("Character devices:\n195 nvidia\n")
    (fake.modules / "nvidia_modeset").rename(fake.root / "gone")
    assert set(make_device_nodes(fake.host, fake.commands)) == {"nvidiactl", "nvidia0", "nvidia11"}
    remove_device_nodes(fake.host)
    (fake.root / "proc/devices").unlink()
    assert make_device_nodes(fake.host, fake.commands) == ()
    assert devices(fake) == {}


def test_wrong_files_are_replaced_and_right_ones_kept(fake: FakeHost) -> None:
    """A file with another number or mode, a plain file and a link make room; what is right stays."""
    dev = fake.root / "dev"
    for name, minor, mode in (("nvidiactl", 255, 0o666), ("nvidia0", 0, 0o600), ("nvidia11", 12, 0o666)):
        os.mknod(dev / name, stat.S_IFCHR, os.makedev(195, minor))
        (dev / name).chmod(mode)
    write_tree(dev, {"nvidia-uvm": "plain", "nvidia-uvm-tools": Link("/dev/null")})
    kept = (dev / "nvidiactl").stat().st_ctime_ns
    assert set(make_device_nodes(fake.host, fake.commands)) == set(ALL) - {"nvidiactl"}
    assert devices(fake) == ALL
    assert (dev / "nvidiactl").stat().st_ctime_ns == kept


def test_drivers_own_parameters_are_obeyed(fake: FakeHost) -> None:
    """NVreg_DeviceFileUID and the like say how the driver's files are; uvm's are not its own."""
    write_tree(fake.root / "proc/driver/nvidia", {"params": PARAMETERS.format(1, 12, 0o640)})
    make_device_nodes(fake.host, fake.commands)
    control, uvm = ((fake.root / "dev" / name).stat() for name in ("nvidiactl", "nvidia-uvm"))
    assert (control.st_uid, stat.S_IMODE(control.st_mode)) == (12, 0o640)
    assert (uvm.st_uid, stat.S_IMODE(uvm.st_mode)) == (0, 0o666)


def test_driver_that_is_told_to_leave_its_files_alone(fake: FakeHost) -> None:
    """With NVreg_ModifyDeviceFiles=0 only uvm's files are made, as nvidia-modprobe does."""
    write_tree(fake.root / "proc/driver/nvidia", {"params": PARAMETERS.format(0, 0, 438)})
    assert set(make_device_nodes(fake.host, fake.commands)) == {"nvidia-uvm", "nvidia-uvm-tools"}


def with_nvidia_modprobe(fake: FakeHost, end: str) -> SystemCommands:
    program = fake.root / "bin" / "nvidia-modprobe"
    program.write_text(f'#!/bin/sh\necho "nvidia-modprobe $*" >>{fake.root}/log\n{end}\n')
    program.chmod(0o755)
    return fake.commands


@pytest.mark.parametrize("end", ["exit 0", "exit 1", "kill -KILL $$"])
def test_nvidia_modprobe_is_asked_first(fake: FakeHost, end: str) -> None:
    """It gets the minors by its own options; what it did not make, for whatever reason, is made here."""
    make_device_nodes(fake.host, with_nvidia_modprobe(fake, end))
    assert fake.ran == ["nvidia-modprobe -c 255 -c 0 -c 11 -m", "nvidia-modprobe -u -c 0"]
    assert devices(fake) == ALL
    make_device_nodes(fake.host, fake.commands)
    assert len(fake.ran) == 2


def test_what_nvidia_modprobe_made_counts(fake: FakeHost) -> None:
    """A file that it made is kept, and named among those that are new."""
    node = fake.root / "dev" / "nvidiactl"
    commands = with_nvidia_modprobe(fake, f"mknod -m 666 {node} c 195 255 && touch -d @1 {node}; exit 0")
    assert set(make_device_nodes(fake.host, commands)) == set(ALL)
    assert node.stat().st_mtime == 1
    assert devices(fake) == ALL


def test_refusal_names_the_file_and_its_numbers(fake: FakeHost) -> None:
    """A file that cannot be made is an error with path and numbers, and a hint."""
    (fake.root / "dev" / "nvidiactl").mkdir()
    with pytest.raises(LoadError, match=r"cannot make .*nvidiactl \(character device 195:255\): ") as error:
        make_device_nodes(fake.host, fake.commands)
    assert "CAP_MKNOD" in str(error.value.hint)


def test_only_nvidias_devices_are_removed(fake: FakeHost) -> None:
    """The driver's devices go, MIG's too; a plain file of such a name, and others' devices, stay."""
    make_device_nodes(fake.host, fake.commands)
    dev = fake.root / "dev"
    for name in ("nvidia-caps/nvidia-cap1", "nvidia-caps-imex-channels/channel0", "nvidia12x", "null"):
        (dev / name).parent.mkdir(exist_ok=True)
        os.mknod(dev / name, stat.S_IFCHR, os.makedev(1, 3))
    write_tree(dev, {"nvidia3": "plain", "nvidia-caps-imex-channels/note": ""})
    remove_device_nodes(fake.host)
    left = sorted(str(path.relative_to(dev)) for path in dev.rglob("*"))
    folder = "nvidia-caps-imex-channels"
    assert left == ["null", folder, f"{folder}/note", "nvidia12x", "nvidia3"]
