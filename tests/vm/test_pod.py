"""The GPU Operator's pod on a real kernel with a fake GPU: both containers, by the operator's commands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Iterator

import pytest
from attrs import evolve
from real_build import RealBuild
from sample_driver import VERSION as SAMPLE
from standin import toolkit_root

from . import firmware_reader
from .conftest import Boot
from .driver_root import REAL_VERSION, driver_root
from .kit import KitKernel
from .machine import Machine
from .pod import (
    DRIVER,
    FIRMWARE_PATH,
    PRE_STOP,
    READY,
    RUN,
    SLOW,
    UNTIL_NOT_READY,
    VALIDATIONS,
    WAIT_FOR_DRIVER,
    Pod,
)

pytestmark = [pytest.mark.vm, pytest.mark.real]

STORE = "/var/lib/nvdriver-build"
"""The node's own, which the driver's container finds by /proc/1/root."""
MODULES = ["nvidia", "nvidia_drm", "nvidia_modeset", "nvidia_uvm"]
FIRMWARE = f"nvidia/{SAMPLE}/gsp_ga10x.bin"
NOT_READY = f"grep -qx NotReady {VALIDATIONS}/.driver-daemons-status"
PERSISTENCED = f"chroot {RUN}/driver cat /var/run/nvidia-persistenced/nvidia-persistenced.pid"
INSTANCES = "stat -c %i $(ls -d /sys/module/nvidia*)"
"""A module that is loaded again has other files in sysfs."""


@pytest.fixture(scope="session")
def image(real_source: Path) -> Path:
    """The driver image's root."""
    return driver_root(real_source)


@pytest.fixture
def vm(boot: Boot, kernel_a: KitKernel, fakegpu: Path) -> Iterator[Machine]:
    """A VM with a GPU."""
    with boot(kernel_a) as machine:
        machine.run(f"insmod {fakegpu}")
        yield machine


@pytest.fixture
def pod(vm: Machine, kernel_a: KitKernel, image: Path) -> Pod:
    """The pod, not started, on a node whose module folder is as RHEL's."""
    pod = Pod.on(vm, kernel_a, image, toolkit_root("fits"))
    pod.prepare_node()
    return pod


