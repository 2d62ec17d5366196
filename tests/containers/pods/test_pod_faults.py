"""Faults in the operator's pod, each with the time from the fault to the message."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from pod_node import SHARED, PodNode
from pod_rig import Container, MakePod, Pod, within
from sample_driver import VERSION

HEADERS, USAGE, BUILD_FAILED, LOAD_FAILED, SIDECAR = 10, 2, 12, 15, 18
DEAD, FAILED = 2.0, 1.0
"""Seconds from the death of a peer, and from a failed build, to the message (issue)."""


def built(toolkit: Container) -> int:
    """How many builds a container has begun."""
    return len([line for line in toolkit.said() if '"event": "building"' in line.text])


def compiling(pod: Pod) -> None:
    """Wait until make runs in the toolkit."""
    pod.waits_for("toolkit-beat.json", lambda beat: beat.get("total", 0) > 0)


def sound(pod: Pod) -> None:
    """The set was proven on the driver's side and kept; only this machine's kernel says no."""
    status = pod.status
    assert (status["stage"], status["fit"]) == ("load", "exact")
    assert (pod.node.store / "sets" / status["key"] / "manifest.json").is_file()


def test_the_toolkit_is_killed_before_the_compile(make_pod: MakePod) -> None:
    """Killed as soon as it has begun, and started again: it builds once."""
    pod = make_pod()
    driver = pod.driver()
    first = pod.prepared_toolkit()
    first.says("Python is")
    first.kill()
    second = pod.toolkit()
    assert driver.waits() == LOAD_FAILED
    assert built(second) == 1
    sound(pod)


def test_the_toolkit_is_killed_in_the_compile(make_pod: MakePod) -> None:
    """The driver's container says so within 2 s; the next one begins anew, and that is told as well."""
    pod = make_pod()
    driver = pod.driver()
    first = pod.prepared_toolkit()
    compiling(pod)
    killed = first.kill()
    within(DEAD, "the dead toolkit is told", driver.says("the toolkit's end is silent").at - killed)
    second = pod.toolkit()
    driver.says("the toolkit's end was restarted")
    assert driver.waits() == LOAD_FAILED
    assert built(second) == 1
    sound(pod)


def test_the_toolkit_is_killed_after_the_compile(make_pod: MakePod) -> None:
    """What is answered stays answered: the next one stands by."""
    pod = make_pod()
    driver = pod.driver()
    first = pod.prepared_toolkit()
    assert driver.waits() == LOAD_FAILED
    first.kill()
    second = pod.toolkit()
    second.says("standing by")
    assert second.runs and built(second) == 0


def test_the_driver_is_killed_in_the_compile(make_pod: MakePod) -> None:
    """The toolkit's container says so within 2 s and goes on; the next driver gets what is being built."""
    pod = make_pod(environment={"NVDRIVER_JOBS": "1"})
    first = pod.driver()
    toolkit = pod.prepared_toolkit()
    compiling(pod)
    killed = first.kill()
    within(DEAD, "the dead driver is told", toolkit.says("the driver's end is silent").at - killed)
    second = pod.driver()
    assert second.waits() == LOAD_FAILED
    assert built(toolkit) == 1
    sound(pod)


def test_both_are_killed_in_the_compile(make_pod: MakePod) -> None:
    """Whatever half work lies in the shared folder, the next two build and prove a set."""
    pod = make_pod()
    driver = pod.driver()
    toolkit = pod.prepared_toolkit()
    compiling(pod)
    toolkit.kill()
    driver.kill()
    driver, toolkit = pod.driver(), pod.toolkit()
    assert driver.waits() == LOAD_FAILED
    assert built(toolkit) == 1
    sound(pod)


def test_a_build_fails(make_pod: MakePod, tmp_path: Path) -> None:
    """The driver's container tells the compiler's first error within 1 s of make's end, and ends with 12."""
    broken = tmp_path / "nv-pci.c"
    broken.write_text("#error this is the cause\n")
    place = f"/usr/src/nvidia-{VERSION}/kernel-open/nvidia/nv-pci.c"
    pod = make_pod(more=("-v", f"{broken}:{place}:ro"))
    driver = pod.driver()
    toolkit = pod.prepared_toolkit()
    told = driver.says("this is the cause")
    [log] = (pod.shared / "store/logs").glob("*.log")
    within(FAILED, "the failed build is told", told.at - log.stat().st_mtime)
    assert driver.waits() == BUILD_FAILED
    assert "nv-pci.c:1" in driver.text and "hint: " in driver.text
    assert [path.name for path in (pod.node.store / "logs").iterdir()] == [log.name]
    assert toolkit.runs
    assert pod.status["error"]["code"] == BUILD_FAILED


def test_a_toolkit_of_another_kernel(make_pod: MakePod, node: PodNode) -> None:
    """Nothing is compiled; the message has the node's kernel, the toolkit's, and the toolkit's RHEL."""
    pod = make_pod("wrong-kernel")
    driver = pod.driver()
    toolkit = pod.prepared_toolkit()
    assert driver.waits() == HEADERS
    installed = pod.document("toolkit.json")["installed"]
    [error] = [line.text for line in driver.said() if line.text.startswith("error: ")]
    for fact in (node.release, *installed, "RHEL 9.4"):
        assert fact in error
    assert built(toolkit) == 0 and toolkit.runs


