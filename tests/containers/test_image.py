"""The driver image: what lies where, from a .run and from a source tree, and what it says of itself."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest
from bundled import ROOT
from podman_rig import Podman
from sample_driver.user_space import FLAGS_FILE, RunFile
from vm.kit import KitKernel, load_kit

NVIDIA_FLAGS = {
    "--silent", "--no-kernel-module", "--install-compat32-libs", "--no-nouveau-check", "--no-nvidia-modprobe",
    "--no-rpms", "--no-backup", "--no-check-for-alternate-installs", "--no-libglx-indirect",
    "--no-install-libglvnd", "--x-prefix=/tmp/null", "--x-module-path=/tmp/null",
    "--x-library-path=/tmp/null", "--x-sysconfig-path=/tmp/null",
}  # fmt: skip
"""gpu-driver-container, rhel9/install.sh, x86_64."""


def sh(podman: Podman, image: str, script: str, *options: object) -> str:
    """What a shell in the image prints."""
    return podman.run(*options, "--entrypoint", "sh", image, "-euc", script).stdout


def configuration(podman: Podman, image: str) -> Dict[str, Any]:
    """The image's Config."""
    found: Dict[str, Any] = json.loads(podman("image", "inspect", image).stdout)[0]["Config"]
    return found


def test_layout(podman: Podman, sample_image: str, run_file: RunFile) -> None:
    """The kernel trees, the bundle, the names that the operator starts, the licences and the folder for
    parameters are where docs/contracts.md says; nothing of the .run is left elsewhere."""
    version = run_file.version
    there = [
        f"/usr/src/nvidia-{version}/kernel/Kbuild",
        f"/usr/src/nvidia-{version}/kernel-open/Kbuild",
        f"/opt/lib/firmware/nvidia/{version}/gsp_ga10x.bin",
        f"/opt/lib/firmware/nvidia/{version}/gsp_tu10x.bin",
        "/usr/lib/nvdriver-build/site-packages/nvdriver_build/cli/__init__.py",
        "/usr/libexec/nvdriver-build/nvdriver-build.pyz",
        "/usr/libexec/nvdriver-build/ocp_dtk_entrypoint",
        "/licenses/NVIDIA.txt",
        "/licenses/nvdriver-build.txt",
        "/drivers",
    ]
    gone = [
        "/tmp/install-driver",
        "/tmp/null",
        "/var/log/nvidia-installer.log",
        f"/lib/firmware/nvidia/{version}",
    ]
    tests = [f"test -e {path} || echo {path} is missing" for path in there]
    tests += [f"test ! -e {path} || echo {path} is left" for path in gone]
    tests.append("find / -xdev -name '*.run' -type f")
    assert sh(podman, sample_image, "; ".join(tests)) == ""
    names = "nvdriver-build nvidia-driver ocp_dtk_entrypoint nvidia-smi bash sh lsmod modprobe chroot mount"
    assert len(sh(podman, sample_image, f"command -v {names}").splitlines()) == 10


def test_user_space_is_installed_with_nvidias_flags(podman: Podman, sample_image: str) -> None:
    """Once, while the image is built, with the flags of NVIDIA's own image."""
    assert set(sh(podman, sample_image, f"cat /{FLAGS_FILE}").split()) == NVIDIA_FLAGS


def test_firmware_outlives_the_mount_that_hides_it(podman: Podman, sample_image: str, tmp_path: Path) -> None:
    """The operator mounts the host's empty folder over /lib/firmware: what the image keeps is in /opt."""
    listed = "ls /lib/firmware; ls /opt/lib/firmware/nvidia/*"
    said = sh(podman, sample_image, listed, "-v", f"{tmp_path}:/lib/firmware")
    assert said.split() == ["gsp_ga10x.bin", "gsp_tu10x.bin"]


