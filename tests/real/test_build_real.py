"""Builds with the real toolchain: the sample driver for several kernels, and what must not change a byte."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence, Tuple, cast

import pytest
from cli_runs import environment
from real_build import RealBuild
from sample_driver import FOLDERS, VERSION, make_sample_driver
from sample_driver.damage import break_c, make_conftest_noisy, remove_core_objects
from trees import Link, write_tree
from vm.kit import KitKernel

FOUR = ("nvidia", "nvidia-uvm", "nvidia-modeset", "nvidia-drm")
STALE = ("nvidia.o", "nvidia/nv.o", "nvidia/nv-kernel.o", "nvidia-uvm/uvm.o", "Module.symvers")
AS_NOBODY = (
    "setpriv --securebits=+no_setuid_fixup --reuid=65534 --regid=65534 --clear-groups"
    " --inh-caps=+dac_override --ambient-caps=+dac_override"
)
"""Another user, who may nevertheless read and write where root may."""


def build(
    root: Path, source: Path, headers: Path, *more: object, prefix: Sequence[str] = (), code: int = 0
) -> Tuple[Any, str]:
    """`nvdriver-build build --json` into `root/set`, with its store in `root`: the document, and the log."""
    words = ["build", "--json", "--source", source, "--headers", headers, "--output", root / "set", *more]
    argv = [*prefix, sys.executable, "-m", "nvdriver_build", *map(str, words)]
    root.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(argv, env=environment(root), cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout), done.stderr


def modules(folder: Path) -> Dict[str, bytes]:
    """The bytes of a set's modules."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.ko"))}


def sections(module: Path) -> List[str]:
    """The names of a module's sections, by readelf."""
    out = subprocess.run(["readelf", "-SW", module], check=True, stdout=subprocess.PIPE, text=True).stdout
    return re.findall(r"^ *\[ *\d+\] (\S+) ", out, re.MULTILINE)


def content(module: Path, section: str, folder: Path) -> bytes:
    """The bytes of one section."""
    place = folder / f"{module.name}{section}"
    command = ["objcopy", "-O", "binary", f"--only-section={section}", str(module), str(place)]
    subprocess.run(command, check=True)
    return place.read_bytes()


def elsewhere(kernel: KitKernel, place: Path) -> Path:
    """A copy of a kernel's headers at another place, as links to the same bytes; the flavour's folder.

    As kernels from 6.14 on it leaves its place in __FILE__.
    """
    root = kernel.headers.parents[2]
    subprocess.run(["cp", "-al", str(root / "usr"), str(place)], check=True)
    makefile = place / "src" / kernel.common.name / "Makefile"
    text = makefile.read_text()
    makefile.unlink()  # a link to the other's
    makefile.write_text(text.replace("-fmacro-prefix-map=$(srctree)/=", ""))
    assert "$(call cc-option,)" in makefile.read_text()
    return place / "src" / kernel.headers.name


def toolkit_root(kernel: KitKernel, root: Path) -> Path:
    """A kernel's headers as a Driver Toolkit image has them: one whole tree, named by an absolute link."""
    usr, release = kernel.headers.parents[1], kernel.release
    tree = root / "usr/src/kernels" / release
    tree.mkdir(parents=True)
    subprocess.run(["cp", "-al", f"{kernel.common}/.", str(tree)], check=True)
    for name in ("scripts", "tools"):
        (tree / name).unlink()  # links to what kbuild has
    [kbuild] = (usr / "lib").glob("linux-kbuild-*")
    subprocess.run(["cp", "-al", f"{kbuild}/.", str(tree)], check=True)
    for name in (".config", "Module.symvers", "arch", "include"):
        subprocess.run(["cp", "-al", "--remove-destination", kernel.headers / name, str(tree)], check=True)
    document = {"KERNEL_VERSION": release, "RT_KERNEL_VERSION": "", "RHEL_VERSION": "9.4"}
    return write_tree(
        root,
        {
            "etc/driver-toolkit-release.json": json.dumps(document),
            f"usr/lib/modules/{release}/build": Link(f"/usr/src/kernels/{release}"),
            "lib": Link("usr/lib"),
        },
    )


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample driver, both kinds."""
    return make_sample_driver(tmp_path_factory.mktemp("driver") / "sample")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, sample: Path, kernel_a: KitKernel) -> Path:
    """The sample's open modules, built for kernel A by root with one job."""
    root = tmp_path_factory.mktemp("built")
    build(root, sample, kernel_a.headers, "--jobs", 1)
    return root / "set"


