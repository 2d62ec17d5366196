"""Builds from kept answers: the bytes of a build without them, and the conftest headers of plain make."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Callable, Dict, Tuple

import pytest
from cli_runs import environment
from real_build import RealBuild, build_real
from renamed_kernel import renamed
from sample_driver import VERSION, make_sample_driver, replace_text
from vm.kit import KitKernel

MAKE = """#!/bin/sh
# make, which leaves conftest's headers
/usr/bin/make "$@"
code=$?
while [ "$1" != -C ]; do shift; done
mkdir -p {place} && cp "$2"/conftest/*.h {place}
exit $code
"""
NO_OBJECTS = """#!/bin/sh
# the compiler, but for objects of the driver
case "$*" in *-Wp,-MMD,*) exit 1 ;; esac
exec gcc-12 "$@"
"""
Files = Dict[str, bytes]


def build(root: Path, source: Path, headers: Path, kept: Path) -> Tuple[Files, Files, str]:
    """Build with the answers in the folder `kept`: the modules, conftest's headers, and the log."""
    store, place = root / "store", root / "conftest"
    store.mkdir(parents=True, mode=0o700)
    if kept.exists():
        shutil.copytree(kept, store / "kept")
    (root / "bin").mkdir()
    make = root / "bin/make"
    make.write_text(MAKE.replace("{place}", str(place)))
    make.chmod(0o755)
    argv = [sys.executable, "-m", "nvdriver_build", "build", "--json", "--source", source]
    argv += ["--headers", headers, "--output", root / "set"]
    variables = environment(root)
    variables["PATH"] = f"{make.parent}:{variables['PATH']}"
    words = [str(word) for word in argv]
    done = subprocess.run(words, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return files(root / "set", "*.ko"), headers_of(place), done.stderr


def files(folder: Path, pattern: str) -> Files:
    return {path.name: path.read_bytes() for path in sorted(folder.glob(pattern))}


def headers_of(conftest: Path) -> Files:
    """conftest's headers, whose first line may be a comment that names the kernel."""
    return {name: re.sub(rb"^// Kernel.*\n", b"", data) for name, data in files(conftest, "*.h").items()}


def taken(log: str) -> int:
    """How many answers of earlier builds the build has used."""
    return int(re.findall(r"answers of the compiler\s.*from_earlier_builds=(\d+)", log)[-1])


def asked(log: str) -> int:
    """How often the compiler was asked."""
    return int(re.findall(r"answers of the compiler\s+asked=(\d+)", log)[-1])


def next_kernel(kernel: KitKernel, place: Path) -> KitKernel:
    return renamed(kernel, place, "next")


def other_setting(kernel: KitKernel, place: Path) -> KitKernel:
    return renamed(kernel, place, "other", setting="18")


def same_kernel(kernel: KitKernel, _: Path) -> KitKernel:
    return kernel


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sample_driver(tmp_path_factory.mktemp("driver") / "sample", kind="open")


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory, sample: Path, kernel_a: KitKernel) -> Path:
    """What the sample's build for kernel A has kept."""
    root = tmp_path_factory.mktemp("first")
    _, _, log = build(root, sample, kernel_a.headers, root / "none")
    assert taken(log) == 0
    return root / "store/kept"


@pytest.mark.toolchain
@pytest.mark.parametrize(
    ("make_kernel", "version", "new"),
    [(same_kernel, "999.10.02", 10), (next_kernel, VERSION, 5), (other_setting, "999.10.02", 10)],
)
def test_sample_from_answers(
    make_kernel: Callable[[KitKernel, Path], KitKernel],
    version: str,
    new: int,
    sample: Path,
    kernel_a: KitKernel,
    kept: Path,
    tmp_path: Path,
) -> None:
    """For this kernel, a sibling and one with another setting, this driver and the next: the same bytes."""
    (tmp_path / "headers").mkdir()
    kernel = make_kernel(kernel_a, tmp_path / "headers")
    source = Path(shutil.copytree(sample, tmp_path / "source"))
    for file in source.rglob("Kbuild"):
        if version != VERSION:
            replace_text(file, VERSION, version)
    without = build(tmp_path / "without", source, kernel.headers, tmp_path / "none")
    fast = build(tmp_path / "with", source, kernel.headers, kept)
    assert fast[:2] == without[:2]
    assert len(fast[0]) == 4
    assert fast[1]
    assert (asked(fast[2]), taken(fast[2])) == (new, 25 - new)


def spoil(file: Path) -> None:
    """Give a file of answers objects that are none, with a digest that is right."""
    _, text, objects = file.read_bytes().split(b"\n", 2)
    body = text + b"\n" + b"\0" * len(objects)
    file.write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)


@pytest.mark.toolchain
def test_answers_that_break_a_build(sample: Path, kernel_a: KitKernel, kept: Path, tmp_path: Path) -> None:
    """A build that fails with kept answers is done anew without them, and says so."""
    bad = Path(shutil.copytree(kept, tmp_path / "bad"))
    for file in bad.iterdir():
        spoil(file)
    without = build(tmp_path / "without", sample, kernel_a.headers, tmp_path / "none")
    spoiled = build(tmp_path / "with", sample, kernel_a.headers, bad)
    assert spoiled[:2] == without[:2]
    assert "built anew, without what was kept" in spoiled[2]


def plain_conftest(source: Path, kernel: KitKernel, folder: Path) -> Files:
    """The headers of conftest as plain make has them, which then finds that nothing compiles."""
    tree, compiler = folder / "tree", folder / "cc"
    subprocess.run(["cp", "-a", str(source), str(tree)], check=True)
    compiler.write_text(NO_OBJECTS)
    compiler.chmod(0o755)
    jobs = len(os.sched_getaffinity(0))
    argv = ["make", f"-j{jobs}", "-C", tree, f"SYSSRC={kernel.common}", f"SYSOUT={kernel.headers}"]
    argv += [f"CC={compiler}", "NV_EXCLUDE_KERNEL_MODULES=nvidia-peermem", "modules"]
    with (folder / "log").open("wb") as log:
        done = subprocess.run([str(word) for word in argv], stdout=log, stderr=log, check=False)
    assert done.returncode == 2
    return headers_of(tree / "conftest")


@pytest.mark.real
def test_real_driver_from_answers(
    real_build_a: RealBuild, open_tarball: Path, kernel_a: KitKernel, tmp_path: Path
) -> None:
    """The real driver from the answers of a sibling's build: the same bytes, with plain make's conftest."""
    (tmp_path / "headers").mkdir()
    sibling = build_real(open_tarball, renamed(kernel_a, tmp_path / "headers", "next"))
    kept = tmp_path / "kept"
    kept.mkdir()
    shutil.copy(sibling.store / "kept" / sibling.document["key"], kept)
    modules, conftest, log = build(tmp_path / "build", real_build_a.source, kernel_a.headers, kept)
    manifest = json.loads((tmp_path / "build/set/manifest.json").read_text())
    assert manifest["key"] == real_build_a.document["key"]
    assert modules == files(real_build_a.folder, "*.ko")
    assert taken(log) > 500
    assert conftest == plain_conftest(real_build_a.source, kernel_a, tmp_path)
    assert {"functions.h", "generic.h", "headers.h", "macros.h", "symbols.h", "types.h"} <= set(conftest)
