"""The kernel's loader of modules, as far as it refuses: written after kernel/module/main.c, not after `fit`.

`load` does what modprobe and the kernel would do with a set; it is the measure for `check_fit`.
"""

from __future__ import annotations

import random
from typing import Dict, Mapping, Optional, Sequence, Tuple

from attrs import define, frozen

from nvdriver_build.elf import ModuleFacts
from nvdriver_build.kernel import KernelTarget

GPL = ("GPL", "GPL v2", "GPL and additional rights", "Dual BSD/GPL", "Dual MIT/GPL", "Dual MPL/GPL")
MACHINES = {"x86_64": "x86_64", "arm64": "arm64"}


class Refused(Exception):
    """modprobe or the kernel says no."""


@frozen
class _Exported:
    crc: Optional[int]
    gpl_only: bool
    namespace: Optional[str]


@define
class _Loaded:
    """struct module: its exports, and TAINT_PROPRIETARY_MODULE of its taints."""

    exports: Mapping[str, _Exported]
    proprietary: bool = False
    using_gplonly_symbols: bool = False


class Loader:
    """A kernel that runs, with its loaded modules; `shuffle` gives the order of symbol tables."""

    def __init__(self, target: KernelTarget, shuffle: random.Random, *, enforced: bool = False) -> None:
        self.target, self.shuffle, self.enforced = target, shuffle, enforced
        self.loaded: Dict[str, _Loaded] = {}
        self.vmlinux = self._rows("vmlinux")

    def load(self, modules: Sequence[ModuleFacts]) -> None:
        """modprobe each; raises Refused."""
        for module in modules:
            if module.name not in self.loaded:
                self._modprobe(module, {other.name: other for other in modules}, ())

    def _modprobe(
        self, module: ModuleFacts, files: Mapping[str, ModuleFacts], above: Tuple[str, ...]
    ) -> None:
        if module.name in above:
            raise Refused("a cycle of dependencies")
        for text in module.depends:
            name = text.replace("-", "_")
            if name in self.loaded:
                continue
            if name in files:
                self._modprobe(files[name], files, (*above, module.name))
            else:
                self._load_in_tree(name)
        self._init_module(module)

    def _load_in_tree(self, name: str) -> None:
        rows = self._rows(name)
        if not rows:
            raise Refused(f"no module {name}")
        if any(self._find(symbol) for symbol in rows):
            raise Refused("exports duplicate symbol")
        self.loaded[name] = _Loaded(rows)

    def _rows(self, owner: str) -> Mapping[str, _Exported]:
        return {
            name: _Exported(row.crc, row.gpl_only, row.namespace)
            for name, row in self.target.symbols.items()
            if row.module.split("/")[-1].replace("-", "_") == owner
        }

    def _init_module(self, module: ModuleFacts) -> None:
        """load_module(), in its order."""
        if self.enforced and module.signature is None:
            raise Refused("Loading of unsigned module is rejected")
        if (module.machine, module.bits, module.byteorder) != (MACHINES[self.target.arch], 64, "little"):
            raise Refused("Exec format error")
        self._check_modinfo(module)
        if module.name in self.loaded:
            raise Refused("File exists")
        me = _Loaded({name: _Exported(x.crc, x.gpl_only, x.namespace) for name, x in module.exports.items()})
        me.proprietary = module.license not in GPL
        if self.target.modversions:
            self._check_version("module_layout", self.vmlinux["module_layout"], module)
            if any(exported.crc is None for exported in me.exports.values()):
                raise Refused("no versions for exported symbols")
        table = [*module.undefined, *module.weak]
        for symbol in self.shuffle.sample(table, k=len(table)):
            self._resolve(symbol, module, me)
        if any(self._find(symbol) for symbol in me.exports):
            raise Refused("exports duplicate symbol")
        self._parse_btf(module)
        self.loaded[module.name] = me

    def _check_modinfo(self, module: ModuleFacts) -> None:
        mine, theirs = module.vermagic, self.target.vermagic
        if mine is None:
            raise Refused("no version magic")
        if self.target.modversions and module.needed:  # has_crcs of same_magic()
            mine, theirs = (text[text.index(" ") :] if " " in text else "" for text in (mine, theirs))
        if mine != theirs:
            raise Refused("version magic should be another")
        if any(space.startswith("module:") for space in module.import_ns):
            raise Refused("tries to import module namespace")

    def _find(self, symbol: str) -> Optional[Tuple[Optional[str], _Exported]]:
        if symbol in self.vmlinux:
            return None, self.vmlinux[symbol]
        return next(((n, m.exports[symbol]) for n, m in self.loaded.items() if symbol in m.exports), None)

    def _resolve(self, symbol: str, module: ModuleFacts, me: _Loaded) -> None:
        if module.machine == "x86_64" and symbol == "_GLOBAL_OFFSET_TABLE_":
            return
        found = self._find(symbol)
        if found is None or (found[1].gpl_only and me.proprietary):
            if symbol not in module.weak:
                raise Refused(f"Unknown symbol {symbol}")
            return
        owner, exported = found
        me.using_gplonly_symbols |= exported.gpl_only
        self._inherit_taint(me, owner)
        self._check_version(symbol, exported, module)
        self._check_namespace(exported, module)

    def _inherit_taint(self, me: _Loaded, owner: Optional[str]) -> None:
        if owner is None or not self.loaded[owner].proprietary:
            return
        if me.using_gplonly_symbols:
            raise Refused("module using GPL-only symbols uses symbols from proprietary module")
        me.proprietary = True

    def _check_version(self, symbol: str, exported: _Exported, module: ModuleFacts) -> None:
        if not self.target.modversions or exported.crc is None:
            return
        if not module.needed:
            raise Refused("no versions at all; modprobe --force does this")
        if symbol in module.needed and module.needed[symbol] != exported.crc:
            raise Refused(f"disagrees about version of symbol {symbol}")

    def _check_namespace(self, exported: _Exported, module: ModuleFacts) -> None:
        space = exported.namespace
        if not space or self.target.config.get("MODULE_ALLOW_MISSING_NAMESPACE_IMPORTS") == "y":
            return
        if not self._verify_module_namespace(space, module.name) and space not in module.import_ns:
            raise Refused(f"module uses symbol from namespace {space}, but does not import it")

    @staticmethod
    def _verify_module_namespace(space: str, name: str) -> bool:
        if not space.startswith("module:"):
            return False
        for part in space[len("module:") :].split(","):
            glob = part.endswith("*")
            text = (part[:-1] if glob else part).replace("-", "_")
            if name[: len(text)] == text and (glob or len(text) == len(name)) and (part or glob):
                return True
        return False

    def _parse_btf(self, module: ModuleFacts) -> None:
        """Type information is understood by the kernel alone that the module was built for."""
        config = self.target.config
        read = config.get("DEBUG_INFO_BTF_MODULES") == "y"
        forgiven = config.get("MODULE_ALLOW_BTF_MISMATCH") == "y"
        if (
            module.btf
            and read
            and not forgiven
            and (module.vermagic or "").split(" ")[0] != self.target.release
        ):
            raise Refused("failed to validate module BTF")
