"""The sample driver is what other tests take it for."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import tarfile
from pathlib import Path
from typing import Any, Dict, Tuple

import pytest
from sample_driver import (
    CORE_OBJECTS,
    FOLDERS,
    MODULES,
    VERSION,
    debian_pair,
    make_sample_driver,
    modules_command,
)
from sample_driver.archives import ESCAPES, pack, pack_escaping, pack_run
from sample_driver.damage import break_c, make_conftest_noisy, remove_core_objects
from vm.kit import KitKernel

LICENSES = {
    "open": ("Dual MIT/GPL", "Dual MIT/GPL", "Dual MIT/GPL", "Dual MIT/GPL", "Dual BSD/GPL"),
    "proprietary": ("NVIDIA", "Dual MIT/GPL", "NVIDIA", "MIT", "Linux-OpenIB"),
}


@pytest.fixture(scope="session")
def headers(kernel_a: KitKernel) -> Path:
    return kernel_a.headers


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    return make_sample_driver(tmp_path / "sample")


def make(tree: Path, headers: Path, *variables: str) -> Tuple[int, str]:
    """Run the sample's make; give its exit status and its output."""
    command = modules_command(headers, *variables, "IGNORE_PREEMPT_RT_PRESENCE=1")
    env = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
    done = subprocess.run(
        command, cwd=tree, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return done.returncode, done.stdout


def field(module: Path, name: str) -> str:
    return subprocess.run(
        ("modinfo", "-F", name, module), stdout=subprocess.PIPE, text=True, check=True
    ).stdout.strip()


def test_version_goes_everywhere(tmp_path: Path) -> None:
    """Another version is in the Kbuild file, in the core object and in the manifest; the default is gone."""
    root = make_sample_driver(tmp_path / "sample", version="535.99", kind="open")
    tree = root / FOLDERS["open"]
    assert '-DNV_VERSION_STRING=\\"535.99\\"' in (tree / "Kbuild").read_text()
    core = (tree / CORE_OBJECTS[0]).read_bytes()
    assert f"Open Kernel Module for {platform.machine()}  535.99  ".encode() in core
    assert (root / ".manifest").read_text().splitlines()[1] == "535.99"
    assert not [path for path in root.rglob("*") if path.is_file() and VERSION.encode() in path.read_bytes()]


def test_trees_are_equal_bytes_each_time(tmp_path: Path) -> None:
    """Two samples are equal file by file, core objects too, so that a source digest holds."""
    one, two = (make_sample_driver(tmp_path / name) for name in ("one", "two"))
    assert _content(one) == _content(two)


def test_one_kind_alone(tmp_path: Path) -> None:
    """A sample of one kind has no folder of the other."""
    root = make_sample_driver(tmp_path / "sample", kind="proprietary")
    assert (root / "kernel").is_dir()
    assert not (root / "kernel-open").exists()


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.xz", "tar.zst"])
def test_tarballs_hold_the_tree(sample: Path, tmp_path: Path, suffix: str) -> None:
    """A tarball of each compression unpacks to the tree it was made of."""
    archive = pack(sample, tmp_path / f"driver.{suffix}")
    subprocess.run(("tar", "-xaf", archive, "-C", _folder(tmp_path / "out")), check=True)
    assert _content(tmp_path / "out" / "sample") == _content(sample)


def test_run_file_extracts_itself(sample: Path, tmp_path: Path) -> None:
    """The .run extracts the tree into the target, leaves an existing target alone, and tells its version."""
    run = pack_run(sample, tmp_path / "NVIDIA.run", VERSION)
    command = ("sh", run, "-x", "--target", tmp_path / "out")
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert _content(tmp_path / "out") == _content(sample)
    assert subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 1
    told = subprocess.run(("sh", run, "--version"), stdout=subprocess.PIPE, text=True, check=True).stdout
    assert told.split()[-1] == VERSION


def test_damaged_run_file_extracts_nothing(sample: Path, tmp_path: Path) -> None:
    """A .run whose payload was changed ends with 2 and makes no folder."""
    run = pack_run(sample, tmp_path / "NVIDIA.run", VERSION)
    content = bytearray(run.read_bytes())
    content[-100] ^= 1
    run.write_bytes(content)
    command = ("sh", run, "-x", "--target", tmp_path / "out")
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, (tmp_path / "out").exists()) == (2, False)
    assert "MD5" in done.stderr


@pytest.mark.parametrize("way", sorted(ESCAPES))
def test_escaping_archives_mean_harm(tmp_path: Path, way: str) -> None:
    """Whoever trusts an escaping archive has a foreign file overwritten; `device` holds a device instead."""
    victim = tmp_path / "escaped"
    victim.write_text("good")
    with tarfile.open(pack_escaping(tmp_path / "evil.tar.xz", way)) as tar:
        if way == "device":
            assert [member.name for member in tar if member.isdev()] == ["driver/mem"]
        else:
            # Pythons without filters trust every archive anyway.
            trust: Any = {"filter": "fully_trusted"} if hasattr(tarfile, "fully_trusted_filter") else {}
            tar.extractall(_folder(tmp_path / "out"), **trust)
            assert victim.read_text() == "evil"


