"""`check_fit`: does a set of modules fit a kernel? Pure: facts in, answer out.

The rules are those of the kernel's loader (kernel/module/main.c and version.c: same_magic, check_version,
resolve_symbol, verify_namespace_is_imported, inherit_taint), and stricter where docs/contracts.md says so.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Iterable, Mapping, NamedTuple, Optional, Sequence

from attrs import frozen

from nvdriver_build.elf import ModuleFacts, canonical_name
from nvdriver_build.kernel import KernelTarget

EXACT, COMPATIBLE, UNFIT = "exact", "compatible", "unfit"
GPL_COMPATIBLE = (
    "GPL",
    "GPL v2",
    "GPL and additional rights",
    "Dual BSD/GPL",
    "Dual MIT/GPL",
    "Dual MPL/GPL",
)
"""Licenses that may use GPL-only symbols (kernel: include/linux/license.h)."""


@frozen
class Finding:
    """One reason against a module; codes are in docs/contracts.md."""

    code: str
    message: str
    symbol: Optional[str] = None
    wanted: Optional[str] = None
    found: Optional[str] = None


@frozen
class ModuleFit:
    """The verdict on one module."""

    name: str
    fit: str
    findings: tuple[Finding, ...]


@frozen
class Fit:
    """The verdict on a set: that of its worst module. `crcs_proven` is how many CRCs were compared."""

    fit: str
    modules: tuple[ModuleFit, ...]
    crcs_proven: int

    @property
    def findings(self) -> tuple[tuple[str, Finding], ...]:
        """Every finding with its module's name."""
        return tuple((module.name, finding) for module in self.modules for finding in module.findings)


class _Provider(NamedTuple):
    """Who exports a symbol: the kernel, or a module of the set itself (then `proprietary` may be set)."""

    crc: Optional[int]
    gpl_only: bool
    namespace: Optional[str]
    proprietary: bool


def check_fit(
    modules: Sequence[ModuleFacts],
    target: KernelTarget,
    *,
    built_config: Optional[str] = None,
    signatures_enforced: bool = False,
) -> Fit:
    """Whether `modules`, taken together, fit `target`.

    `built_config` is the digest of the configuration that the set was built with (KernelTarget.config_digest
    of its own kernel), needed for `compatible`. With `signatures_enforced` an unsigned module does not fit.
    """
    own = _own_exports(modules)
    names = {module.name for module in modules} | _target_modules(target)
    verdicts = []
    for module in modules:
        findings = [
            *_format(module),
            *_architecture(module, target),
            *_vermagic(module, target, built_config),
            *_symbols(module, target, own),
            *_dependencies(module, names),
            *_signature(module, signatures_enforced),
        ]
        verdicts.append(ModuleFit(module.name, _grade(module, target, findings), tuple(findings)))
    grades = {verdict.fit for verdict in verdicts}
    worst = next((grade for grade in (UNFIT, COMPATIBLE, EXACT) if grade in grades), UNFIT)
    proven = sum(len(module.needed) for module in modules) if target.modversions else 0
    return Fit(worst, tuple(verdicts), proven)


def _grade(module: ModuleFacts, target: KernelTarget, findings: Sequence[Finding]) -> str:
    if findings:
        return UNFIT
    return EXACT if module.vermagic == target.vermagic else COMPATIBLE


def _own_exports(modules: Iterable[ModuleFacts]) -> Mapping[str, _Provider]:
    return {
        name: _Provider(export.crc, export.gpl_only, export.namespace, not _gpl_compatible(module))
        for module in modules
        for name, export in module.exports.items()
    }


def _target_modules(target: KernelTarget) -> set[str]:
    return {canonical_name(symbol.module.rpartition("/")[2]) for symbol in target.symbols.values()}


def _gpl_compatible(module: ModuleFacts) -> bool:
    return module.license in GPL_COMPATIBLE


def _format(module: ModuleFacts) -> Iterable[Finding]:
    if not module.vermagic:
        yield Finding("format", "has no vermagic: it is no finished kernel module")


def _architecture(module: ModuleFacts, target: KernelTarget) -> Iterable[Finding]:
    found = f"{module.machine}, {module.bits} bit, {module.byteorder} endian"
    wanted = f"{target.arch}, 64 bit, little endian"
    if found != wanted:
        yield Finding("architecture", f"is built for {found}, the kernel is {wanted}", None, wanted, found)


