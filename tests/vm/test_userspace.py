"""User space on a real kernel: the firmware search path, and the root file system without a container."""

from __future__ import annotations

import shlex
import sys

import pytest

from .conftest import Boot
from .kit import KitKernel

pytestmark = pytest.mark.vm

PARAMETER = "/sys/module/firmware_class/parameters/path"
FOLDER = "/run/nvidia/driver/lib/firmware"
FIRMWARE = "from nvdriver_build.userspace.firmware import set_search_path, clear_search_path"
ROOT = "from nvdriver_build.userspace.rootfs import mount_root, unmount_root"
COMMANDS = "from nvdriver_build.commands import SystemCommands; commands = SystemCommands()"


def python(*lines: str) -> str:
    """A command that runs these lines, from the root folder."""
    program = "; ".join(("from pathlib import Path", *lines))
    return f"cd / && {shlex.quote(sys.executable)} -c {shlex.quote(program)}"


def test_firmware_path_and_root(boot: Boot, kernel_a: KitKernel) -> None:
    """The kernel takes the search path without a newline and loses it again; the root comes, and goes."""
    with boot(kernel_a) as vm:
        setting = python(FIRMWARE, f"assert set_search_path(Path('/sys'), {FOLDER!r}) is None")
        clearing = python(FIRMWARE, f"clear_search_path(Path('/sys'), {FOLDER!r})")
        assert vm.run(f"cat {PARAMETER}").stdout == "\n"
        vm.run(setting)
        assert vm.run(f"cat {PARAMETER}").stdout == f"{FOLDER}\n"
        vm.run(f"printf '' >{PARAMETER}")
        assert vm.run(f"cat {PARAMETER}").stdout == f"{FOLDER}\n", "a write of nothing clears nothing"
        vm.run(clearing)
        assert vm.run(f"cat {PARAMETER}").stdout == "\n"
        vm.run(f"echo /opt/fw >{PARAMETER}")
        vm.run(clearing)
        assert "/opt/fw" in vm.run(f"cat {PARAMETER}").stdout

        place = "Path('/run/nvidia/driver'), commands, Path('/proc')"
        vm.run("cat /proc/self/mountinfo >before")
        vm.run(python(COMMANDS, ROOT, f"mount_root({place})"))
        vm.run("chroot /run/nvidia/driver /bin/sh -c 'test -d /sys/module && test -e /proc/self/stat'")
        vm.run(python(COMMANDS, ROOT, f"assert unmount_root({place})"))
        vm.run("diff before /proc/self/mountinfo")
