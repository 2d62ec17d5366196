"""Sets of one kernel on another: our verdict beside that of the kernel itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Mapping

import pytest
from attrs import evolve
from real_build import RealBuild, build_real
from renamed_kernel import renamed
from sample_driver import make_sample_driver

from nvdriver_build.fit import check_fit
from nvdriver_build.kernel import KernelTarget, find_headers, target_from_headers
from nvdriver_build.sets import open_set
from nvdriver_build.store import Store

from .conftest import Boot
from .kit import KitKernel
from .machine import Machine
from .test_driver import RUN, Node

pytestmark = [pytest.mark.vm, pytest.mark.real]


def build_sample(source: Path, kernel: KitKernel, folder: Path) -> Path:
    """The sample driver's set for a kernel."""
    output, headers = folder / kernel.release, str(kernel.headers)
    argv = [sys.executable, "-m", "nvdriver_build", "build", "--source", str(source), "--headers", headers]
    environment = {**os.environ, "NVDRIVER_STORE": str(folder / "store")}
    subprocess.run([*argv, "--output", str(output)], check=True, env=environment)
    return output


@pytest.fixture(scope="module")
def sets(
    kernel_a: KitKernel, kernel_b: KitKernel, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Path]:
    """The sample driver for A, for B, for A under another name, and for that with another setting."""
    root = tmp_path_factory.mktemp("sets")
    source = make_sample_driver(root / "sample", kind="open")
    kernels = {
        "a": kernel_a,
        "b": kernel_b,
        "renamed": renamed(kernel_a, root / "headers-1", "next"),
        "configured": renamed(kernel_a, root / "headers-2", "other", setting="18"),
    }
    return {name: build_sample(source, kernel, root / "built") for name, kernel in kernels.items()}


OURS = {
    "a": {"a": "exact", "renamed": "compatible", "configured": "config", "b": "crc"},
    "b": {"b": "exact", "a": "crc", "renamed": "crc", "configured": "config"},
}
"""For each kernel: what we say of a set, or the first reason against it."""
THEIRS = {
    "a": {"a": True, "renamed": True, "configured": True, "b": False},
    "b": {"b": True, "a": False, "renamed": False, "configured": False},
}
"""Whether the kernel takes all of it. It does not compare configurations: there we are stricter."""


def judged(folder: Path, target: KernelTarget) -> str:
    """Our verdict, or the first reason against the set."""
    found = open_set(folder)
    fit = check_fit(found.read(), target, built_config=found.manifest.config_digest)
    return fit.findings[0][1].code if fit.findings else fit.fit


def taken(vm: Machine, folder: Path) -> bool:
    """Whether the kernel takes each module; they are gone again afterwards."""
    codes = [
        vm.run(f"insmod {path} {'NVreg_SampleWithoutGpu=1' * (path.stem == 'nvidia')}", check=False).code
        for path in open_set(folder).paths
    ]
    vm.run("for name in nvidia_drm nvidia_modeset nvidia_uvm nvidia; do rmmod $name; done", check=False)
    vm.run("! grep ^nvidia /proc/modules")
    return not any(codes)


@pytest.mark.parametrize("role", ["a", "b"])
def test_what_we_accept_the_kernel_takes(
    role: str, boot: Boot, kernel_a: KitKernel, kernel_b: KitKernel, sets: Mapping[str, Path]
) -> None:
    """Each set on each kernel: our verdict and that of the kernel itself are as the tables have them."""
    kernel = {"a": kernel_a, "b": kernel_b}[role]
    target = target_from_headers(find_headers(kernel.headers))
    ours = {name: judged(folder, target) for name, folder in sets.items()}
    with boot(kernel) as vm:
        vm.run("modprobe -a drm_kms_helper video")
        theirs = {name: taken(vm, folder) for name, folder in sets.items()}
    assert (ours, theirs) == (OURS[role], THEIRS[role])


@pytest.fixture(scope="module")
def real_renamed(
    open_tarball: Path, kernel_a: KitKernel, tmp_path_factory: pytest.TempPathFactory
) -> RealBuild:
    """The real driver, built for headers that are A's but for their release."""
    return build_real(open_tarball, renamed(kernel_a, tmp_path_factory.mktemp("headers"), "next"))


def test_the_real_driver_of_another_kernel_is_used(
    boot: Boot, kernel_a: KitKernel, fakegpu: Path, real_renamed: RealBuild, tmp_path: Path
) -> None:
    """`run` finds the other kernel's set in its store, says so, loads it and announces it."""
    store = Store(tmp_path / "store")
    with store.workspace() as work:
        shutil.copytree(real_renamed.folder, work / "set")
        key = store.add(work / "set", real_renamed.document["key"]).key
    with boot(kernel_a) as vm:
        node = Node(vm, kernel_a, evolve(real_renamed, store=store.root))
        vm.run(f"insmod {fakegpu}")
        node.start()
        node.await_ready()
        status = node.status()
        assert (status["key"], status["origin"], status["fit"]) == (key, "store", "compatible")
        assert (status["built_for"], status["kernel_release"]) == (
            f"{kernel_a.release}-next",
            kernel_a.release,
        )
        assert "535.261.03" in vm.run("cat /proc/driver/nvidia/version").stdout
        assert any("built for another kernel" in event["event"] for event in node.events())
        assert "disagrees" not in vm.dmesg()
        assert node.end() == 0
        assert vm.run(f"ls -A {RUN}/validations").stdout == ""


def test_with_one_setting_changed_the_real_driver_is_refused(
    kernel_a: KitKernel, real_renamed: RealBuild, tmp_path: Path
) -> None:
    """One line of the configuration differs, no CRC does: unfit by `config` alone, and exit 13."""
    other = renamed(kernel_a, tmp_path, "other", setting="18")
    argv = [sys.executable, "-m", "nvdriver_build", "verify", "--json", "--headers", str(other.headers)]
    done = subprocess.run([*argv, str(real_renamed.folder)], stdout=subprocess.PIPE, check=False)
    verdict = json.loads(done.stdout)
    codes = {finding["code"] for module in verdict["modules"] for finding in module["findings"]}
    assert (done.returncode, verdict["fit"], codes) == (13, "unfit", {"config"})