@pytest.mark.toolchain
def test_set(built: Path, kernel_a: KitKernel) -> None:
    """A set holds the modules without debug information or type information, each with a build id."""
    assert sorted(modules(built)) == sorted(f"{name}.ko" for name in FOUR)
    for path in built.glob("*.ko"):
        names = sections(path)
        assert {".modinfo", ".note.gnu.build-id", ".symtab", ".text"} <= set(names)
        assert not [name for name in names if name.startswith((".debug", ".BTF"))]
        vermagic = subprocess.run(["modinfo", "-F", "vermagic", path], stdout=subprocess.PIPE).stdout
        assert vermagic.decode().split()[0] == kernel_a.release


@pytest.mark.toolchain
def test_bytes_depend_on_the_key_alone(
    built: Path, sample: Path, kernel_a: KitKernel, tmp_path: Path
) -> None:
    """Another path of source, store and headers, another user, host and number of jobs: the same bytes."""
    source = Path(shutil.copytree(sample, tmp_path / "source of 'another' $user, 100%"))
    root = tmp_path / "deeper/than/the/other+one"
    root.mkdir(parents=True)
    os.chown(root, 65534, 65534)
    prefix = ["unshare", "-u", "sh", "-c", f'hostname elsewhere; exec {AS_NOBODY} "$0" "$@"']
    document, _ = build(root, source, elsewhere(kernel_a, tmp_path / "h"), "--jobs", 4, prefix=prefix)
    assert modules(root / "set") == modules(built)
    assert (root / "set/manifest.json").stat().st_uid == 65534
    assert document["key"] == json.loads((built / "manifest.json").read_text())["key"]
    assert not [name for name, data in modules(built).items() if str(sample).encode() in data]


@pytest.mark.toolchain
def test_toolkit_root(built: Path, sample: Path, kernel_a: KitKernel, tmp_path: Path) -> None:
    """The root of a toolkit, its headers one tree as RHEL has them, gives the bytes of Debian's pair."""
    build(tmp_path, sample, toolkit_root(kernel_a, tmp_path / "dtk"))
    assert modules(tmp_path / "set") == modules(built)


@pytest.mark.toolchain
def test_leftovers_of_make_are_not_taken(
    built: Path, sample: Path, kernel_a: KitKernel, tmp_path: Path
) -> None:
    """A tree with stale objects and results of conftest in it gives the bytes of a clean one."""
    dirty = Path(shutil.copytree(sample / FOLDERS["open"], tmp_path / "dirty"))
    headers = ("conftest/functions.h", "conftest/compile-tests/x.h", "nv_compiler.h")
    write_tree(dirty, {**dict.fromkeys(STALE, "stale"), **dict.fromkeys(headers, "#error stale\n")})
    build(tmp_path, dirty, kernel_a.headers)
    assert modules(tmp_path / "set") == modules(built)


