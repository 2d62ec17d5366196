"""What this node is: its kernel, what is there to build with, and whether the two belong together."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Callable, ContextManager, Optional

from attrs import frozen

from nvdriver_build.commands import CommandError, Commands
from nvdriver_build.config import Config
from nvdriver_build.errors import SourceError
from nvdriver_build.kernel import (
    Headers,
    KernelTarget,
    Proof,
    RunningKernel,
    Security,
    find_headers,
    prove,
    read_security,
    target_from_headers,
    target_from_modules,
)
from nvdriver_build.kernel.keyrings import read_keyrings
from nvdriver_build.kernel.target import has_symvers
from nvdriver_build.kernel.toolkit import RELEASE_FILE
from nvdriver_build.loader.host import Host
from nvdriver_build.signing import KernelTrust
from nvdriver_build.source import AUTO, OPEN, PROPRIETARY

Describe = Callable[[str], ContextManager[Headers]]
"""Gives what the toolkit beside us has on a kernel release, for a while: enough for a target, not a build."""
_INSTALLER = ("nvidia-installer", "--print-recommended-kernel-module-type")
_OWN = Proof("node", "read from the node's own module folder")


@frozen
class Kernel:
    """The running kernel and what modules for it need. `headers` is None on a node without a toolkit."""

    running: RunningKernel
    security: Security
    tree: Path
    headers: Optional[Headers]
    target: KernelTarget
    proof: Proof


def look(
    config: Config,
    host: Host,
    machine: str,
    root: Path = Path("/"),
    describe: Optional[Describe] = None,
) -> Kernel:
    """Find out which kernel runs and what it takes; `machine` is `uname -m`.

    The node's own word counts; `describe` is asked where it has none. Raises HeadersError where nothing
    describes the kernel, HeadersMismatch where the headers are of another.
    """
    running = RunningKernel.read(host.proc, machine)
    tree = module_tree(config, host, running.release)
    place = headers_place(config, tree, root)
    headers = find_headers(place, running.release) if place else None
    with contextlib.ExitStack() as stack:
        described = headers
        if headers is None and describe is not None and not has_symvers(tree):
            described = stack.enter_context(describe(running.release))
        if described is None:
            target, proof = target_from_modules(tree, running.release), _OWN
        else:
            target = target_from_headers(described)
            proof = prove(described, target, running, tree)
    return Kernel(running, read_security(host.sys), tree, headers, target, proof)


def kernel_trust(host: Host, commands: Commands) -> KernelTrust:
    """What the kernel that runs makes of signatures."""
    return KernelTrust(read_security(host.sys).enforces, read_keyrings(host.proc, commands))


def module_tree(config: Config, host: Host, release: str) -> Path:
    """The node's own /lib/modules/R: configured, or the host's where this container sees it, or ours."""
    return config.module_tree or host.lib_modules / release


def headers_place(config: Config, tree: Path, root: Path) -> Optional[Path]:
    """Where headers are: as configured, else in the toolkit that this is, else beside the modules."""
    if config.headers is not None:
        return config.headers
    if (root / RELEASE_FILE).exists():
        return root
    for build in (tree / "build", root / "lib/modules" / tree.name / "build"):
        if build.exists():
            return build
    return None


def module_kind(config: Config, commands: Commands) -> str:
    """`open`, `proprietary` or `auto`: as configured, else as NVIDIA's installer in this image recommends."""
    if config.kind != AUTO or commands.find(_INSTALLER[0]) is None:
        return config.kind
    try:
        word = commands.run(_INSTALLER, timeout=30).stdout.strip()
    except CommandError:
        return AUTO
    return word if word in (OPEN, PROPRIETARY) else AUTO


def source_place(config: Config) -> Path:
    """Where the driver source is: as configured, else where NVIDIA's container keeps it."""
    if config.source is not None:
        return config.source
    if config.driver_version is None:
        raise SourceError(
            "no driver source: neither NVDRIVER_SOURCE nor DRIVER_VERSION is set",
            hint="set NVDRIVER_SOURCE to NVIDIA's tree, or DRIVER_VERSION for /usr/src/nvidia-VERSION",
        )
    return Path("/usr/src") / f"nvidia-{config.driver_version}"
