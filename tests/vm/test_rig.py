"""The rig itself: a boot, the fake GPU, and that no VM outlives its test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from . import machine
from .conftest import Boot
from .fakegpu import TWO
from .kit import KitKernel

pytestmark = pytest.mark.vm

LEFT_ALONE = """
import sys, time
from pathlib import Path
sys.path.insert(0, {above!r})
from {package}.kit import load_kit
from {package}.machine import Machine
kit = load_kit("a", "busybox")
with Machine(kit.kernel("a"), kit.busybox, Path({folder!r})) as vm:
    print(vm.pid, flush=True)
    time.sleep(600)
"""


def test_guest_has_gpu_files_and_python(boot: Boot, kernel_a: KitKernel, fakegpu: Path) -> None:
    """In one boot: the kit's kernel runs, fakegpu gives a GPU, the host's Python runs, files come back."""
    with boot(kernel_a) as vm:
        assert vm.run("uname -r").stdout.strip() == kernel_a.release
        vm.run(f"insmod {fakegpu}")
        assert vm.run("cat /sys/bus/pci/devices/0001:00:00.0/vendor").stdout == "0x10de\n"
        vm.run(f"rmmod fakegpu && insmod {fakegpu} device=0x20b0")
        assert vm.run("cat /sys/bus/pci/devices/0001:00:00.0/device").stdout == "0x20b0\n"
        vm.run(f"rmmod fakegpu && insmod {fakegpu} {TWO}")
        assert vm.run("grep -l 0x10de /sys/bus/pci/devices/0001:*/vendor").stdout.count("\n") == 2
        vm.run("modprobe drm && grep '^drm ' /proc/modules")
        vm.run(
            f"cd / && {sys.executable} -c \"import attrs; print('here', file=open('{vm.share}/note', 'w'))\""
        )
        assert (vm.share / "note").read_text() == "here\n"
        vm.run("touch /etc/only-in-the-guest")
        assert not Path("/etc/only-in-the-guest").exists()
        assert vm.run("exit 3", check=False).code == 3
        assert "Linux version 6.1" in vm.dmesg()


def test_script_in_the_background_lives_on(boot: Boot, kernel_a: KitKernel) -> None:
    """What a script leaves running can be looked at and ended by a later one."""
    with boot(kernel_a) as vm:
        trap = 'trap "echo ended; exit 0" TERM; echo began'
        vm.run(f"sh -c '{trap}; while :; do sleep 0.1; done' >log 2>&1 & echo $! >pid")
        vm.run("until grep began log; do sleep 0.1; done; kill -TERM $(cat pid)")
        vm.run("until grep ended log; do sleep 0.1; done")


def test_slow_script_and_panic_are_told(boot: Boot, kernel_a: KitKernel) -> None:
    """A script past its time and a kernel panic end the VM with a message that shows the console."""
    with boot(kernel_a) as vm, pytest.raises(machine.MachineError, match=r"no end in 1 s: sleep 30"):
        vm.run("sleep 30", timeout=1)
    with (
        boot(kernel_a) as vm,
        pytest.raises(machine.MachineError, match=r"(?s)the VM ended.*sysrq triggered crash"),
    ):
        vm.run("echo c >/proc/sysrq-trigger; sleep 10")


def test_killed_test_run_leaves_no_vm(tmp_path: Path) -> None:
    """QEMU dies with a test process that is killed."""
    package = machine.__name__.rpartition(".")[0]
    above = str(Path(__file__).parents[package.count(".") + 1])
    program = LEFT_ALONE.format(package=package, above=above, folder=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout
        qemu = int(owner.stdout.readline())
        os.kill(qemu, 0)
        owner.send_signal(signal.SIGKILL)
    for _ in range(600):
        if not Path(f"/proc/{qemu}").exists():
            return
        time.sleep(0.1)
    raise AssertionError(f"QEMU {qemu} lives on")
