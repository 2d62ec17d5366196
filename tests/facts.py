"""Facts of modules and kernels for the tests of `fit`: as small as a test wants them."""

from __future__ import annotations

from typing import Collection, Mapping, Optional, Sequence

from nvdriver_build.elf import Export, ModuleFacts, Signature
from nvdriver_build.kernel import KernelTarget, Symbol

RELEASE, REST = "6.1.0-9-amd64", "SMP preempt mod_unload modversions "
VERMAGIC = f"{RELEASE} {REST}"
LAYOUT = 0x160C03AF
CONFIG = {"X86_64": "y", "SMP": "y", "MODVERSIONS": "y", "MODULE_UNLOAD": "y"}
SIGNATURE = Signature(signer="s", issuer="i", serial="01", hash="sha256")


def symbol(crc: int, module: str = "vmlinux", *, gpl: bool = False, space: Optional[str] = None) -> Symbol:
    """A row of Module.symvers."""
    return Symbol(crc, module, gpl, space)


def kernel(
    symbols: Optional[Mapping[str, Symbol]] = None,
    config: Optional[Mapping[str, str]] = None,
    *,
    release: str = RELEASE,
    rest: str = REST,
    arch: str = "x86_64",
) -> KernelTarget:
    """A kernel that exports `symbols` and module_layout; `config` comes on top of CONFIG."""
    return KernelTarget(
        release=release,
        arch=arch,
        flavour="standard",
        vermagic=f"{release} {rest}",
        symbols={"module_layout": symbol(LAYOUT), **(symbols or {})},
        config={**CONFIG, **(config or {})},
        symvers_sha256="0" * 64,
        config_sha256="0" * 64,
        origin="/headers",
    )


def driver(
    name: str = "nvidia",
    needed: Optional[Mapping[str, int]] = None,
    *,
    exports: Optional[Mapping[str, Export]] = None,
    depends: Sequence[str] = (),
    license: Optional[str] = "Dual MIT/GPL",
    imports: Sequence[str] = (),
    vermagic: Optional[str] = VERMAGIC,
    weak: Collection[str] = (),
    unversioned: Collection[str] = (),
    versions: Optional[Mapping[str, int]] = None,
    machine: str = "x86_64",
    bits: int = 64,
    byteorder: str = "little",
    signature: Optional[Signature] = None,
    btf: bool = False,
) -> ModuleFacts:
    """A module that needs `needed` (symbol and CRC) and module_layout; `unversioned` are without a CRC.

    `versions` replaces all CRCs.
    """
    needed = needed or {}
    modinfo = [("name", name), ("depends", ",".join(depends)), *(("import_ns", space) for space in imports)]
    modinfo += [("license", license)] if license is not None else []
    modinfo += [("vermagic", vermagic)] if vermagic is not None else []
    undefined = {*needed, *unversioned}.difference(weak)
    crcs = {"module_layout": LAYOUT, **needed} if versions is None else versions
    return ModuleFacts(
        path=f"/set/{name}.ko",
        name=name,
        modinfo=tuple(modinfo),
        machine=machine,
        bits=bits,
        byteorder=byteorder,
        needed=crcs,
        undefined=tuple(sorted(undefined)),
        weak=tuple(sorted(weak)),
        exports=exports or {},
        build_id=None,
        signature=signature,
        sha256=None,
        size=0,
        btf=btf,
    )


def export(crc: Optional[int], *, gpl: bool = False, space: Optional[str] = None) -> Export:
    """A symbol that a module of the set exports."""
    return Export(crc=crc, gpl_only=gpl, namespace=space)
