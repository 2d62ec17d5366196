"""Mellanox's own kernel modules (MLNX_OFED, DOCA-OFED), as far as nvidia-peermem needs them: their exports.

nvidia-peermem registers with MOFED's ib_core. Built without MOFED's Module.symvers it is a stub whose init
fails. That file is all that a build takes of MOFED: NVIDIA's source brings peer_mem.h itself (515 to 595).

    ROOT/usr/src/ofa_kernel/ARCH/RELEASE/Module.symvers     MOFED 5.5 and later
    ROOT/usr/src/ofa_kernel/RELEASE, .../default            older, or links to the above
    .../configure.mk.kernel, config.mk                      KVERSION: the kernel that it was built for

The order is that of NVIDIA's nvidia-peermem.Kbuild, the files those of mlnx-ofa_kernel's spec and configure.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Iterator, Mapping, Optional

from attrs import evolve, field, frozen

from nvdriver_build.elf import ModuleFacts
from nvdriver_build.errors import HeadersError, HeadersMismatch
from nvdriver_build.fit import UNFIT, Finding, Fit, Signed, check_fit
from nvdriver_build.fit.providers import KERNEL, owner
from nvdriver_build.kernel import KernelTarget, Symbol, parse_symvers
from nvdriver_build.kernel.headers import inside

PEERMEM = "nvidia-peermem"
"""The module, by NVIDIA's name."""
CLIENT_SYMBOLS = ("ib_register_peer_memory_client", "ib_unregister_peer_memory_client")
"""What makes it real (NVIDIA: conftest.sh, check_for_ib_peer_memory_symbols)."""
SOURCES = "usr/src/ofa_kernel"
_ARCH_NAMES = {"arm64": ("aarch64", "arm64")}
"""MOFED names its folders as `uname -m` does."""
_KVERSION = re.compile(r"^KVERSION\s*:?=\s*(\S+)\s*$", re.MULTILINE)
_RENEW = "restart the MOFED pod, or install MOFED's kernel headers for this kernel again"


@frozen
class Mofed:
    """What MOFED's modules export, read once: `symvers` is the text of Module.symvers at `origin`."""

    origin: str
    symvers: str = field(repr=False)
    symbols: Mapping[str, Symbol] = field(repr=False)

    @property
    def modules(self) -> frozenset[str]:
        """The canonical names of MOFED's modules, which are no in-tree ones where they are loaded."""
        return frozenset({owner(symbol) for symbol in self.symbols.values()} - {KERNEL})

    @property
    def sha256(self) -> str:
        """The digest that is part of the recipe of nvidia-peermem."""
        return hashlib.sha256(self.symvers.encode()).hexdigest()


@frozen
class Peers:
    """The modules between which nvidia-peermem stands: MOFED's, and the nvidia that is or will be loaded."""

    mofed: Mofed
    nvidia: ModuleFacts

    @property
    def symvers(self) -> str:
        """The exports of both, as text of Module.symvers: all that a build needs to be told."""
        return self.mofed.symvers + symvers_rows(self.nvidia)

    def check(
        self,
        peermem: ModuleFacts,
        target: KernelTarget,
        *,
        built_config: Optional[str] = None,
        signatures_enforced: Optional[bool] = None,
        signed: Optional[Mapping[str, Signed]] = None,
    ) -> Fit:
        """`check_fit` of nvidia-peermem with what nvidia and MOFED export; the verdict is on it alone.

        A stub, which the kernel would take and whose init fails, is unfit.
        """
        fit = check_fit(
            (self.nvidia, peermem),
            with_mofed(target, self.mofed),
            built_config=built_config,
            signatures_enforced=signatures_enforced,
            signed=signed,
        )
        mine = fit.modules[1]
        findings = (*mine.findings, *_stub_findings(peermem))
        verdict = evolve(mine, fit=UNFIT if findings else mine.fit, findings=findings)
        return Fit(verdict.fit, (verdict,), len(peermem.needed) if target.modversions else 0)


