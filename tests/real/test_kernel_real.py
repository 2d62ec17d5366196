"""What headers say of real kernels is what the modules of those kernels say."""

from __future__ import annotations

import gzip
import re
import subprocess
import time
from pathlib import Path
from typing import cast

import pytest
from attrs import evolve
from vm.kit import KitKernel

from nvdriver_build.errors import HeadersMismatch
from nvdriver_build.kernel import RunningKernel, find_headers, prove, target_from_headers
from nvdriver_build.kernel.proof import _by_modules
from nvdriver_build.kernel.target import in_tree_modules

pytestmark = pytest.mark.real


@pytest.fixture
def kernel(request: pytest.FixtureRequest) -> KitKernel:
    return cast(KitKernel, request.getfixturevalue(request.param))


@pytest.mark.parametrize("kernel", ["kernel_a", "kernel_b", "kernel_arm64"], indirect=True)
def test_vermagic_is_that_of_the_modules(kernel: KitKernel) -> None:
    """The vermagic that headers give is that of every module of the kernel's package."""
    assert kernel.modules is not None
    target = target_from_headers(find_headers(kernel.headers))
    paths = list(in_tree_modules(kernel.modules))
    assert len(paths) > 1000
    text = subprocess.run(
        ["modinfo", "-F", "vermagic", *paths], check=True, stdout=subprocess.PIPE, text=True
    )
    assert set(text.stdout.splitlines()) == {target.vermagic}
    assert (target.release, target.flavour) == (kernel.release, "standard")
    assert target.arch == {"amd64": "x86_64", "arm64": "arm64"}[kernel.arch]


@pytest.mark.parametrize(
    "kernel",
    ["kernel_a", "kernel_rt", "kernel_arm64", "kernel_new", "kernel_future"],
    indirect=True,
)
def test_vermagic_is_that_of_the_header(kernel: KitKernel, tmp_path: Path) -> None:
    """The vermagic is what the preprocessor makes of the kernel's own vermagic.h."""
    arch = {"amd64": "x86", "arm64": "arm64"}[kernel.arch]
    source = tmp_path / "x.c"
    source.write_text("#define INCLUDE_VERMAGIC\n#include <linux/vermagic.h>\nBEGIN VERMAGIC_STRING\n")
    folders = [kernel.headers / "include", kernel.common / f"arch/{arch}/include", kernel.common / "include"]
    command = ["gcc", "-E", "-P", "-nostdinc", *(f"-I{folder}" for folder in folders)]
    command += ["-include", str(kernel.headers / "include/generated/autoconf.h"), str(source)]
    text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    wanted = "".join(re.findall(r'"([^"]*)"', text.partition("BEGIN")[2]))
    assert target_from_headers(find_headers(kernel.headers)).vermagic == wanted


def test_flavours(kernel_a: KitKernel, kernel_rt: KitKernel, kernel_arm64: KitKernel) -> None:
    """A PREEMPT_RT kernel is told by its configuration."""
    kernels = (kernel_a, kernel_rt, kernel_arm64)
    flavours = [target_from_headers(find_headers(kernel.headers)).flavour for kernel in kernels]
    assert flavours == ["standard", "rt", "standard"]


def test_headers_through_the_module_folder(kernel_a: KitKernel) -> None:
    """/lib/modules/R/build is the flavour's folder, and -common is found beside it."""
    assert kernel_a.modules is not None
    found = find_headers(kernel_a.modules / "build", kernel_a.release)
    assert (found.output, found.sources) == (kernel_a.headers.resolve(), kernel_a.common.resolve())


def test_proofs_of_a_real_kernel(kernel_a: KitKernel, kernel_b: KitKernel) -> None:
    """The build that headers name and the package's modules prove headers; those of others contradict."""
    assert kernel_a.modules is not None
    assert kernel_b.modules is not None
    found = find_headers(kernel_a.headers)
    target = target_from_headers(found)
    running = RunningKernel(kernel_a.release, _uts_version(kernel_a), "x86_64")
    assert prove(found, target, running, kernel_a.modules).by == "build"
    with pytest.raises(HeadersMismatch, match="another build"):
        prove(found, target, evolve(running, version="#1 SMP other"), kernel_a.modules)
    proof = _by_modules(target, kernel_a.modules)
    assert proof is not None
    assert proof.by == "modules"
    with pytest.raises(HeadersMismatch, match="vermagic"):
        _by_modules(target, kernel_b.modules)
    other = target_from_headers(find_headers(kernel_b.headers)).vermagic
    with pytest.raises(HeadersMismatch, match=r"needs .* with CRC"):
        _by_modules(evolve(target, vermagic=other), kernel_b.modules)


def test_proofs_are_fast(kernel_a: KitKernel, tmp_path: Path) -> None:
    """Comparing 25,000 symbols, and CRCs of modules, takes a fraction of a second."""
    assert kernel_a.modules is not None
    found = find_headers(kernel_a.headers)
    target = target_from_headers(found)
    running = RunningKernel(kernel_a.release, _uts_version(kernel_a), "x86_64")
    (tmp_path / "symvers.gz").write_bytes(gzip.compress((kernel_a.headers / "Module.symvers").read_bytes()))

    def seconds(modules: Path) -> float:
        started = time.process_time()
        assert prove(found, target, running, tmp_path).by == "symvers"
        assert _by_modules(target, modules)
        return time.process_time() - started

    assert min(seconds(kernel_a.modules) for _ in range(3)) < 0.6


def _uts_version(kernel: KitKernel) -> str:
    text = (kernel.headers / "include/generated/utsversion.h").read_text()
    return text.partition('"')[2].rpartition('"')[0]
