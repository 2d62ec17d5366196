"""`check_fit` on real kernels and the real driver, against what other programs count."""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path
from typing import Dict, List, cast

import pytest
from attrs import evolve
from real_build import RealBuild
from vm.kit import KitKernel

from nvdriver_build.elf import read_module
from nvdriver_build.fit import COMPATIBLE, EXACT, UNFIT, check_fit
from nvdriver_build.kernel import KernelTarget, find_headers, target_from_headers
from nvdriver_build.kernel.target import in_tree_modules
from nvdriver_build.sets import open_set

pytestmark = pytest.mark.real


@pytest.mark.parametrize("role", ["kernel_a", "kernel_arm64"])
def test_every_in_tree_module_fits_its_kernel(role: str, request: pytest.FixtureRequest) -> None:
    """Each of the thousands of modules of a kernel's package fits the headers of that kernel exactly."""
    kernel = cast(KitKernel, request.getfixturevalue(role))
    assert kernel.modules is not None
    target = target_from_headers(find_headers(kernel.headers))
    modules = [read_module(path, digest=False) for path in in_tree_modules(kernel.modules)]
    assert len(modules) > 3000
    fits = [check_fit([module], target, signatures_enforced=True) for module in modules]
    assert [fit for fit in fits if fit.fit != EXACT] == []
    assert sum(fit.crcs_proven for fit in fits) > 100_000


def test_in_tree_modules_do_not_fit_another_kernel(kernel_a: KitKernel, kernel_b: KitKernel) -> None:
    """A module of one kernel does not fit another ABI, even if its configuration were the same."""
    assert kernel_a.modules is not None
    target = target_from_headers(find_headers(kernel_b.headers))
    modules = [read_module(path, digest=False) for path in list(in_tree_modules(kernel_a.modules))[::40]]
    fits = [check_fit([module], target, built_config=target.config_digest) for module in modules]
    assert {fit.fit for fit in fits} == {UNFIT}
    assert all("crc" in {finding.code for _, finding in fit.findings} for fit in fits)


@pytest.fixture(scope="session")
def target_b(kernel_b: KitKernel) -> KernelTarget:
    return target_from_headers(find_headers(kernel_b.headers))


def versions(module: Path) -> Dict[str, int]:
    """Symbols and CRCs that a module wants, by kmod."""
    command = ["modprobe", "--dump-modversions", str(module)]
    text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return {name: int(crc, 16) for crc, name in (line.split("\t") for line in text.splitlines())}


def exports(symvers: Path) -> Dict[str, int]:
    """CRCs of Module.symvers, as awk would have them."""
    return {row.split("\t")[1]: int(row.split("\t")[0], 16) for row in symvers.read_text().splitlines()}


def test_real_set_fits_its_kernel(real_build_a: RealBuild, kernel_a: KitKernel) -> None:
    """The real driver that was built for A fits A exactly, by every CRC that kmod sees."""
    module_set = open_set(real_build_a.folder)
    target = target_from_headers(find_headers(kernel_a.headers))
    fit = check_fit(module_set.read(), target, built_config=module_set.manifest.config_digest)
    assert (fit.fit, fit.findings) == (EXACT, ())
    assert fit.crcs_proven == sum(len(versions(path)) for path in module_set.paths) > 500


def test_findings_equal_an_independent_count(
    real_build_a: RealBuild, kernel_b: KitKernel, target_b: KernelTarget
) -> None:
    """For another kernel, the findings of symbols are what kmod's dump and Module.symvers give."""
    module_set = open_set(real_build_a.folder)
    paths = module_set.paths
    own = {name for module in module_set.read() for name in module.exports}
    there = exports(kernel_b.headers / "Module.symvers")
    crc = [(p.stem, n) for p in paths for n, v in versions(p).items() if n in there and there[n] != v]
    gone = [(p.stem, n) for p in paths for n in versions(p) if n not in there and n not in own]
    fit = check_fit(module_set.read(), target_b, built_config=module_set.manifest.config_digest)
    found: Dict[str, List[tuple[str, str]]] = {"crc": [], "missing-symbol": []}
    for name, finding in fit.findings:
        if finding.code in found:
            found[finding.code].append((name.replace("_", "-"), str(finding.symbol)))
    assert fit.fit == UNFIT
    assert crc
    assert Counter(found["crc"]) == Counter(crc)
    assert Counter(found["missing-symbol"]) == Counter(gone)


def test_real_set_would_fit_a_kernel_of_the_same_interface(
    real_build_a: RealBuild, kernel_a: KitKernel
) -> None:
    """Under another release with the same symbols and configuration the real set is compatible."""
    module_set = open_set(real_build_a.folder)
    target = target_from_headers(find_headers(kernel_a.headers))
    rest = target.vermagic.partition(" ")[2]
    other = evolve(target, release="6.1.0-999-amd64", vermagic=f"6.1.0-999-amd64 {rest}")
    digest = module_set.manifest.config_digest
    assert check_fit(module_set.read(), other, built_config=digest).fit == COMPATIBLE
    symbols = {name: row for name, row in other.symbols.items() if name != "printk" and name != "_printk"}
    assert check_fit(module_set.read(), evolve(other, symbols=symbols), built_config=digest).fit == UNFIT
