"""The reasons that a kernel has against a module, one function each.

Kernel: kernel/module/main.c and version.c (same_magic, check_version, resolve_symbol, inherit_taint,
verify_namespace_is_imported, verify_exported_symbols, check_export_symbol_versions, mod_sig_check) and
kernel/bpf/btf.c (btf_module_notify).
"""

from __future__ import annotations

from typing import Collection, Iterable, Mapping, Optional, Sequence

from attrs import frozen

from nvdriver_build.elf import ModuleFacts, canonical_name
from nvdriver_build.fit.providers import (
    KERNEL,
    Provider,
    Providers,
    gpl_compatible,
    owner,
    used_symbols,
    wanted_symbols,
)
from nvdriver_build.fit.signatures import UNKNOWN, Signed, against
from nvdriver_build.kernel import KernelTarget

_FOR_MODULES = "module:"


@frozen
class Finding:
    """One reason against a module; codes are in docs/contracts.md."""

    code: str
    message: str
    symbol: Optional[str] = None
    wanted: Optional[str] = None
    found: Optional[str] = None


@frozen
class Surroundings:
    """What a module is judged by: the kernel, the set, its members that are loaded `before` it, who exports
    what it needs, who is proprietary, and what check_fit was told."""

    target: KernelTarget
    modules: Sequence[ModuleFacts]
    before: Sequence[ModuleFacts]
    providers: Providers
    tainted: Collection[str]
    built_config: Optional[str]
    enforced: bool
    signed: Mapping[str, Signed]


def find(module: ModuleFacts, around: Surroundings) -> Iterable[Finding]:
    """Everything that speaks against `module`."""
    for rule in (
        _format,
        _architecture,
        _vermagic,
        _btf,
        _symbols,
        _imports,
        _licenses,
        _exports,
        _dependencies,
        _signature,
    ):
        yield from rule(module, around)


def _format(module: ModuleFacts, _: Surroundings) -> Iterable[Finding]:
    if not module.vermagic:
        yield Finding("format", "has no vermagic: it is no finished kernel module")


def _architecture(module: ModuleFacts, around: Surroundings) -> Iterable[Finding]:
    found = f"{module.machine}, {module.bits} bit, {module.byteorder} endian"
    wanted = f"{around.target.arch}, 64 bit, little endian"
    if found != wanted:
        yield Finding("architecture", f"is built for {found}, the kernel is {wanted}", None, wanted, found)


def _vermagic(module: ModuleFacts, around: Surroundings) -> Iterable[Finding]:
    mine, target, built = module.vermagic, around.target, around.built_config
    if not mine:
        return
    release, _, rest = mine.partition(" ")
    bound = not (target.modversions and module.has_versions)  # has_crcs of same_magic
    if mine == target.vermagic:
        if not target.modversions and built not in (None, target.config_digest):  # no CRC tells it
            message = f"was built for another build of {release}, with another configuration"
            yield Finding("config", message, None, target.config_digest, built)
    elif bound or rest != target.vermagic.partition(" ")[2]:
        message = f"has vermagic {mine!r}, the kernel asks for {target.vermagic!r}"
        yield Finding("vermagic", message, None, target.vermagic, mine)
    elif built is None:
        message = f"is of kernel {release}, built with an unknown configuration"
        yield Finding("vermagic", message, None, target.vermagic, mine)
    elif built != target.config_digest:
        message = f"was built for {release} with another configuration than {target.release} has"
        yield Finding("config", message, None, target.config_digest, built)


def _btf(module: ModuleFacts, around: Surroundings) -> Iterable[Finding]:
    """Type information refers to that of the very kernel it was made with."""
    target = around.target
    read = target.config.get("DEBUG_INFO_BTF_MODULES") == "y"
    if module.btf and read and module.vermagic and module.vermagic != target.vermagic:
        release = module.vermagic.partition(" ")[0]
        yield Finding("format", f"has a section .BTF, which only kernel {release} understands")


def _symbols(module: ModuleFacts, around: Surroundings) -> Iterable[Finding]:
    for name in wanted_symbols(module, around.target):
        provider = around.providers.get(name)
        if provider is not None:
            yield from _crc(module, name, provider, around.target)
            yield from _namespace(module, name, provider, around.target)
        elif name not in module.weak:
            yield Finding("missing-symbol", f"needs {name}, which nothing exports", name)


