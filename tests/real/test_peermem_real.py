"""nvidia-peermem, built with the real toolchain against a stand-in MOFED, and beside one it must not see."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from peermem_build import build_peermem, peers_of, target_of
from real_build import RealBuild
from sample_driver import FOLDERS, make_mofed, make_sample_driver
from sample_driver.mofed import build_mofed
from vm.kit import KitKernel

from nvdriver_build.elf import read_module
from nvdriver_build.errors import BuildError
from nvdriver_build.mofed import CLIENT_SYMBOLS, symvers_rows

TESTS = Path(__file__).parents[1]
_IN_NAMESPACE = """\
set -e
mount --make-rprivate /
mount -t tmpfs planted /usr/src
cp -r {mofed} /usr/src/ofa_kernel
exec {python} -c "import sys; sys.path.insert(0, '{tests}')
from pathlib import Path
from peermem_build import build_peermem
from vm.kit import load_kit
symvers = Path('{symvers}').read_text()
print(build_peermem(Path('{source}'), load_kit('a').kernel('a'), symvers, Path('{work}')).path)"
"""
"""Builds where a MOFED lies at the place that NVIDIA's files name, seen by nobody else."""


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample driver's open tree."""
    return make_sample_driver(tmp_path_factory.mktemp("driver") / "sample", kind="open") / FOLDERS["open"]


@pytest.fixture(scope="session")
def mofed(tmp_path_factory: pytest.TempPathFactory, kernel_a: KitKernel) -> Path:
    """The root of a MOFED whose ib_core is a real module for kernel A."""
    root = tmp_path_factory.mktemp("mofed")
    build_mofed(kernel_a, root)
    return root


def exports(ib_core: Path) -> dict[str, int]:
    return {name: export.crc or 0 for name, export in read_module(ib_core).exports.items()}


@pytest.mark.real
def test_real_peermem(real_build_a: RealBuild, kernel_a: KitKernel, mofed: Path, tmp_path: Path) -> None:
    """The real nvidia-peermem is built in seconds, twice alike, and each of its CRCs is proven."""
    peers = peers_of(mofed, kernel_a, real_build_a.folder / "nvidia.ko")
    before = os.times()
    module = build_peermem(real_build_a.source, kernel_a, peers.symvers, tmp_path / "one")
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    assert used < 60, "seconds of processor time, which a busy machine does not lengthen much"
    assert module.depends == ("nvidia", "ib_core")
    [ib_core] = mofed.glob("lib/modules/*/extra/ib_core.ko")
    for other in (exports(ib_core), exports(real_build_a.folder / "nvidia.ko")):
        assert {name: crc for name, crc in module.needed.items() if name in other}.items() <= other.items()
    assert set(CLIENT_SYMBOLS) <= set(module.needed)
    fit = peers.check(module, target_of(kernel_a))
    assert (fit.fit, fit.crcs_proven) == ("exact", len(module.needed))
    again = build_peermem(real_build_a.source, kernel_a, peers.symvers, tmp_path / "another-place")
    assert again.sha256 == module.sha256
    assert str(tmp_path).encode() not in Path(module.path).read_bytes()


@pytest.mark.toolchain
def test_update_of_mofed(sample: Path, kernel_a: KitKernel, mofed: Path, tmp_path: Path) -> None:
    """A module built against one MOFED is refused beside the next; built anew, it fits."""
    nvidia = nvidia_of(sample, kernel_a, tmp_path / "main")
    peers = peers_of(mofed, kernel_a, nvidia)
    old = build_peermem(sample, kernel_a, peers.symvers, tmp_path / "old")
    assert peers.check(old, target_of(kernel_a)).fit == "exact"
    build_mofed(kernel_a, tmp_path / "update", another=True)
    updated = peers_of(tmp_path / "update", kernel_a, nvidia)
    [(name, finding)] = updated.check(old, target_of(kernel_a)).findings
    assert (name, finding.code, finding.symbol) == ("nvidia_peermem", "crc", CLIENT_SYMBOLS[0])
    new = build_peermem(sample, kernel_a, updated.symvers, tmp_path / "new")
    assert updated.check(new, target_of(kernel_a)).fit == "exact"
    assert updated.mofed.sha256 != peers.mofed.sha256


def nvidia_of(sample: Path, kernel: KitKernel, root: Path) -> Path:
    """The sample's nvidia.ko, by the command line."""
    argv = [sys.executable, "-m", "nvdriver_build", "build", "--source", str(sample), "--modules", "nvidia"]
    argv += ["--headers", str(kernel.headers), "--output", str(root / "set")]
    subprocess.run(argv, check=True, env={**os.environ, "NVDRIVER_STORE": str(root / "store")})
    return root / "set" / "nvidia.ko"


@pytest.mark.toolchain
def test_mofed_of_the_machine_is_not_seen(sample: Path, kernel_a: KitKernel, tmp_path: Path) -> None:
    """What lies at /usr/src/ofa_kernel, for this very kernel, changes no byte of a module."""
    symvers = tmp_path / "symvers"
    symvers.write_text(symvers_rows(read_module(nvidia_of(sample, kernel_a, tmp_path / "main"))))
    plain = build_peermem(sample, kernel_a, symvers.read_text(), tmp_path / "plain")
    planted = tmp_path / "planted"
    for name in ("default", f"x86_64/{kernel_a.release}", kernel_a.release):
        (planted / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(make_mofed(tmp_path / name.replace("/", "-")), planted / name)
    values = {"mofed": planted, "symvers": symvers, "source": sample, "work": tmp_path / "hidden"}
    script = _IN_NAMESPACE.format(python=shlex.quote(sys.executable), tests=TESTS, **values)
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    argv = ["unshare", "--mount", *user, "sh", "-c", script]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True)
    hidden = read_module(Path(done.stdout.strip()))
    assert CLIENT_SYMBOLS[0] not in hidden.needed
    assert hidden.sha256 == plain.sha256


@pytest.mark.toolchain
def test_without_mofed_it_is_a_stub(sample: Path, kernel_a: KitKernel, mofed: Path, tmp_path: Path) -> None:
    """Built without MOFED's exports it is a stub, which does not fit; nvidia's alone do not help."""
    peers = peers_of(mofed, kernel_a, nvidia_of(sample, kernel_a, tmp_path / "main"))
    rows = peers.symvers.replace(peers.mofed.symvers, "")
    stub = build_peermem(sample, kernel_a, rows, tmp_path / "stub")
    codes = [(finding.code, finding.symbol) for _, finding in peers.check(stub, target_of(kernel_a)).findings]
    assert codes == [("missing-symbol", name) for name in CLIENT_SYMBOLS]


@pytest.mark.toolchain
def test_without_nvidia_it_does_not_build(
    sample: Path, kernel_a: KitKernel, mofed: Path, tmp_path: Path
) -> None:
    """Without nvidia's exports modpost finds them undefined, and the build says which."""
    peers = peers_of(mofed, kernel_a, nvidia_of(sample, kernel_a, tmp_path / "main"))
    with pytest.raises(BuildError, match=r'"nvidia_p2p_(get|put)_pages" .*undefined'):
        build_peermem(sample, kernel_a, peers.mofed.symvers, tmp_path / "bare")
