"""The life of the pod where the node's kernel takes modules: ready, probed, killed, replaced, ended."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import List

import pytest
from pod_node import PodNode
from pod_rig import SLOW, Container, MakePod, Pod, within

READY_FILE = "GDRCOPY_ENABLED: false\nGDS_ENABLED: false\nGPU_DIRECT_RDMA_ENABLED: false\n"
LOADS = ["modprobe nvidia", "modprobe nvidia_uvm", "modprobe nvidia_modeset", "modprobe nvidia_drm"]
SOON = 5.0
"""Seconds from the start of the containers to stage `load` where the store has the set (issue)."""
PROBE = ("sh", "/usr/local/bin/startup-probe.sh")


@pytest.fixture
def taking(filled: PodNode) -> PodNode:
    """A node with the set in its store, whose kernel takes it."""
    [module_set] = (filled.store / "sets").iterdir()
    filled.takes(module_set)
    return filled


def validations(node: PodNode) -> List[str]:
    """The files by which others know that the driver is ready."""
    return sorted(path.name for path in (node.run / "validations").iterdir())


def is_ready(pod: Pod, driver: Container) -> None:
    """Wait until the driver's container says so where the startup probe looks."""
    word = pod.node.run / "validations/.driver-daemons-status"
    end = time.monotonic() + SLOW
    while not (word.exists() and word.read_text() == "Ready\n"):
        assert time.monotonic() < end, driver.text
        time.sleep(0.02)


def left_clean(node: PodNode) -> None:
    """No module, no mount, no word of readiness, no firmware path, no pid file."""
    assert node.modules_loaded == []
    assert node.mounts == []
    assert validations(node) == []
    assert node.firmware_path.read_text().strip("\0\n") == ""  # the kernel takes a zero byte for nothing
    assert not (node.run / "nvidia-driver.pid").exists()
    assert not (node.run / "nvidia-driver.state").exists()


def test_a_whole_life(make_pod: MakePod, taking: PodNode) -> None:
    """Started with the store kept: nothing is compiled, stage `load` within 5 s, announced, probed by the
    operator's rules, and after preStop and SIGTERM the node is as before."""
    pod = make_pod()
    driver = pod.driver()
    toolkit = pod.prepared_toolkit()
    within(SOON, "stage load", driver.says('"stage": "load"').at - driver.began)
    is_ready(pod, driver)
    assert taking.loads == LOADS
    assert (pod.status["origin"], pod.status["fit"]) == ("store", "exact")
    assert validations(taking) == [".driver-daemons-status"]
    assert "stands in for nvidia-smi" in driver.exec(*PROBE)
    assert (taking.run / "validations/.driver-ctr-ready").read_text() == READY_FILE
    assert (taking.run / "nvidia-driver.state").read_text().strip() == "2768893512"
    for name in ("startup", "liveness", "readiness"):
        driver.exec("nvdriver-build", "probe", name)
    toolkit.says("standing by")
    assert "asked for" not in toolkit.text
    sees_the_root(taking)
    assert driver.stop() < 20
    assert driver.waits() == 0, driver.text
    assert "modprobe" not in taking.loads[len(LOADS) :] and taking.loads[-1] == "rmmod nvidia"
    left_clean(taking)
    assert toolkit.runs


def sees_the_root(node: PodNode) -> None:
    """What the container toolkit and the validator do: run the driver's programs in its root, on the host."""
    root = node.run / "driver"
    assert (root / "lib/firmware/nvidia").is_dir()
    assert node.firmware_path.read_text().strip() == "/run/nvidia/driver/lib/firmware"
    done = subprocess.run(["chroot", str(root), "nvidia-smi"], capture_output=True, text=True, check=False)
    assert "stands in for nvidia-smi" in done.stdout
    asked = ["chroot", str(root), "/sbin/modinfo", "-k", node.release, "-F", "version", "nvidia-uvm"]
    assert subprocess.run(asked, capture_output=True, text=True, check=False).returncode == 0