def _crc(module: ModuleFacts, name: str, provider: Provider, target: KernelTarget) -> Iterable[Finding]:
    if not target.modversions:
        return
    mine = module.needed.get(name)
    if mine is None:
        yield Finding("unversioned", f"needs {name} without saying which version", name)
    elif mine != provider.crc:
        wanted, found = f"{mine:#010x}", "no CRC" if provider.crc is None else f"{provider.crc:#010x}"
        yield Finding("crc", f"needs {name} with CRC {wanted}, there is {found}", name, wanted, found)


def _namespace(module: ModuleFacts, name: str, provider: Provider, target: KernelTarget) -> Iterable[Finding]:
    space = provider.namespace
    if not space or target.config.get("MODULE_ALLOW_MISSING_NAMESPACE_IMPORTS") == "y":
        return
    if not _may_use(module, space):
        yield Finding("namespace", f"uses {name} without importing namespace {space}", name, space, None)


def _may_use(module: ModuleFacts, space: str) -> bool:
    """Since Linux 6.16 `module:a,b*` names the modules that may use a symbol; only a last `*` is special."""
    if not space.startswith(_FOR_MODULES):
        return space in module.import_ns
    patterns = space[len(_FOR_MODULES) :].replace("-", "_").split(",")
    return any(
        module.name.startswith(pattern[:-1]) if pattern.endswith("*") else module.name == pattern
        for pattern in patterns
    )


def _imports(module: ModuleFacts, _: Surroundings) -> Iterable[Finding]:
    for space in module.import_ns:
        if space.startswith(_FOR_MODULES):
            yield Finding("namespace", f"imports {space!r}, which no module may", None, None, space)


def _licenses(module: ModuleFacts, around: Surroundings) -> Iterable[Finding]:
    used, providers = used_symbols(module, around.providers), around.providers
    gpl_only = [name for name in used if providers[name].gpl_only]
    proprietary = [name for name in used if providers[name].module in around.tainted]
    if not gpl_compatible(module):
        for name in gpl_only:
            message = f"has license {module.license!r} and uses {name}, which is for GPL modules only"
            yield Finding("gpl-only", message, name)
    elif gpl_only and proprietary:
        message = f"uses {proprietary[0]} of a proprietary module and GPL-only {gpl_only[0]}"
        yield Finding("gpl-only", message, gpl_only[0])


def _exports(module: ModuleFacts, around: Surroundings) -> Iterable[Finding]:
    """The kernel takes no second module of a name, no second symbol of a name, and none without a CRC."""
    if any(other.name == module.name for other in around.before):
        yield Finding("duplicate", "is in the set twice")
    for name, export in module.exports.items():
        other = _other_owner(name, module, around)
        if other is not None:
            yield Finding("duplicate", f"exports {name}, as {other} does", name)
        if around.target.modversions and export.crc is None:
            yield Finding("unversioned", f"exports {name} without saying which version", name)


def _other_owner(name: str, module: ModuleFacts, around: Surroundings) -> Optional[str]:
    owners = [other.name for other in around.before if name in other.exports]
    if name in around.target.symbols:
        owners.append(owner(around.target.symbols[name]))
    return next((other for other in owners if other != module.name), None)


def _dependencies(module: ModuleFacts, around: Surroundings) -> Iterable[Finding]:
    """modprobe loads what `depends` names: all that is used has to be in it, and all that is in it there."""
    stated = _stated(module)
    if module.name in _reached(module, around.modules):
        yield Finding("dependency", "depends on itself, at once or by way of others", module.name)
    used = {around.providers[name].module: name for name in used_symbols(module, around.providers)}
    for name in sorted(used.keys() - stated - {KERNEL}):
        message = f"uses {used[name]} of module {name}, on which it does not say to depend"
        yield Finding("dependency", message, name)
    outside = stated - used.keys() - {other.name for other in around.modules}
    in_tree = {owner(symbol) for symbol in around.target.symbols.values()} if outside else set()
    for name in sorted(outside - in_tree):
        message = f"depends on module {name}, which is in neither the set nor the kernel"
        yield Finding("dependency", message, name)


def _stated(module: ModuleFacts) -> set[str]:
    return {canonical_name(name) for name in module.depends}


def _reached(module: ModuleFacts, modules: Sequence[ModuleFacts]) -> set[str]:
    """The modules of the set that have to be loaded before `module`."""
    files = {other.name: other for other in modules}
    reached: set[str] = set()
    waiting = [module]
    while waiting:
        new = (_stated(waiting.pop()) & files.keys()) - reached
        reached |= new
        waiting += [files[name] for name in new]
    return reached


def _signature(module: ModuleFacts, around: Surroundings) -> Iterable[Finding]:
    signed = around.signed.get(module.name, UNKNOWN)
    why = against(module, signed, around.target.config, around.enforced)
    if why is not None:
        yield Finding("signature", why)