def _vermagic(module: ModuleFacts, target: KernelTarget, built_config: Optional[str]) -> Iterable[Finding]:
    mine, theirs = module.vermagic or "", target.vermagic
    if mine == theirs:
        return
    same_rest = mine.partition(" ")[2] == theirs.partition(" ")[2]
    if not (target.modversions and same_rest):
        yield Finding(
            "vermagic", f"has vermagic {mine!r}, the kernel asks for {theirs!r}", None, theirs, mine
        )
    elif built_config is None:
        yield Finding(
            "vermagic",
            f"is of kernel {mine.partition(' ')[0]}, built with an unknown configuration",
            None,
            theirs,
            mine,
        )
    elif built_config != target.config_digest:
        yield Finding(
            "config",
            f"was built for {mine.partition(' ')[0]} with another configuration than {target.release} has",
            None,
            target.config_digest,
            built_config,
        )


def _symbols(module: ModuleFacts, target: KernelTarget, own: Mapping[str, _Provider]) -> Iterable[Finding]:
    gpl_only_used = proprietary_used = None
    for name in sorted({*module.undefined, *module.weak, *module.needed}):
        provider = _provider(name, target, own)
        if provider is None:
            if name not in module.weak:
                yield Finding("missing-symbol", f"needs {name}, which nothing exports", name)
            continue
        yield from _crc(module, name, provider, target)
        yield from _namespace(module, name, provider, target)
        if name in module.undefined or name in module.weak:
            gpl_only_used = gpl_only_used or (name if provider.gpl_only else None)
            proprietary_used = proprietary_used or (name if provider.proprietary else None)
            if provider.gpl_only and not _gpl_compatible(module):
                message = f"has license {module.license!r} and uses {name}, which is for GPL modules only"
                yield Finding("gpl-only", message, name)
    if gpl_only_used and proprietary_used and _gpl_compatible(module):
        message = f"uses {proprietary_used} of a proprietary module and GPL-only {gpl_only_used}"
        yield Finding("gpl-only", message, gpl_only_used)


def _provider(name: str, target: KernelTarget, own: Mapping[str, _Provider]) -> Optional[_Provider]:
    symbol = target.symbols.get(name)
    if symbol is not None:
        return _Provider(symbol.crc, symbol.gpl_only, symbol.namespace, False)
    return own.get(name)


def _crc(module: ModuleFacts, name: str, provider: _Provider, target: KernelTarget) -> Iterable[Finding]:
    if not target.modversions:
        return
    mine = module.needed.get(name)
    if mine is None:
        yield Finding("unversioned", f"needs {name} without saying which version", name)
    elif mine != provider.crc:
        found = "no CRC" if provider.crc is None else f"{provider.crc:#010x}"
        yield Finding(
            "crc", f"needs {name} with CRC {mine:#010x}, there is {found}", name, f"{mine:#010x}", found
        )


def _namespace(
    module: ModuleFacts, name: str, provider: _Provider, target: KernelTarget
) -> Iterable[Finding]:
    space = provider.namespace
    if not space or target.config.get("MODULE_ALLOW_MISSING_NAMESPACE_IMPORTS") == "y":
        return
    if space.startswith("module:"):
        # Linux 6.16: EXPORT_SYMBOL_GPL_FOR_MODULES names the modules that may use the symbol.
        patterns = space[len("module:") :].split(",")
        allowed = any(fnmatchcase(module.name, canonical_name(pattern)) for pattern in patterns)
    else:
        allowed = space in module.import_ns
    if not allowed:
        yield Finding("namespace", f"uses {name} without importing namespace {space}", name, space, None)


def _dependencies(module: ModuleFacts, names: set[str]) -> Iterable[Finding]:
    for name in module.depends:
        if canonical_name(name) not in names:
            yield Finding(
                "dependency", f"depends on module {name}, which is in neither the set nor the kernel", name
            )


def _signature(module: ModuleFacts, enforced: bool) -> Iterable[Finding]:
    if enforced and module.signature is None:
        yield Finding("signature", "is not signed, and the kernel takes signed modules only")