@pytest.fixture
def read_only_sample(sample: Path, tmp_path: Path) -> Iterator[Path]:
    """The sample driver on a file system that nobody can write to."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    place = tmp_path / "read-only"
    place.mkdir()
    subprocess.run(["mount", "--bind", str(sample), str(place)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(place)], check=True)
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.toolchain
def test_source_is_never_written_to(read_only_sample: Path, kernel_a: KitKernel, tmp_path: Path) -> None:
    """A source on a read-only file system builds, the proprietary kind here."""
    document, _ = build(tmp_path, read_only_sample, kernel_a.headers, "--kind", "proprietary")
    assert document["from"] == "built"
    licenses = {module["name"]: module["license"] for module in document["modules"]}
    assert licenses["nvidia"] == "NVIDIA"


@pytest.mark.toolchain
def test_debug_info(built: Path, sample: Path, kernel_a: KitKernel, tmp_path: Path) -> None:
    """Debug information is there on request, in a set of another key, beside the same code."""
    document, _ = build(tmp_path, sample, kernel_a.headers, "--debug-info", "--modules", "nvidia,nvidia-uvm")
    assert document["key"] != json.loads((built / "manifest.json").read_text())["key"]
    for name in ("nvidia.ko", "nvidia-uvm.ko"):
        assert ".debug_info" in sections(tmp_path / "set" / name)
        assert content(tmp_path / "set" / name, ".text", tmp_path) == content(built / name, ".text", tmp_path)


@pytest.mark.toolchain
def test_compile_error_is_told(sample: Path, kernel_a: KitKernel, tmp_path: Path) -> None:
    """The first real error is told with file and line, driver and kernel; no set is left, the log is."""
    copy = Path(shutil.copytree(sample, tmp_path / "copy"))
    tree = copy / FOLDERS["open"]
    make_conftest_noisy(tree)
    file, line, message = break_c(tree)
    document, _ = build(tmp_path, copy, kernel_a.headers, code=12)
    error = document["error"]
    start = f"driver {VERSION} (open) for kernel {kernel_a.release} does not build: "
    assert error["message"] == f"{start}{file}:{line}: {message}"
    log = Path(error["hint"].partition("the whole log: ")[2].split(" ")[0])
    assert "drmP.h: No such file" in log.read_text()
    assert not (tmp_path / "set").exists()
    assert not list((tmp_path / "store/sets").glob("*"))


@pytest.mark.toolchain
def test_source_without_core_objects(sample: Path, kernel_a: KitKernel, tmp_path: Path) -> None:
    """A source like the public repository ends with exit 11 before anything is compiled."""
    copy = Path(shutil.copytree(sample, tmp_path / "copy"))
    remove_core_objects(copy / FOLDERS["open"])
    document, log = build(tmp_path, copy, kernel_a.headers, "--kind", "open", code=11)
    assert "nv-kernel.o_binary" in document["error"]["message"]
    assert "building" not in log


@pytest.mark.real
@pytest.mark.parametrize(
    ("role", "kind", "flavour"),
    [
        ("kernel_rt", "open", "rt"),
        ("kernel_cloud", "open", "standard"),
        ("kernel_new", "proprietary", "standard"),
    ],
)
def test_other_kernels(
    role: str, kind: str, flavour: str, sample: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A PREEMPT_RT kernel, one with another configuration and a newer one get modules that fit exactly."""
    kernel = cast(KitKernel, request.getfixturevalue(role))
    document, log = build(tmp_path, sample, kernel.headers, "--kind", kind)
    assert {module["vermagic"].split()[0] for module in document["modules"]} == {kernel.release}
    assert json.loads((tmp_path / "set/manifest.json").read_text())["flavour"] == flavour
    assert ("IGNORE_PREEMPT_RT_PRESENCE=1" in log) == (flavour == "rt")
    argv = [sys.executable, "-m", "nvdriver_build", "verify", "--json", "--headers", str(kernel.headers)]
    done = subprocess.run([*argv, str(tmp_path / "set")], env=environment(tmp_path), stdout=subprocess.PIPE)
    assert json.loads(done.stdout)["fit"] == "exact"


@pytest.mark.real
def test_driver_that_is_too_old(real_source: Path, kernel_future: KitKernel, tmp_path: Path) -> None:
    """The real driver does not compile on a newer kernel; the first error and what would help are told."""
    document, _ = build(tmp_path, real_source, kernel_future.headers, "--modules", "nvidia", code=12)
    error = document["error"]
    start = f"driver 535.261.03 (open) for kernel {kernel_future.release} does not build: nvidia/nv"
    assert error["message"].startswith(start)
    assert error["message"].rpartition(": ")[0].rpartition(":")[2].isdigit()
    assert "too old for this kernel: take a newer one" in error["hint"]


@pytest.mark.real
def test_two_builds_of_the_real_source_are_equal(
    real_build_a: RealBuild, kernel_a: KitKernel, tmp_path: Path
) -> None:
    """The real driver, built at another path by another user with more jobs, is the same in every byte."""
    source = tmp_path / "the source"
    subprocess.run(["cp", "-al", str(real_build_a.source), str(source)], check=True)
    root = tmp_path / "as-nobody"
    root.mkdir()
    os.chown(root, 65534, 65534)
    headers = elsewhere(kernel_a, tmp_path / "h")
    document, _ = build(root, source, headers, "--jobs", 3, prefix=AS_NOBODY.split())
    assert document["key"] == real_build_a.document["key"]
    assert modules(root / "set") == modules(real_build_a.folder)
