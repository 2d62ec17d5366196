"""`nvdriver-build run` on a real kernel with the real driver and a fake GPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Dict, List

import pytest
from real_build import RealBuild

from .conftest import Boot
from .kit import KitKernel
from .machine import Done, Machine
from .pod import UNTIL_NOT_READY

pytestmark = [pytest.mark.vm, pytest.mark.real]

COMMAND = f"{sys.executable} -m nvdriver_build"
RUN = "/run/nvidia"
READY = f"grep -qx Ready {RUN}/validations/.driver-daemons-status 2>/dev/null"
SLOW = 240
"""Seconds: everything here is emulated, beside other tests."""


class Node:
    """A VM with the driver's settings: starts, awaits and ends `run` in it."""

    def __init__(self, vm: Machine, kernel: KitKernel, build: RealBuild) -> None:
        self.vm, self.store = vm, build.store
        settings = {
            "PYTHONPATH": Path(__file__).parents[2],
            "NVDRIVER_STORE": build.store,
            "NVDRIVER_SOURCE": build.source,
            "NVDRIVER_HEADERS": kernel.headers,
        }
        self.export = "export " + " ".join(f"{name}='{value}'" for name, value in settings.items()) + "\n"

    def command(self, words: str, before: str = "") -> Done:
        return self.vm.run(f"{self.export}{before}{COMMAND} {words}", check=False, timeout=SLOW)

    def start(self) -> None:
        self.vm.run(
            f"rm -f code; {self.export}sh -c '{COMMAND} run --log-format json >run.log 2>&1 & echo $! >pid;"
            " wait $!; echo $? >code' >/dev/null 2>&1 &"
        )

    def await_ready(self) -> None:
        self.vm.run(
            f"until {READY}; do [ ! -e code ] || {{ cat run.log; exit 1; }}; sleep 0.2; done", timeout=SLOW
        )

    def end(self, signal: str = "TERM") -> int:
        """Send a signal to `run` and wait for its exit code."""
        self.vm.run(f"kill -{signal} $(cat pid); until [ -s code ]; do sleep 0.1; done", timeout=SLOW)
        return int((self.vm.share / "code").read_text())

    def events(self) -> List[Dict[str, Any]]:
        """The log of the last `run`, a document a line; the last lines are its error message."""
        log = (self.vm.share / "run.log").read_text()
        lines = log[: log.rfind("\n") + 1].splitlines()  # what comes behind is being written
        return [json.loads(line) for line in lines if line.startswith("{")]

    def status(self) -> Dict[str, Any]:
        document: Dict[str, Any] = json.loads(self.vm.run(f"cat {RUN}/nvdriver-build/status.json").stdout)
        return document

    def loaded(self) -> str:
        return self.vm.run("grep ^nvidia /proc/modules || true").stdout

    def readiness_files(self) -> str:
        return self.vm.run(f"ls -A {RUN}/validations").stdout.strip()


def test_real_driver_lives_on_a_real_kernel(
    boot: Boot, kernel_a: KitKernel, fakegpu: Path, real_build_a: RealBuild
) -> None:
    """No GPU: exit 19. With one: loaded and ready; a lost module is told; SIGTERM leaves nothing."""
    with boot(kernel_a) as vm:
        node = Node(vm, kernel_a, real_build_a)

        without = node.command("run")
        assert without.code == 19, without.stderr
        assert "there is no NVIDIA GPU on this node" in without.stderr
        assert "hint:" in without.stderr
        assert node.readiness_files() == ""

        vm.run(f"insmod {fakegpu}")
        node.start()
        node.await_ready()
        assert "535.261.03" in vm.run("cat /proc/driver/nvidia/version").stdout
        assert {line.split()[0] for line in node.loaded().splitlines()} == {
            "nvidia", "nvidia_uvm", "nvidia_modeset", "nvidia_drm"
        }  # fmt: skip
        status = node.status()
        assert (status["ready"], status["fit"], status["origin"]) == (True, "exact", "store")
        assert set(status["timings"]) == {"look", "obtain", "prepare", "load", "start", "ready"}
        assert status["proof"].startswith("build: UTS_VERSION equals uname -v")
        assert node.command("probe readiness").code == 0

        second = node.command("run")
        assert second.code == 16, second.stderr
        assert "another driver runs on this node" in second.stderr
        assert vm.run(READY).code == 0, "a second run takes nothing from the first"

        stub = "printf '#!/bin/sh\\necho a stub for nvidia-smi\\n' >bin/nvidia-smi; chmod +x bin/*"
        vm.run(
            f"mkdir bin; {stub}; export PATH=$PWD/bin:$PATH; {node.export}{COMMAND} probe startup",
            timeout=SLOW,
        )
        assert node.readiness_files().split() == [".driver-ctr-ready", ".driver-daemons-status"]

        for _ in range(3):  # a machine that is busy may stall
            lost = vm.run(
                f"rmmod nvidia_drm; while [ -e {RUN}/validations/.driver-ctr-ready ]; do sleep 0.1; done"
            )
            if lost.seconds < 4:
                break
            vm.run("modprobe -d /run/nvdriver-build/modules nvidia-drm")
            node.await_ready()
        assert lost.seconds < 4, "a module that is gone is told within 2 s (and 2 more for the emulation)"
        assert vm.run(f"cat {RUN}/validations/.driver-daemons-status").stdout == "NotReady\n"
        assert "nvidia_drm is " in node.status()["error"]["message"]  # 'going', then 'not loaded'
        assert node.command("probe readiness").code == 1
        vm.run("modprobe -d /run/nvdriver-build/modules nvidia-drm")
        node.await_ready()
        assert ".driver-ctr-ready" in node.readiness_files(), "restored: the probe runs no more"

        assert node.end() == 0
        assert node.loaded() == ""
        assert node.readiness_files() == ""
        left = vm.run(f"ls -A {RUN}").stdout.split()
        assert left == ["driver", "nvdriver-build", "validations"], "neither pid nor state file stays"
        assert vm.run(f"ls -A {RUN}/driver").stdout == "", "no root file system is mounted"


