"""nvidia-peermem as a set of its own, built with the package's functions."""

from __future__ import annotations

from pathlib import Path

from vm.kit import KitKernel

from nvdriver_build.build import Build, build_modules
from nvdriver_build.commands import SystemCommands
from nvdriver_build.elf import ModuleFacts, read_module
from nvdriver_build.kernel import KernelTarget, find_compiler, find_headers, target_from_headers
from nvdriver_build.mofed import PEERMEM, Peers, find_mofed
from nvdriver_build.source import OPEN, open_source


def target_of(kernel: KitKernel) -> KernelTarget:
    """The kernel as its headers describe it."""
    return target_from_headers(find_headers(kernel.headers))


def build_peermem(source: Path, kernel: KitKernel, symvers: str, work: Path) -> ModuleFacts:
    """Build it in the new folder `work` against `symvers`; what its ELF says."""
    work.mkdir()
    commands, headers = SystemCommands(), find_headers(kernel.headers)
    target = target_from_headers(headers)
    build = Build(
        source=open_source(source, OPEN, work, commands),
        headers=headers,
        target=target,
        compiler=find_compiler(target, commands, allow_mismatch=False),
        modules=(PEERMEM,),
        jobs=2,
        symvers=symvers,
    )
    [module] = build_modules(build, work, commands, work / "log")
    return read_module(module)


def peers_of(mofed_root: Path, kernel: KitKernel, nvidia: Path) -> Peers:
    """MOFED in its root, and the nvidia.ko that will be loaded."""
    mofed = find_mofed(mofed_root, "x86_64", kernel.release)
    assert mofed is not None
    return Peers(mofed, read_module(nvidia))