def test_the_operators_probe_before_the_driver_is_ready(make_pod: MakePod, taking: PodNode) -> None:
    """While nothing is loaded the probe fails, and `.driver-ctr-ready` of a killed run is gone at once."""
    for name in (".driver-ctr-ready", "driver-ready"):
        (taking.run / "validations").mkdir(exist_ok=True)
        (taking.run / "validations" / name).write_text("stale\n")
    pod = make_pod("wrong-kernel", environment={"NVDRIVER_STORE": "/tmp/empty"})
    driver = pod.driver()
    driver.says("not in the store")
    assert validations(taking) == [".driver-daemons-status"]
    assert (taking.run / "validations/.driver-daemons-status").read_text() == "NotReady\n"
    assert "nvidia is not loaded" in driver.exec(*PROBE, check=False)
    assert validations(taking) == [".driver-daemons-status"]


def test_a_killed_driver_is_taken_over(make_pod: MakePod, taking: PodNode) -> None:
    """SIGKILL leaves modules, mounts and files; the next container withdraws, attaches, and loads nothing."""
    pod = make_pod()
    first = pod.driver()
    is_ready(pod, first)
    first.exec(*PROBE)
    first.kill()
    assert taking.mounts != [] and ".driver-ctr-ready" in validations(taking)
    second = pod.driver()
    second.says("attached: the same set is live already")
    is_ready(pod, second)
    assert taking.loads == LOADS
    assert pod.status["origin"] == "loaded"
    assert validations(taking) == [".driver-daemons-status"]
    second.exec(*PROBE)
    second.stop()
    assert second.waits() == 0, second.text
    left_clean(taking)


def test_another_configuration_unloads_first(make_pod: MakePod, taking: PodNode) -> None:
    """A digest that is not that of what is loaded: the driver of the killed container is replaced."""
    pod = make_pod()
    first = pod.driver()
    is_ready(pod, first)
    first.kill()
    pod.environment = {"DRIVER_CONFIG_DIGEST": "1"}
    second = pod.driver()
    second.says("another driver is loaded: unloading it")
    is_ready(pod, second)
    assert sorted(taking.loads[4:8]) == sorted(load.replace("modprobe", "rmmod") for load in LOADS)
    assert taking.loads[7] == "rmmod nvidia"
    assert taking.loads[8:] == LOADS
    second.stop()
    left_clean(taking)


def test_nvidias_own_container_was_here_before(make_pod: MakePod, taking: PodNode, tmp_path: Path) -> None:
    """Its driver is loaded, its root is mounted, its files lie there: all is replaced by ours."""
    theirs = tmp_path / "theirs"
    (theirs / "usr/bin").mkdir(parents=True)
    (taking.run / "driver").mkdir(exist_ok=True)
    subprocess.run(["mount", "--rbind", str(theirs), str(taking.run / "driver")], check=True)
    (taking.run / "nvidia-driver.state").write_text("2768893512\n")
    (taking.run / "nvidia-driver.pid").write_text("4194303\n")
    for name in ("nvidia", "nvidia_uvm"):
        taking.has(name, "ab" * 20)
    pod = make_pod()
    driver = pod.driver()
    driver.says("another driver is loaded: unloading it")
    is_ready(pod, driver)
    assert taking.loads == ["rmmod nvidia_uvm", "rmmod nvidia", *LOADS]
    sees_the_root(taking)
    driver.stop()
    assert driver.waits() == 0, driver.text
    left_clean(taking)


@pytest.mark.parametrize("moment", ["not in the store", "waiting", "compiling"])
def test_sigterm_before_anything_is_loaded(make_pod: MakePod, node: PodNode, moment: str) -> None:
    """At each stage it ends at once, with nothing left; the toolkit's container stays."""
    pod = make_pod()
    driver = pod.driver()
    toolkit = None if moment == "waiting" else pod.prepared_toolkit()
    if moment == "compiling":
        pod.waits_for("toolkit-beat.json", lambda beat: beat.get("total", 0) > 0)
    else:
        driver.says("the toolkit's end" if moment == "waiting" else moment)
    assert driver.stop() < 15
    assert driver.waits() == 0, driver.text
    assert validations(node) == [] and not (node.run / "nvidia-driver.pid").exists()
    assert pod.status["ready"] is False
    assert toolkit is None or toolkit.runs


