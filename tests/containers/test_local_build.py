"""scripts/local-build: the modules for a Driver Toolkit, in one container, from one command."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, List

import pytest
from bundled import ROOT, make_bundle
from podman_rig import Podman
from sample_driver import make_sample_driver
from vm.kit import KitKernel

PROGRAM = ROOT / "scripts/local_build.py"
TRAPS = ("dnf", "yum", "microdnf", "rpm", "subscription-manager", "apt-get", "curl", "wget", "git")
TRAP = '#!/bin/sh\necho "called: $0 $*" >>/traps/called\nexit 0\n'


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample driver, in a folder whose name wants to be executed."""
    return make_sample_driver(tmp_path_factory.mktemp("driver") / "sample $(touch hacked) 'x")


def argv(podman: Podman, toolkit: Path, source: Path, output: Path, *more: str) -> List[str]:
    words = [toolkit, "--source", source, "--output", output, "--podman", podman.program, *more]
    return [sys.executable, str(PROGRAM), *map(str, words)]


def run(words: List[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False, timeout=600)


def test_local_build(
    podman: Podman, toolkit: Callable[[str], Path], source: Path, kernel_a: KitKernel, tmp_path: Path
) -> None:
    """It shows progress, leaves the set, its manifest and its log; the second time nothing is compiled."""
    root, output = toolkit("fits"), tmp_path / "out"
    before = sorted(path.name for path in (root / "usr/src").iterdir())
    done = run(argv(podman, root, source, output), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "progress" in done.stderr and kernel_a.release in done.stdout
    manifest = json.loads((output / "set/manifest.json").read_text())
    assert manifest["recipe"]["kernel_release"] == kernel_a.release
    assert {"nvidia.ko", "nvidia-uvm.ko", "manifest.json"} <= {
        path.name for path in (output / "set").iterdir()
    }
    assert "nvidia.ko" in (output / "build.log").read_text()
    again = run(argv(podman, root, source, output), tmp_path)
    assert again.returncode == 0 and "taken from the store" in again.stdout
    assert sorted(path.name for path in (root / "usr/src").iterdir()) == before
    assert not list(tmp_path.rglob("hacked"))


def test_another_kernel(
    podman: Podman, toolkit: Callable[[str], Path], source: Path, kernel_a: KitKernel, kernel_b: KitKernel,
    tmp_path: Path,
) -> None:  # fmt: skip
    """A toolkit without that kernel's headers: exit 10, both kernels and the RHEL release are told."""
    words = argv(podman, toolkit("wrong-kernel"), source, tmp_path / "out")
    done = run([*words, "--kernel-release", kernel_a.release], tmp_path)
    assert done.returncode == 10, done.stderr
    assert all(word in done.stderr for word in (kernel_a.release, kernel_b.release, "RHEL 9.4", "hint:"))


def test_rt_values_that_are_none(
    podman: Podman, toolkit: Callable[[str], Path], source: Path, tmp_path: Path
) -> None:
    """What a package manager left in RT_KERNEL_VERSION does not matter: doctor reads the toolkit."""
    done = podman.run("--rootfs", f"{toolkit('junk-rt')}:O", "cat", "/etc/driver-toolkit-release.json")
    assert "is not installed" in json.loads(done.stdout)["RT_KERNEL_VERSION"]
    words = argv(podman, toolkit("junk-rt"), source, tmp_path / "out", "--modules", "nvidia")
    assert run(words, tmp_path).returncode == 0


def test_the_other_flavour(
    podman: Podman, toolkit: Callable[[str], Path], kernel_rt: KitKernel, source: Path, tmp_path: Path
) -> None:
    """A toolkit with two flavours builds for the one that is named."""
    words = argv(podman, toolkit("two-flavours"), source, tmp_path / "out", "--modules", "nvidia")
    done = run([*words, "--kernel-release", kernel_rt.release], tmp_path)
    assert done.returncode == 0, done.stderr
    assert kernel_rt.release in done.stdout


def test_no_python(podman: Podman, toolkit: Callable[[str], Path], source: Path, tmp_path: Path) -> None:
    """A toolkit without Python: exit 10 and a hint."""
    done = run(argv(podman, toolkit("no-python"), source, tmp_path / "out"), tmp_path)
    assert done.returncode == 10
    assert "no Python" in done.stderr and "3.9 or later" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_ended(
    podman: Podman, toolkit: Callable[[str], Path], source: Path, tmp_path: Path, number: int
) -> None:
    """A signal ends the build and the container; there is no half of a set."""
    words = argv(podman, toolkit("fits"), source, tmp_path / "out")
    with subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "building" in line:
                break
        time.sleep(1)
        began = time.monotonic()
        os.kill(process.pid, number)
        process.stderr.read()
        assert process.wait(60) == 128 + signal.SIGTERM
        assert time.monotonic() - began < 20
    assert not (tmp_path / "out/set").exists()
    running = podman("ps", "-a", "--format", "{{.Mounts}} {{.Command}}").stdout
    assert str(tmp_path) not in running


def test_wrong_words(podman: Podman, source: Path, tmp_path: Path) -> None:
    """A source that is not there, and a podman that is not: exit 2 before anything is made."""
    done = run(argv(podman, tmp_path, tmp_path / "nowhere", tmp_path / "out"), tmp_path)
    assert done.returncode == 2 and "there is no source at" in done.stderr
    words = [
        sys.executable,
        str(PROGRAM),
        "image",
        "--source",
        str(source),
        "--output",
        str(tmp_path / "out"),
    ]
    done = run([*words, "--podman", "no-such-program"], tmp_path)
    assert done.returncode == 2 and "is not installed" in done.stderr
    assert not (tmp_path / "out").exists()


def test_nothing_asks_for_an_entitlement(
    podman: Podman, toolkit: Callable[[str], Path], source: Path, tmp_path: Path
) -> None:
    """A whole build with traps in the place of package managers and downloads, without network; entitlement
    certificates that lie there are not even opened."""
    traps, entitlement = tmp_path / "traps", tmp_path / "entitlement"
    for folder in (traps, entitlement, tmp_path / "out"):
        folder.mkdir()
    for name in TRAPS:
        (traps / name).write_text(TRAP)
        (traps / name).chmod(0o755)
    certificate = entitlement / "1.pem"
    certificate.write_text("secret")
    assert make_bundle(tmp_path / "bundle").returncode == 0
    for path in (certificate, entitlement):
        os.utime(path, (0, path.stat().st_mtime))
    mounts = {
        traps: "/traps", entitlement: "/etc/pki/entitlement", tmp_path / "out": "/out", source: "/source:ro",
        tmp_path / "bundle/site-packages": "/usr/lib/nvdriver-build/site-packages:ro",
        ROOT / "container/nvdriver-build": "/usr/local/bin/nvdriver-build:ro",
    }  # fmt: skip
    words = [word for place, inside in mounts.items() for word in ("-v", f"{place}:{inside}")]
    words += ["-e", "PATH=/traps:/usr/local/bin:/usr/sbin:/usr/bin", "-e", "NVDRIVER_STORE=/out/store"]
    build = "build --source /source --headers / --output /out/set --modules nvidia"
    podman.run(*words, "--rootfs", f"{toolkit('fits')}:O", "/usr/local/bin/nvdriver-build", *build.split())
    assert (tmp_path / "out/set/nvidia.ko").exists()
    assert not (traps / "called").exists()
    assert {path.stat().st_atime for path in (certificate, entitlement)} == {0.0}
    certificate.read_text()
    assert certificate.stat().st_atime > 0, "this file system tells no accesses"


def test_nothing_installs_at_run_time() -> None:
    """The programs that the image runs on a node name no package manager; those that build the image may."""
    names = re.compile(rf"\b({'|'.join(TRAPS)})\b|pki/entitlement")
    shell = [ROOT / "container" / name for name in ("nvdriver-build", "nvidia-driver", "ocp_dtk_entrypoint")]
    for path in (*shell, *(ROOT / "nvdriver_build").rglob("*.py")):
        code = re.sub(r'""".*?"""|#.*', "", path.read_text(), flags=re.DOTALL)
        assert not names.search(code), path