@pytest.fixture(scope="session")
def sample_store(image: Path, kernel_a: KitKernel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the sample driver's set, built here from the image's own source."""
    store = tmp_path_factory.mktemp("sample-store")
    argv = [sys.executable, "-m", "nvdriver_build", "build", "--source", f"{image}/usr/src/nvidia-{SAMPLE}"]
    argv += ["--headers", str(kernel_a.headers), "--output", f"{store}/copy"]
    subprocess.run(argv, check=True, env={**os.environ, "NVDRIVER_STORE": str(store)})
    return store


def fill_store(vm: Machine, *stores: Path) -> None:
    """What earlier pods have left on the node."""
    vm.run(f"mkdir -m 700 -p {STORE}/sets")
    for store in stores:
        vm.run(f"cp -r {store}/sets/* {STORE}/sets/")


def test_the_pod_compiles_loads_and_leaves(pod: Pod, kernel_a: KitKernel, tmp_path: Path) -> None:
    """The toolkit builds what the node's kernel takes; the stack sees the driver; SIGTERM leaves no trace."""
    vm, driver = pod.vm, pod.driver
    reader = firmware_reader.build(kernel_a, tmp_path)
    before = pod.traces()
    pod.start(DRIVER_VERSION=SAMPLE, DRIVER_CONFIG_DIGEST="4711", NVDRIVER_JOBS="2")
    driver.await_(f"[ -e {VALIDATIONS}/.driver-daemons-status ]")
    assert pod.probe().code == 1, "the module is not loaded yet"
    driver.await_(READY, timeout=2 * SLOW)

    status = pod.status()
    assert (status["origin"], status["fit"], status["driver_version"]) == ("built", "exact", SAMPLE)
    assert status["proof"].startswith("symvers: "), "the node's own exports are the toolkit's"
    assert pod.loaded() == MODULES
    assert vm.run(f"cat {RUN}/nvidia-driver.state").stdout == "4711\n"
    probed = pod.probe()
    assert (probed.code, "stands in for nvidia-smi" in probed.stdout) == (0, True), probed
    assert "GPU_DIRECT_RDMA_ENABLED: false" in vm.run(f"cat {VALIDATIONS}/.driver-ctr-ready").stdout

    inside = vm.run(f"chroot {RUN}/driver sh -c 'modprobe -n -v nvidia-uvm && nvidia-smi && ls /dev'").stdout
    assert "stands in for nvidia-smi" in inside
    assert {"nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset"} <= set(inside.split())
    listed = vm.run(
        f"chroot {RUN}/driver sh -c 'modprobe --show-depends nvidia-uvm; modinfo -n nvidia'"
    ).stdout
    assert "/updates/nvidia-uvm.ko" in listed and "/updates/nvidia.ko" in listed
    assert "tmpfs" not in vm.run(f"stat -f -c %T {RUN}/driver").stdout, "it is the container's root"

    assert vm.run(f"cat {FIRMWARE_PATH}").stdout == f"{RUN}/driver/lib/firmware\n"
    vm.run(f"insmod {reader} name={FIRMWARE}; rmmod firmware_reader")
    assert f"firmware_reader: {FIRMWARE} has" in vm.dmesg()

    for _ in range(3):  # a machine that is busy may stall
        first = vm.run(PERSISTENCED).stdout.strip()
        lost = vm.run(f"kill -KILL {first}; until {NOT_READY}; do sleep 0.1; done", timeout=SLOW)
        driver.await_(READY)
        assert vm.run(PERSISTENCED).stdout.strip() != first
        if lost.seconds < 4:
            break
    assert lost.seconds < 4, "a daemon that dies is told within 2 s (and 2 more for the emulation)"
    vm.run(f"[ -e {VALIDATIONS}/.driver-ctr-ready ]")  # restored: the probe runs no more

    driver.exec(PRE_STOP)
    assert driver.end() == 0, driver.log
    assert pod.traces() == before
    assert vm.run("kill -0 $(cat toolkit.pid)", check=False).code == 0, "it never ends by itself"


def test_a_pod_restart_compiles_nothing(pod: Pod, real_build_a: RealBuild, sample_store: Path) -> None:
    """From the store; after SIGKILL it attaches where the digest is the same, else it loads anew."""
    vm, driver = pod.vm, pod.driver
    fill_store(vm, real_build_a.store, sample_store)
    vm.run(f"printf /opt/others >{FIRMWARE_PATH}")
    before = pod.traces()
    pod.start(DRIVER_VERSION=REAL_VERSION, DRIVER_CONFIG_DIGEST="one")
    driver.await_(READY)
    status = pod.status()
    assert (status["origin"], status["fit"], status["key"]) == (
        "store",
        "exact",
        real_build_a.document["key"],
    )
    assert pod.loaded() == MODULES
    kept = "the firmware search path is /opt/others already, and is kept"
    assert any(event["event"].startswith(kept) for event in driver.events())
    assert REAL_VERSION in vm.run("cat /proc/driver/nvidia/version").stdout
    assert pod.probe().code == 0
    vm.run("until grep -q 'standing by' toolkit.log; do sleep 0.1; done", timeout=SLOW)
    assert "building" not in pod.toolkit.log and "asked for" not in pod.toolkit.log
    ticks = "cut -d ' ' -f 14,15 /proc/$(cat toolkit.pid)/stat"
    used = [sum(map(int, vm.run(f"sleep {pause}; {ticks}").stdout.split())) for pause in (0, 5)]
    assert used[1] - used[0] < 100, "hundredths of a second of 5 s, in emulation"

    driver.exec("touch /mark-of-the-first")
    assert driver.end("KILL") == 137
    vm.run(f"{READY} && [ -e {RUN}/driver/mark-of-the-first ]")

    restart(pod, DRIVER_VERSION=SAMPLE, DRIVER_CONFIG_DIGEST="two")
    assert any("unloading it" in event["event"] for event in driver.events())
    assert (pod.status()["origin"], pod.status()["driver_version"]) == ("store", SAMPLE)
    assert vm.run(f"cat {RUN}/nvidia-driver.state").stdout == "two\n"
    vm.run(f"[ ! -e {RUN}/driver/mark-of-the-first ] && [ -e {RUN}/driver/usr/bin/nvidia-smi ]")

    instances = vm.run(INSTANCES).stdout
    assert driver.end("KILL") == 137
    restart(pod, DRIVER_VERSION=SAMPLE, DRIVER_CONFIG_DIGEST="two")
    assert any("attached" in event["event"] for event in driver.events())
    assert vm.run(INSTANCES).stdout == instances
    assert pod.probe().code == 0

    driver.exec(PRE_STOP)
    assert driver.end() == 0, driver.log
    assert pod.traces() == before


def restart(pod: Pod, **environment: str) -> None:
    """Start the driver's container again and wait for it; what a killed one announced goes at once."""
    pod.kubelet()
    pod.driver.start(DRIVER, NVDRIVER_LOG_FORMAT="json", **environment)
    pod.vm.run(f'{UNTIL_NOT_READY}; ! grep \'"event": "done"\' driver.log', timeout=SLOW)
    pod.driver.await_(READY)


THEIRS = f"""
exec 3>{RUN}/nvidia-driver.pid
flock -n 3
echo $$ >&3
mount --make-runbindable /sys
mount --make-private /sys
mount --rbind / {RUN}/driver
echo -n {RUN}/driver/lib/firmware >{FIRMWARE_PATH}
echo 0123 >{RUN}/nvidia-driver.state
touch {VALIDATIONS}/.driver-ctr-ready
echo Ready >{VALIDATIONS}/.driver-daemons-status
exec sleep 3600
"""
"""What NVIDIA's container has done once it waits (rhel9/nvidia-driver), beside loading modules."""


def test_changing_over_from_nvidias_container(pod: Pod, real_build_a: RealBuild, sample_store: Path) -> None:
    """While it lives or is used it is told, exit 16; else it is taken over; `unload` leaves a clean node."""
    vm, driver = pod.vm, pod.driver
    fill_store(vm, sample_store)
    vm.run(f"rm /lib/modules/{pod.kernel.release}/symvers.gz")
    before = pod.traces()
    vm.run("modprobe -a drm video ipmi_devintf")
    vm.run(f"for name in nvidia nvidia-uvm nvidia-modeset; do insmod {real_build_a.folder}/$name.ko; done")
    theirs = evolve(driver, name="theirs")
    theirs.start(THEIRS)
    theirs.await_(READY)

    driver.start(DRIVER, DRIVER_VERSION=SAMPLE)
    assert driver.ended() == 16, driver.log
    pid = vm.run("cat theirs.pid").stdout.strip()
    assert f"another driver runs on this node: process {pid} holds {RUN}/nvidia-driver.pid" in driver.log
    vm.run(f"{READY} && [ -e {VALIDATIONS}/.driver-ctr-ready ] && kill -0 {pid}")

    assert theirs.end("KILL") == 137
    assert vm.run(f"grep -c ' {RUN}/driver' /proc/self/mountinfo").stdout != "0\n"
    pod.toolkit.start(WAIT_FOR_DRIVER)
    vm.run(
        "mknod /dev/nvidiactl c 195 255;"
        "sh -c 'exec 7</dev/nvidiactl; exec sleep 600' >/dev/null 2>&1 & echo $! >holder"
    )
    driver.start(DRIVER, DRIVER_VERSION=SAMPLE)
    assert driver.ended() == 16, driver.log
    holder = vm.run("cat holder").stdout.strip()
    assert f"sleep (pid {holder}: /dev/nvidiactl)" in driver.log
    assert "nvidia" in pod.loaded(), "nothing is forced"
    vm.run(f"! {READY} && [ ! -e {VALIDATIONS}/.driver-ctr-ready ]")

    vm.run("kill $(cat holder); rm /dev/nvidiactl")
    restart(pod, DRIVER_VERSION=SAMPLE, DRIVER_CONFIG_DIGEST="0123")
    assert any("unloading it" in event["event"] for event in driver.events())
    status = pod.status()
    assert (status["origin"], status["driver_version"]) == ("store", SAMPLE)
    assert status["proof"].startswith("build: UTS_VERSION equals uname -v"), "as the toolkit describes it"
    assert pod.probe().code == 0

    assert driver.end("KILL") == 137
    driver.start("nvdriver-build unload")
    assert driver.ended() == 0, driver.log
    assert "unloaded: nvidia, nvidia_drm, nvidia_modeset, nvidia_uvm" in driver.log
    assert pod.traces() == before