def test_environment_and_labels(podman: Podman, sample_image: str, run_file: RunFile) -> None:
    """What the driver's version is, what keeps the container toolkit away; OCI's and OpenShift's labels."""
    found = configuration(podman, sample_image)
    environment = dict(entry.split("=", 1) for entry in found["Env"])
    assert environment["DRIVER_VERSION"] == run_file.version
    assert environment["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert "/usr/local/bin" in environment["PATH"].split(":")
    assert found["Entrypoint"] == ["nvidia-driver", "init"]
    labels = found["Labels"]
    assert labels["version"] == run_file.version
    assert labels["org.opencontainers.image.version"].startswith(run_file.version)
    needed = {
        "name",
        "vendor",
        "release",
        "summary",
        "description",
        "io.k8s.display-name",
        "io.openshift.tags",
    }
    assert needed <= set(labels) and all(labels.values())


def test_real_source(podman: Podman, driver_image: str) -> None:
    """A source tree gives the kernel tree of its kind, no user space and no firmware."""
    script = "ls /usr/src/nvidia-*; ls /usr/src/nvidia-*/kernel-open; test ! -e /opt/lib/firmware"
    said = sh(podman, driver_image, script).split()
    assert {"kernel-open", "Kbuild", "conftest.sh", "nvidia"} <= set(said)
    assert "kernel" not in said


def test_the_image_runs(podman: Podman, driver_image: str) -> None:
    """Under both of the operator's names it is the entrypoint; without a GPU it says so, exit 19."""
    for words in (("--entrypoint", "nvidia-driver"), ("--entrypoint", "ocp_dtk_entrypoint")):
        verb = "init" if words[1] == "nvidia-driver" else "nv-ctr-run-with-dtk"
        done = podman.run(*words, driver_image, verb, check=False)
        assert done.returncode == 19, done.stderr
        assert "no NVIDIA GPU" in done.stderr


def test_probes_are_light(podman: Podman, driver_image: str) -> None:
    """The byte code is in the image: the command answers in a fraction of the probe's period."""
    once = "set -- $(date +%s%N); nvdriver-build --help >/dev/null; echo $(($(date +%s%N) - $1))"
    told = sh(podman, driver_image, f"for turn in 1 2 3 4 5; do {once}; done").split()
    assert min(map(int, told)) < 0.5e9, "the best of five: a machine that is busy may stall"


def refused(podman: Podman, *words: object) -> str:
    """What build-image says where it refuses."""
    done = podman.build_image("--tag", "localhost/nvdriver-build-tests/refused:1", *words)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert not podman.has("localhost/nvdriver-build-tests/refused:1")
    return done.stderr


def test_a_run_with_another_sum_is_not_executed(podman: Podman, base_image: str, run_file: RunFile) -> None:
    """Both sums are told."""
    wrong = "0" * 64
    words: List[object] = [
        "--driver-version",
        run_file.version,
        "--run-file",
        run_file.path,
        "--sha256",
        wrong,
    ]
    said = refused(podman, "--base", base_image, *words)
    assert run_file.sha256 in said and wrong in said


def test_a_run_needs_its_sum(podman: Podman, run_file: RunFile) -> None:
    """The .run is a program."""
    said = refused(podman, "--driver-version", "1", "--run-file", run_file.path)
    assert "belong together" in said


@pytest.mark.parametrize("kind", ["run", "source"])
def test_another_version(
    podman: Podman, base_image: str, run_file: RunFile, real_source: Path, kind: str
) -> None:
    """The version that was named has to be the driver's."""
    driver = {
        "run": ("--run-file", run_file.path, "--sha256", run_file.sha256),
        "source": ("--source", real_source),
    }
    assert "not" in refused(podman, "--base", base_image, "--driver-version", "1.2.3", *driver[kind])


def test_base_rootfs_is_enough(podman: Podman, run_file: RunFile) -> None:
    """With a root file system as the base nothing is fetched: no network, no registry."""
    words: List[object] = ["--run-file", run_file.path, "--sha256", run_file.sha256]
    words += ["--driver-version", run_file.version, "--base-rootfs", load_kit("node").root("node")]
    image = "localhost/nvdriver-build-tests/rootfs:1"
    done = podman.build_image("--tag", image, *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == image
    podman.forget(image)


@pytest.fixture(scope="session")
def one_container_image(podman: Podman, toolkit: Callable[[str], Path], run_file: RunFile) -> str:
    """The image of the one-container way: the driver on a stand-in Driver Toolkit."""
    base = podman.base_image("toolkit", toolkit("fits"), "./usr/lib/modules/*/kernel")
    words = ("--run-file", run_file.path, "--sha256", run_file.sha256, "--driver-version", run_file.version)
    return podman.driver_image("one", run_file.sha256 + base, "--toolkit", base, *words)


def test_one_container(
    podman: Podman, one_container_image: str, run_file: RunFile, kernel_a: KitKernel
) -> None:
    """On a toolkit as its base the image builds in itself what it brings, for the toolkit's kernel."""
    assert "NVDRIVER_HEADERS=/" in configuration(podman, one_container_image)["Env"]
    script = "nvdriver-build build --source /usr/src/nvidia-* --headers / --modules nvidia --output /tmp/set"
    said = sh(podman, one_container_image, script, "-e", "NVDRIVER_STORE=/tmp/store")
    assert f"driver {run_file.version}" in said and kernel_a.release in said
    done = podman.run(one_container_image, check=False)
    assert done.returncode == 19, done.stderr


def test_equal_images(podman: Podman, base_image: str, run_file: RunFile) -> None:
    """What is built twice from the same things is one image."""
    words = ("--run-file", run_file.path, "--sha256", run_file.sha256, "--driver-version", run_file.version)
    images = [f"localhost/nvdriver-build-tests/equal:{number}" for number in (1, 2)]
    for image in images:
        assert podman.build_image("--base", base_image, "--tag", image, *words).returncode == 0
    first, second = (podman("image", "inspect", "--format", "{{.Id}}", image).stdout for image in images)
    podman("rmi", *images)
    assert first == second


@pytest.mark.parametrize("slot", ["toolkit-without-python", "our-own-image"])
def test_toolkit_slot(
    podman: Podman, sample_image: str, toolkit: Callable[[str], Path], tmp_path: Path, slot: str
) -> None:
    """The operator's own command in the Driver Toolkit container: where there is nothing to build with, the
    container says why, idles, and ends at once when the pod goes."""
    shutil.copy(ROOT / "container/ocp_dtk_entrypoint", tmp_path)
    (tmp_path / "dir_prepared").touch()
    shared, name = "/mnt/shared-nvidia-driver-toolkit", f"slot-{slot}"
    wait = f"until [ -f {shared}/dir_prepared ]; do echo Waiting ...; sleep 10; done"
    command = ["bash", "-xc", f"{wait}; exec {shared}/ocp_dtk_entrypoint dtk-build-driver"]
    own = ("-e", "RHCOS_IMAGE_MISSING=true", "--entrypoint", "bash", sample_image, *command[1:])
    image = own if slot == "our-own-image" else ("--rootfs", f"{toolkit('no-python')}:O", *command)
    podman("run", "-d", "--network", "none", "--name", name, "-v", f"{tmp_path}:{shared}", *image)
    until, refusal = time.monotonic() + 60, tmp_path / "toolkit.json"
    while "ocp_dtk_entrypoint: " not in (said := podman("logs", name).stderr) or not (
        slot == "our-own-image" or refusal.exists()
    ):
        assert time.monotonic() < until, said
        time.sleep(0.1)
    time.sleep(1)
    running = podman("inspect", "--format", "{{.State.Running}}", name).stdout.strip()
    podman("stop", "-t", "30", name)
    code = podman("inspect", "--format", "{{.State.ExitCode}}", name).stdout.strip()
    podman("rm", "-f", name)
    assert (running, code) == ("true", "143")
    if slot == "our-own-image":
        assert "no Driver Toolkit image" in said and not (tmp_path / "toolkit.json").exists()
    else:
        assert json.loads((tmp_path / "toolkit.json").read_text())["error"]["code"] == 10
