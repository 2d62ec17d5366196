"""The real nvidia-peermem on a real kernel, beside the real nvidia and a stand-in for MOFED's ib_core."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from peermem_build import build_peermem, peers_of
from real_build import RealBuild
from sample_driver.mofed import build_mofed

from .conftest import Boot
from .kit import KitKernel
from .machine import Machine

pytestmark = [pytest.mark.vm, pytest.mark.real]

COMMAND = f"{sys.executable} -m nvdriver_build peermem"
EXPORT = f"export PYTHONPATH={Path(__file__).parents[2]}\n"
MOFED, READY = "/run/mellanox/drivers", "/run/nvidia/validations/.driver-ctr-ready"
SLOW = 240
"""Seconds: everything here is emulated, beside other tests."""
MELLANOX = """\
mkdir devices; cp -a /sys/bus/pci/devices/. devices
mkdir devices/0000:07:00.0; cd devices/0000:07:00.0
echo 0x15b3 >vendor; echo 0x1021 >device; echo 0x020700 >class
mount --bind ../../devices /sys/bus/pci/devices
"""
"""A ConnectX among the PCI devices, for those who look at files."""
DRIVER = """\
from pathlib import Path
from nvdriver_build.commands import SystemCommands
from nvdriver_build.elf import read_module
from nvdriver_build.loader.host import Host
from nvdriver_build.loader.kernel_log import KernelLog
from nvdriver_build.loader.load import load
from nvdriver_build.loader.root import prepare_root
modules = [read_module(Path(path), digest=False) for path in {modules!r}]
place, commands = Path("/run/nvdriver-build/modules"), SystemCommands()
tree = Path("/lib/modules/{release}")
root = prepare_root(place, "{release}", modules, tree, commands, others=("ib_core",),
                    parameters={{"nvidia_peermem": ("peerdirect_support=0",)}})
load(("nvidia",), root, commands, Host(), KernelLog().follow)
"""
"""What the driver's container does before: its module root, with nvidia-peermem in it, and nvidia loaded."""


class Keeper:
    """`peermem reload` in a VM that has the driver loaded."""

    def __init__(self, vm: Machine) -> None:
        self.vm = vm

    def start(self) -> None:
        self.vm.run(
            f"rm -f code; {EXPORT}sh -c '{COMMAND} reload >reload.log 2>&1 & echo $! >pid;"
            " wait $!; echo $? >code' >/dev/null 2>&1 &"
        )

    def awaits(self, condition: str) -> float:
        """Wait for a shell condition while the process lives; the seconds that it took."""
        script = f"until {condition}; do [ ! -e code ] || {{ cat reload.log; exit 1; }}; sleep 0.2; done"
        return self.vm.run(script, timeout=SLOW).seconds

    def has_loaded(self, times: int) -> None:
        """Wait until it has seen that for itself: live in the kernel is a moment earlier."""
        self.awaits(f"[ $(grep -c 'nvidia-peermem is loaded' reload.log) = {times} ]")

    def ends(self, signal: str = "0") -> int:
        self.vm.run(f"kill -{signal} $(cat pid); until [ -s code ]; do sleep 0.1; done", timeout=SLOW)
        return int((self.vm.share / "code").read_text())

    @property
    def log(self) -> str:
        return (self.vm.share / "reload.log").read_text()


def probe(vm: Machine) -> int:
    return vm.run(f"{EXPORT}{COMMAND} probe", check=False, timeout=SLOW).code


def test_peermem_comes_and_comes_back(
    boot: Boot, kernel_a: KitKernel, fakegpu: Path, real_build_a: RealBuild, tmp_path: Path
) -> None:
    """It waits for MOFED and the driver, loads, loads again after an update, and refuses another MOFED."""
    first = build_mofed(kernel_a, tmp_path / "mofed")
    update = build_mofed(kernel_a, tmp_path / "update", another=True)
    nvidia = real_build_a.folder / "nvidia.ko"
    peers = peers_of(tmp_path / "mofed", kernel_a, nvidia)
    module = build_peermem(real_build_a.source, kernel_a, peers.symvers, tmp_path / "build")
    live = "grep -q '^nvidia_peermem .* Live' /proc/modules"
    with boot(kernel_a) as vm:
        (vm.share / "driver.py").write_text(
            DRIVER.format(modules=[str(nvidia), module.path], release=kernel_a.release)
        )
        vm.run(f"insmod {fakegpu}; {MELLANOX}")
        vm.run(f"{EXPORT}{sys.executable} driver.py", timeout=SLOW)
        vm.run(
            f"mkdir -p {MOFED} /run/nvidia/driver {Path(READY).parent}; mount --rbind / /run/nvidia/driver;"
            f"mount --bind {tmp_path}/mofed {MOFED}; mount -o remount,bind,rw {MOFED} || true"
        )
        keeper = Keeper(vm)
        keeper.start()
        keeper.awaits("grep -q 'the driver is not ready' reload.log")
        vm.run(f"touch {READY}; insmod {first}; touch {MOFED}/.driver-ready")
        keeper.awaits(live)
        keeper.has_loaded(1)
        assert "peer memory client nv_mem registered" in vm.dmesg()
        holders = "/sys/module/ib_core/holders/nvidia_peermem /sys/module/nvidia/holders/nvidia_peermem"
        vm.run(f"ls -d {holders}; grep -x 0 /sys/module/nvidia_peermem/parameters/peerdirect_support")

        vm.run("rmmod nvidia_peermem")
        assert keeper.awaits(live) < 60, "a second, and what emulation adds"
        keeper.has_loaded(2)
        vm.run("modprobe mlx5_core")
        assert probe(vm) == 0

        vm.run(f"rm {MOFED}/.driver-ready; rmmod nvidia_peermem")
        assert probe(vm) == 1
        vm.run(f"rmmod ib_core; insmod {update}; umount {MOFED}; mount --bind {tmp_path}/update {MOFED}")
        refused = vm.run("modprobe -d /run/nvdriver-build/modules nvidia-peermem", check=False)
        assert refused.code != 0
        assert "disagrees about version of symbol ib_register_peer_memory_client" in vm.dmesg()
        vm.run(f"touch {MOFED}/.driver-ready; until [ -s code ]; do sleep 0.1; done", timeout=SLOW)
        assert (vm.share / "code").read_text() == "13\n", keeper.log
        assert "nvidia-peermem was built against another MOFED" in keeper.log
        assert "hint: restart the driver's pod" in keeper.log

        vm.run(f"rm {MOFED}/.driver-ready")
        keeper.start()
        keeper.awaits("grep -q '.driver-ready is not there' reload.log")
        assert keeper.ends("TERM") == 128 + 15
