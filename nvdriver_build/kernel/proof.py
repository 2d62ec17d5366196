"""Do these headers belong to the running kernel? A release string alone does not prove it.

Proofs, strongest first: the node's own symvers and config equal the headers'; the build's UTS_VERSION
equals `uname -v`; CRCs and vermagic of the node's in-tree modules agree with the headers.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Optional

from attrs import frozen

from nvdriver_build.elf import ModuleFacts, read_module
from nvdriver_build.errors import HeadersMismatch, ModuleFormatError
from nvdriver_build.kernel.config import parse_config, relevant
from nvdriver_build.kernel.headers import Headers
from nvdriver_build.kernel.running import RunningKernel
from nvdriver_build.kernel.target import KernelTarget, in_tree_modules, parse_symvers, read_node_symvers
from nvdriver_build.kernel.toolkit import RELEASE_FILE

_SAMPLES = 8
"""In-tree modules that are compared: each brings dozens of CRCs."""
_HINT = "use the headers, or the Driver Toolkit, of exactly the kernel that runs"


@frozen
class Proof:
    """`by` is `symvers`, `build`, `modules`, or `release` where nothing but the name could be compared."""

    by: str
    detail: str


def prove(headers: Headers, target: KernelTarget, running: RunningKernel, tree: Path) -> Proof:
    """Prove that `headers` belong to `running`, whose own module folder is `tree` (it may be absent).

    Raises HeadersMismatch, with both values, where something contradicts it.
    """
    if headers.release != running.release:
        raise HeadersMismatch(
            f"the headers at {headers.output} are of {headers.release}, this node runs {running.release}",
            hint=_HINT,
        )
    if target.arch != running.arch:
        raise HeadersMismatch(f"the headers are for {target.arch}, this node is {running.arch}", hint=_HINT)
    nodes_own = not _is_toolkits(tree)
    return (
        (_by_symvers(target, tree) if nodes_own else None)
        or _by_build(headers, running)
        or (_by_modules(target, tree) if nodes_own else None)
        or Proof("release", "only the release string could be compared")
    )


def _is_toolkits(tree: Path) -> bool:
    """Whether `tree` is a toolkit's own (usr/)lib/modules/R, which says nothing of the node."""
    modules = tree.absolute().parent
    roots = list(modules.parents)[1:3] if modules.parts[-2:] == ("lib", "modules") else []
    return any((root / RELEASE_FILE).exists() for root in roots)


def _by_symvers(target: KernelTarget, tree: Path) -> Optional[Proof]:
    symvers = read_node_symvers(tree)
    if symvers is None:
        return None
    there = parse_symvers(symvers, f"{tree}/symvers", target.modversions)
    for name, symbol in there.items():
        mine = target.symbols.get(name)
        if mine is None or mine.crc != symbol.crc:
            raise HeadersMismatch(
                f"symbol {name} has CRC {symbol.crc:#010x} in the node's symvers and "
                f"{f'{mine.crc:#010x}' if mine else 'is missing'} in {target.origin}/Module.symvers: "
                f"same release {target.release}, another build",
                hint=_HINT,
            )
    return Proof("symvers", f"{len(there)} exported symbols{_same_config(target, tree)} equal the node's own")


def _same_config(target: KernelTarget, tree: Path) -> str:
    try:
        text = (tree / "config").read_text(errors="replace")
    except OSError:
        return ""
    there, mine = relevant(parse_config(text)), relevant(target.config)
    for name in sorted({*there, *mine}):
        if there.get(name) != mine.get(name):
            raise HeadersMismatch(
                f"CONFIG_{name} is {there.get(name, 'not set')} in {tree}/config of the node and "
                f"{mine.get(name, 'not set')} in {target.origin}/.config: "
                f"same release {target.release}, another build",
                hint=_HINT,
            )
    return f" and {len(there)} settings"


def _by_build(headers: Headers, running: RunningKernel) -> Optional[Proof]:
    build = headers.uts_version
    if build is None:
        return None
    if build != running.version:
        raise HeadersMismatch(
            f"the headers' build is {build!r}, the running kernel's is {running.version!r}: "
            f"same release {running.release}, another build",
            hint=_HINT,
        )
    return Proof("build", f"UTS_VERSION equals uname -v: {running.version}")


def _by_modules(target: KernelTarget, tree: Path) -> Optional[Proof]:
    samples = itertools.islice(in_tree_modules(tree), _SAMPLES)
    facts = [fact for path in samples if (fact := _read(path))]
    for module in facts:
        _agree(module, target)
    crcs = sum(len(module.needed) for module in facts)
    if not crcs:
        return None
    return Proof("modules", f"vermagic and {crcs} CRCs of {len(facts)} in-tree modules agree")


def _read(path: Path) -> Optional[ModuleFacts]:
    try:
        return read_module(path, digest=False)
    except ModuleFormatError:
        return None


def _agree(module: ModuleFacts, target: KernelTarget) -> None:
    if module.vermagic != target.vermagic:
        raise HeadersMismatch(
            f"{module.path} of the node has vermagic {module.vermagic!r}, headers: {target.vermagic!r}",
            hint=_HINT,
        )
    for name, crc in module.needed.items():
        there = target.symbols.get(name)
        if there is None or there.crc != crc:
            raise HeadersMismatch(
                f"{module.path} of the node needs {name} with CRC {crc:#010x}, "
                f"headers: {f'{there.crc:#010x}' if there else 'no such symbol'}",
                hint=_HINT,
            )
