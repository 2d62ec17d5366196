"""Who exports what a module needs, and which modules are proprietary."""

from __future__ import annotations

from typing import Collection, Mapping, NamedTuple, Optional, Sequence

from attrs import astuple

from nvdriver_build.elf import ModuleFacts, canonical_name
from nvdriver_build.kernel import KernelTarget, Symbol

KERNEL = "vmlinux"
_GPL_COMPATIBLE = (
    "GPL",
    "GPL v2",
    "GPL and additional rights",
    "Dual BSD/GPL",
    "Dual MIT/GPL",
    "Dual MPL/GPL",
)
"""Licenses that may use GPL-only symbols (kernel: include/linux/license.h)."""
_IGNORED = "_GLOBAL_OFFSET_TABLE_"
"""An undefined symbol that the kernel does not resolve on x86 (ignore_undef_symbol, since Linux 5.12)."""


class Provider(NamedTuple):
    """Who exports a symbol: the kernel, an in-tree module, or a module of the set."""

    module: str
    crc: Optional[int]
    gpl_only: bool
    namespace: Optional[str]


Providers = Mapping[str, Provider]
"""By symbol; what nobody exports is not there."""


def find_providers(module: ModuleFacts, target: KernelTarget, modules: Sequence[ModuleFacts]) -> Providers:
    """Who exports what `module` needs: the kernel itself, else the set, else an in-tree module.

    A module of the set stands for the in-tree one of its name.
    """
    found = {}
    names = {other.name for other in modules}
    others = [other for other in modules if other is not module]
    for name in wanted_symbols(module, target):
        symbol = target.symbols.get(name)
        own = next((other for other in others if name in other.exports), None)
        if own is not None and (symbol is None or symbol.module != KERNEL):
            found[name] = Provider(own.name, *astuple(own.exports[name]))
        elif symbol is not None and (symbol.module == KERNEL or owner(symbol) not in names):
            found[name] = Provider(owner(symbol), symbol.crc, symbol.gpl_only, symbol.namespace)
    return found


def wanted_symbols(module: ModuleFacts, target: KernelTarget) -> Sequence[str]:
    """What somebody has to export: with modversions module_layout too (kernel: check_modstruct_version)."""
    names = {*module.undefined, *module.weak, *module.needed}
    if target.modversions:
        names.add("module_layout")
    if module.machine == "x86_64":
        names.discard(_IGNORED)
    return sorted(names)


def used_symbols(module: ModuleFacts, providers: Providers) -> Sequence[str]:
    """What the kernel looks up for `module`, and somebody exports."""
    return sorted(name for name in (*module.undefined, *module.weak) if name in providers)


def owner(symbol: Symbol) -> str:
    """The canonical name of the module that a row of Module.symvers names, or `vmlinux`."""
    return canonical_name(symbol.module.rpartition("/")[2])


def gpl_compatible(module: ModuleFacts) -> bool:
    """Whether the module's license lets it use GPL-only symbols."""
    return module.license in _GPL_COMPATIBLE


def find_tainted(modules: Sequence[ModuleFacts], providers: Sequence[Providers]) -> Collection[str]:
    """The modules that are proprietary: by their license, or since they use one that is (inherit_taint)."""
    tainted = {module.name for module in modules if not gpl_compatible(module)}
    for _ in modules:
        tainted |= {
            module.name
            for module, mine in zip(modules, providers)
            if any(mine[name].module in tainted for name in used_symbols(module, mine))
        }
    return tainted