@pytest.mark.toolchain
@pytest.mark.parametrize("kind", sorted(FOLDERS))
def test_modules_build(sample: Path, headers: Path, kind: str) -> None:
    """Each kind builds against real headers into NVIDIA's five modules, with licenses and dependencies."""
    tree = sample / FOLDERS[kind]
    status, log = make(tree, headers, "CONFIG_DEBUG_INFO_BTF_MODULES=")
    assert status == 0, log
    modules = [tree / f"{name}.ko" for name in MODULES]
    release = (headers / "include/generated/utsrelease.h").read_text().split()[2].strip('"')
    assert {field(module, "vermagic").split()[0] for module in modules} == {release}
    assert {field(module, "version") for module in modules} == {VERSION}
    assert tuple(field(module, "license") for module in modules) == LICENSES[kind]
    assert [_depends(module) & set(MODULES) for module in modules] == [
        set(), {"nvidia"}, {"nvidia"}, {"nvidia-modeset"}, set(),
    ]  # fmt: skip
    if _has(headers, "CONFIG_DRM"):
        assert "drm" in _depends(modules[0])
        assert {"drm", "drm_kms_helper"} <= _depends(modules[3])
    assert field(modules[0], "import_ns") == "DMA_BUF"
    assert field(modules[0], "firmware").split()[0].startswith(f"nvidia/{VERSION}/gsp_")
    assert field(modules[0], "softdep") == "pre: ecdh_generic ecdsa_generic"
    assert re.search(r"^NVreg_EnableGpuFirmware:\s*\(?int\)?$", field(modules[0], "parm"), re.MULTILINE)
    assert re.search(r"^ CONFTEST: is_export_symbol_gpl_dma_buf_get$", log, re.MULTILINE)


@pytest.mark.toolchain
def test_plain_build_leaks_its_path(sample: Path, headers: Path) -> None:
    """A module of a plain build holds the path of its source: what a reproducible build has to mend."""
    tree = sample / FOLDERS["open"]
    status, log = make(
        tree, headers, "CONFIG_DEBUG_INFO_BTF_MODULES=", "NV_KERNEL_MODULES=nvidia", "KCFLAGS=-g0"
    )
    assert status == 0, log
    assert str(tree / "nvidia" / "nv.c").encode() in (tree / "nvidia.ko").read_bytes()


@pytest.mark.toolchain
def test_c_error_is_told_where_it_is(sample: Path, headers: Path) -> None:
    """The C error of the fixture stands at the line told, as the last error, after the noise of conftest."""
    tree = sample / FOLDERS["open"]
    make_conftest_noisy(tree)
    file, line, message = break_c(tree)
    status, log = make(tree, headers)
    assert status == 2
    errors = [text for text in log.splitlines() if "error:" in text]
    assert re.fullmatch(rf"\S*/{re.escape(file)}:{line}:\d+: error: {re.escape(message)}", errors[-1])
    assert any("drmP.h: No such file" in text for text in errors[:-1])


@pytest.mark.toolchain
def test_noise_alone_is_no_failure(sample: Path, headers: Path) -> None:
    """A noisy conftest prints errors, and the modules are built."""
    tree = sample / FOLDERS["open"]
    make_conftest_noisy(tree)
    status, log = make(tree, headers, "CONFIG_DEBUG_INFO_BTF_MODULES=", "NV_KERNEL_MODULES=nvidia")
    assert status == 0, log
    assert "error:" in log


@pytest.mark.toolchain
def test_missing_core_object_fails(sample: Path, headers: Path) -> None:
    """Without core objects make fails and names the first."""
    tree = sample / FOLDERS["open"]
    remove_core_objects(tree)
    status, log = make(tree, headers, "NV_KERNEL_MODULES=nvidia")
    assert status == 2
    assert "nvidia/nv-kernel.o_binary" in log


def test_debian_pair_is_found_beside(tmp_path: Path) -> None:
    """A flavour's -common is looked for beside it, not where its Makefile says; a plain tree is both."""
    flavour = _folder(tmp_path / "linux-headers-6.1.0-47-amd64")
    (flavour / "Makefile").write_text("include /usr/src/linux-headers-6.1.0-47-common/Makefile\n")
    assert debian_pair(flavour) == (tmp_path / "linux-headers-6.1.0-47-common", flavour)
    assert debian_pair(tmp_path) == (tmp_path, tmp_path)


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _content(root: Path) -> Dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def _depends(module: Path) -> set[str]:
    return set(field(module, "depends").split(","))


def _has(headers: Path, option: str) -> bool:
    return re.search(rf"^{option}=[my]$", (headers / ".config").read_text(), re.MULTILINE) is not None