def _stub_findings(peermem: ModuleFacts) -> Iterator[Finding]:
    for name in CLIENT_SYMBOLS:
        if name not in peermem.undefined:
            yield Finding("missing-symbol", f"does not use {name}: it is a stub whose init fails", name)


def find_mofed(root: Path, arch: str, release: str) -> Optional[Mofed]:
    """MOFED for kernel `release` in its own file system `root`; None where no MOFED is there.

    No link leads out of `root`. HeadersError where its Module.symvers is damaged or lacks the peer memory
    symbols, HeadersMismatch where what is there is of other kernels.
    """
    try:
        file = next(_symvers_files(root, arch, release), None)
        if file is None:
            return None
        _require_kernel(file.parent, arch, release)
        symvers = file.read_bytes()
    except OSError as error:
        raise HeadersError(f"MOFED in {root} cannot be read: {error}", hint=_RENEW) from error
    return parse_mofed(symvers.decode("utf-8", "replace"), str(file))


def parse_mofed(symvers: str, origin: str) -> Mofed:
    """MOFED's exports from the text of its Module.symvers; HeadersError where it is of no use."""
    try:
        symbols = parse_symvers(symvers.encode(), origin)
    except HeadersError as error:
        raise HeadersError(error.message, hint=_RENEW) from error
    missing = [name for name in CLIENT_SYMBOLS if name not in symbols]
    if missing:
        raise HeadersError(
            f"{origin} has no {' and no '.join(missing)}: {PEERMEM} cannot register with it",
            hint="MOFED must be built with peer memory (its default); the kernel's own drivers lack it",
        )
    return Mofed(origin, symvers, symbols)


def with_mofed(target: KernelTarget, mofed: Mofed) -> KernelTarget:
    """The kernel once MOFED's modules have taken the place of the in-tree ones of their names."""
    return with_exports(target, mofed.symbols)


def with_exports(target: KernelTarget, symbols: Mapping[str, Symbol]) -> KernelTarget:
    """The kernel once the modules that export `symbols` have taken the place of those of their names."""
    replaced = {owner(symbol) for symbol in symbols.values()} - {KERNEL}
    kept = {name: symbol for name, symbol in target.symbols.items() if owner(symbol) not in replaced}
    return evolve(target, symbols={**kept, **symbols})


def symvers_rows(module: ModuleFacts) -> str:
    """What a module exports, as modpost writes it (kernel: scripts/mod/modpost.c, write_dump)."""
    rows = []
    for name, export in sorted(module.exports.items()):
        kind = "EXPORT_SYMBOL_GPL" if export.gpl_only else "EXPORT_SYMBOL"
        rows.append(f"{export.crc or 0:#010x}\t{name}\t{module.name}\t{kind}\t{export.namespace or ''}\n")
    return "".join(rows)


def _symvers_files(root: Path, arch: str, release: str) -> Iterator[Path]:
    names = [f"{name}/{release}" for name in _ARCH_NAMES.get(arch, (arch,))]
    for name in (*names, release, "default"):
        file = inside(root, f"{SOURCES}/{name}/Module.symvers")
        if file.is_file():
            yield file


def _require_kernel(folder: Path, arch: str, release: str) -> None:
    found = _kernel_of(folder, arch)
    if found not in (None, release):
        raise HeadersMismatch(f"MOFED at {folder} was built for kernel {found}, not {release}", hint=_RENEW)


def _kernel_of(folder: Path, arch: str) -> Optional[str]:
    """The kernel by what configure wrote, else by the folder's name; None where neither tells."""
    for name in ("configure.mk.kernel", "config.mk"):
        file = folder / name
        match = _KVERSION.search(file.read_text(errors="replace")) if file.is_file() else None
        if match:
            return match.group(1)
    return folder.name if folder.parent.name in _ARCH_NAMES.get(arch, (arch,)) else None