def test_killed_run_is_taken_over_and_a_used_driver_is_told(
    boot: Boot, kernel_a: KitKernel, fakegpu: Path, real_build_a: RealBuild
) -> None:
    """After SIGKILL the next run attaches without a reload; a process that uses the driver is named."""
    with boot(kernel_a) as vm:
        node = Node(vm, kernel_a, real_build_a)
        vm.run(f"insmod {fakegpu}")
        node.start()
        node.await_ready()
        vm.run(
            "mknod /dev/nvidiactl c 195 255;"
            "sh -c 'exec 7</dev/nvidiactl; exec sleep 600' >/dev/null 2>&1 & echo $! >holder"
        )
        assert node.end("KILL") == 137
        assert vm.run(READY).code == 0, "a killed run leaves stale readiness"

        node.start()
        vm.run(f'{UNTIL_NOT_READY}; ! grep \'"event": "done"\' run.log', timeout=SLOW)  # no stage has ended
        node.await_ready()
        assert any("attached" in event["event"] for event in node.events())

        assert node.end() == 16
        log = (vm.share / "run.log").read_text()
        holder = (vm.share / "holder").read_text().strip()
        assert f"sleep (pid {holder}: /dev/nvidiactl)" in log
        assert "nvidia " in node.loaded(), "nothing is forced"
        assert vm.run(f"cat {RUN}/nvidia-driver.state").stdout.strip(), "the next run can attach"
        assert node.readiness_files() == ""

        vm.run("kill $(cat holder)")
        assert node.command("unload").code == 0
        assert node.loaded() == ""


def test_set_of_another_kernel_is_refused_before_modprobe(
    boot: Boot, kernel_a: KitKernel, fakegpu: Path, real_build_a: RealBuild, real_build_b: RealBuild
) -> None:
    """A set built for B is unfit on A, is not loaded, and the kernel itself refuses it by insmod."""
    with boot(kernel_a) as vm:
        node = Node(vm, kernel_a, real_build_a)
        vm.run(
            f"insmod {fakegpu}; printf '#!/bin/sh\\ntouch {vm.share}/tried\\n' >modprobe; chmod +x modprobe"
        )
        refused = vm.run(
            f"export PATH=$PWD:$PATH; {node.export}{COMMAND} load {real_build_b.folder}",
            check=False,
            timeout=SLOW,
        )
        assert refused.code == 13, refused.stderr
        assert "the modules do not fit kernel" in refused.stderr
        assert not (vm.share / "tried").exists(), "modprobe was never started"
        vm.run("modprobe drm; modprobe ipmi_devintf")
        plain = vm.run(f"insmod {real_build_b.folder}/nvidia.ko", check=False)
        assert plain.code != 0
        assert "disagrees about version of symbol" in vm.dmesg()


BROKEN = [
    ("device=0x15f8 boot42=0x130a1000", 19, "not supported by open nvidia.ko"),
    ("device=0x2901 boot42=0x1a2a1000", 19, "not supported"),
    ("boot42=0xffffffff", 15, "fallen off the bus"),
]


def test_gpus_that_cannot_be_driven_are_told_apart(
    boot: Boot, kernel_a: KitKernel, fakegpu: Path, real_build_a: RealBuild
) -> None:
    """A GPU too old, one too new, one off the bus: each has its own words, and none has readiness."""
    with boot(kernel_a) as vm:
        node = Node(vm, kernel_a, real_build_a)
        for parameters, code, words in BROKEN:
            vm.run(f"insmod {fakegpu} {parameters}")
            done = node.command("run")
            assert (done.code, words in done.stderr) == (code, True), (
                f"{parameters}: {done.code} {done.stderr}"
            )
            assert node.readiness_files() == ""
            assert node.loaded() == "", "what was loaded on the way is gone again"
            vm.run("rmmod fakegpu")


def test_unsigned_modules_are_refused_where_signatures_are_enforced(
    boot: Boot, kernel_a: KitKernel, fakegpu: Path, real_build_a: RealBuild
) -> None:
    """With module.sig_enforce=1 an unsigned set ends with 14 before modprobe; the kernel says the same."""
    with boot(kernel_a, append="module.sig_enforce=1") as vm:
        node = Node(vm, kernel_a, real_build_a)
        # fakegpu is unsigned too and cannot give a GPU: three files where PCI devices are looked for do.
        vm.run(
            "mount -t tmpfs gpu /sys/bus/pci/devices; mkdir /sys/bus/pci/devices/0000:01:00.0;"
            "cd /sys/bus/pci/devices/0000:01:00.0;"
            "echo 0x10de >vendor; echo 0x2330 >device; echo 0x030200 >class"
        )
        done = node.command("run")
        assert done.code == 14, done.stderr
        assert "is not signed, and the kernel takes signed modules only" in done.stderr
        assert node.readiness_files() == ""
        verdict = json.loads(node.command(f"verify --running --json {real_build_a.folder}").stdout)
        codes = {finding["code"] for module in verdict["modules"] for finding in module["findings"]}
        assert (verdict["fit"], codes) == ("unfit", {"signature"})
        assert "Key was rejected" in vm.run(f"insmod {real_build_a.folder}/nvidia.ko", check=False).stderr