def test_a_toolkit_without_python(make_pod: MakePod) -> None:
    """The few lines of sh that start it say so in both containers; it idles."""
    pod = make_pod("no-python")
    driver = pod.driver()
    toolkit = pod.prepared_toolkit()
    assert driver.waits() == HEADERS
    assert "has no Python 3.9 or later" in driver.text and "has no Python 3.9 or later" in toolkit.text
    assert toolkit.runs


@pytest.mark.parametrize("name", ["junk-rt", "two-flavours"])
def test_odd_toolkits_serve(make_pod: MakePod, name: str) -> None:
    """Junk instead of an RT version, and a second kernel beside the node's, keep nobody from building."""
    pod = make_pod(name)
    driver = pod.driver()
    pod.prepared_toolkit()
    assert driver.waits() == LOAD_FAILED
    sound(pod)


def test_a_toolkit_with_one_cpu(make_pod: MakePod) -> None:
    """As many compilers as the container's quota allows, however many processors the node has."""
    pod = make_pod(limits=("--cpus=1", "--memory=1g"))
    driver = pod.driver()
    toolkit = pod.prepared_toolkit()
    assert '"jobs": 1,' in toolkit.says('"event": "building"').text
    assert driver.waits() == LOAD_FAILED
    sound(pod)


def test_no_toolkit_image_and_nothing_in_the_store(make_pod: MakePod) -> None:
    """Our image in both places: its slot idles, the driver's ends with 10, nothing is compiled."""
    pod = make_pod("", environment={"RHCOS_IMAGE_MISSING": "true", "RHCOS_VERSION": "416.94.2"})
    driver = pod.driver()
    slot = pod.prepared_toolkit()
    assert driver.waits() == HEADERS
    assert "no Driver Toolkit image for RHCOS 416.94.2" in driver.text
    slot.says("nothing to do here")
    assert slot.runs and built(slot) == 0


def test_no_toolkit_image_but_a_set_in_the_store(make_pod: MakePod, filled: PodNode) -> None:
    """The store serves the node."""
    pod = make_pod("", environment={"RHCOS_IMAGE_MISSING": "true"})
    driver = pod.driver()
    pod.prepared_toolkit().says("nothing to do here")
    assert driver.waits() == LOAD_FAILED
    assert pod.status["origin"] == "store"


@pytest.mark.parametrize(
    "setting", ["GDS_ENABLED=true", "GDRCOPY_ENABLED=true", "DRIVER_TYPE=vgpu", "NVDRIVER_STROE=/x"]
)
def test_what_is_not_supported_is_refused(make_pod: MakePod, setting: str) -> None:
    """Exit 2 with a hint, never a silent skip."""
    name, value = setting.split("=")
    driver = make_pod(environment={name: value}).driver()
    assert driver.waits() == USAGE
    assert name in driver.text and "hint: " in driver.text


HOSTILE = """'"; touch /rig/harm; $(touch /rig/harm) `touch /rig/harm` \\ \n touch /rig/harm\n&& | %s"""


def test_values_are_never_executed(make_pod: MakePod, node: PodNode) -> None:
    """Quotes, newlines and `$()` in every variable that is free text: told or ignored, never run."""
    free = [
        "RHCOS_VERSION",
        "NODE_NAME",
        "DRIVER_CONFIG_DIGEST",
        "OPENSHIFT_VERSION",
        "NODE_IP",
        "HTTPS_PROXY",
    ]
    pod = make_pod(environment={name: HOSTILE.replace("\n", " ") for name in free})
    driver = pod.driver()
    pod.prepared_toolkit()
    assert driver.waits() == LOAD_FAILED
    for name in ("DRIVER_VERSION", "KERNEL_MODULE_TYPE", "NVDRIVER_JOBS", "NVDRIVER_SOURCE", "RHCOS_VERSION"):
        pod.environment = {name: HOSTILE}
        assert pod.driver().waits() == USAGE
    assert not (node.rig / "harm").exists()


def test_the_traps_snap(make_pod: MakePod, node: PodNode) -> None:
    """In both containers a package manager that is called, and an entitlement that is read, are noticed."""
    pod = make_pod("wrong-kernel")
    driver = pod.driver()
    toolkit = pod.prepared_toolkit()
    for container in (driver, toolkit):
        container.exec("dnf", "install", "kernel-devel", check=False)
        assert [line.split("/")[-1] for line in node.trapped] == ["dnf install kernel-devel"]
        node.clear_traps()
        container.exec("cat", "/etc/pki/entitlement/1.pem")
        assert [line.split("/")[-1] for line in node.trapped] == ["1.pem"]
        node.clear_traps()


def test_a_shared_volume_that_is_full(make_pod: MakePod, node: PodNode) -> None:
    """The driver's container says which folder it is and how much it takes."""
    pod = make_pod()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(pod.shared)], check=True)
    try:
        driver = pod.driver()
        assert driver.waits() == SIDECAR
        assert SHARED in driver.text and "hint: " in driver.text
    finally:
        subprocess.run(["umount", "-l", str(pod.shared)], check=True)