def test_sigterm_while_a_module_is_loaded(make_pod: MakePod, taking: PodNode) -> None:
    """What is in the kernel by then goes again, at once."""
    modprobe = taking.rig / "bin/modprobe"
    modprobe.write_text(modprobe.read_text().replace("#!/bin/sh\n", "#!/bin/sh\nsleep 0.8\n"))
    pod = make_pod()
    driver = pod.driver()
    end = time.monotonic() + SLOW
    while "nvidia" not in taking.modules_loaded:
        assert time.monotonic() < end, driver.text
        time.sleep(0.02)
    assert driver.stop() < 15
    assert driver.waits() == 0, driver.text
    assert "rmmod nvidia" in taking.loads
    left_clean(taking)


def test_the_root_is_busy_at_the_end(make_pod: MakePod, taking: PodNode) -> None:
    """A process of the host that stands in the driver's root does not keep it mounted."""
    pod = make_pod()
    driver = pod.driver()
    is_ready(pod, driver)
    with subprocess.Popen(["sleep", "60"], cwd=taking.run / "driver/usr") as standing:
        try:
            driver.stop()
            assert driver.waits() == 0, driver.text
            left_clean(taking)
        finally:
            standing.kill()


def test_a_second_driver_on_the_node(make_pod: MakePod, taking: PodNode) -> None:
    """It names the process of the first, ends with 16, and takes nothing away from it."""
    pod = make_pod()
    first = pod.driver()
    is_ready(pod, first)
    second = make_pod().driver()
    assert second.waits() == 16
    owner = (taking.run / "nvidia-driver.pid").read_text().strip()
    assert f"process {owner} holds" in second.text
    assert pod.status["ready"] and taking.mounts != [] and validations(taking) == [".driver-daemons-status"]
    first.stop()
    left_clean(taking)


def test_nvidias_name_for_a_pod_without_a_toolkit(make_pod: MakePod, taking: PodNode) -> None:
    """`nvidia-driver init` serves from the store, with a parameter of the operator's ConfigMap."""
    (taking.rig / "nvidia.conf").write_text("NVreg_EnableResizableBar=1\n")
    pod = make_pod("", more=("-v", f"{taking.rig}/nvidia.conf:/drivers/nvidia.conf:ro"))
    driver = pod.driver("nvidia-driver", "init", "--accept-license", "-m", "2")
    is_ready(pod, driver)
    options = driver.exec("sh", "-c", "cat /run/nvdriver-build/modules/*/*.conf")
    assert "NVreg_EnableResizableBar=1" in options
    driver.stop()
    assert driver.waits() == 0
    left_clean(taking)


def test_the_peermem_container(make_pod: MakePod, taking: PodNode) -> None:
    """`reload_nvidia_peermem` waits, its probe asks nothing while there is no MOFED, and SIGTERM ends it."""
    pod = make_pod("")
    peermem = pod.peermem()
    assert "mlx5_core is not loaded" in peermem.exec("sh", "-c", "nvidia-driver probe_nvidia_peermem")
    assert peermem.runs
    assert peermem.stop() < 15


def test_unknown_verbs(make_pod: MakePod, node: PodNode) -> None:
    """Both of the operator's names refuse what they do not know, with exit 2."""
    pod = make_pod("")
    for words in (("nvidia-driver", "frobnicate"), ("nvidia-driver", "build"), ("ocp_dtk_entrypoint", "x")):
        driver = pod.driver(*words)
        assert driver.waits() == 2
        assert "hint: " in driver.text
