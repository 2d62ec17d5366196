"""What this machine has and what `run` would do on it. Changes nothing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Callable, Optional

from attrs import frozen

from nvdriver_build.build import measure
from nvdriver_build.commands import Commands
from nvdriver_build.config import Config
from nvdriver_build.errors import NvdriverError
from nvdriver_build.kernel import (
    RunningKernel,
    find_compiler,
    find_headers,
    read_security,
    target_from_headers,
)
from nvdriver_build.loader.devices import claimants, nvidia_devices
from nvdriver_build.loader.host import Host, driver_modules
from nvdriver_build.node.look import Kernel, look, source_place
from nvdriver_build.source import open_source
from nvdriver_build.store import Store

SPACE = 2 * 1024**3
"""Bytes that a build of the real source needs for a while: an unpacked source and its objects."""


@frozen
class Check:
    """A line of the report: `ok` is None where it is neither good nor bad, `code` is that of `run`."""

    name: str
    ok: Optional[bool]
    detail: str
    hint: Optional[str] = None
    code: Optional[int] = None


def examine(
    config: Config, host: Host, machine: str, commands: Commands, headers: Optional[Path] = None
) -> tuple[Check, ...]:
    """Look at everything that `run` needs; with `headers` at those instead of the configured ones."""
    if headers is not None:
        return (
            _running(host, machine),
            _gpu(host),
            _attempt("headers", lambda: _named_headers(headers, commands, config)),
            *_machine(config, host),
        )
    found = _attempt("headers", lambda: _headers(look(config, host, machine)))
    source = _attempt("source", lambda: _source(config, commands))
    checks = [_running(host, machine), _gpu(host), found, source]
    if found.ok:
        kernel = look(config, host, machine)
        if kernel.headers is not None:
            checks.append(_attempt("compiler", lambda: _compiler(kernel, commands, config)))
    return (*checks, *_machine(config, host))


def _machine(config: Config, host: Host) -> tuple[Check, ...]:
    return (_security(host), _loaded(host), _space(config), _capacity(config), _store(config))


def _attempt(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, True, check())
    except NvdriverError as error:
        return Check(name, False, error.message, error.hint, error.exit_code)


def _running(host: Host, machine: str) -> Check:
    running = RunningKernel.read(host.proc, machine)
    return Check("kernel", None, f"{running.release} {running.arch}, {running.version}")


def _headers(kernel: Kernel) -> str:
    return (
        f"{kernel.target.origin}: {kernel.target.flavour}, proof: {kernel.proof.by} ({kernel.proof.detail})"
    )


def _named_headers(place: Path, commands: Commands, config: Config) -> str:
    target = target_from_headers(find_headers(place))
    compiler = find_compiler(target, commands, allow_mismatch=config.compiler_mismatch)
    return f"{target.release} {target.arch} {target.flavour}, {len(target.symbols)} symbols; {compiler.text}"


def _source(config: Config, commands: Commands) -> str:
    place = source_place(config)
    if place.is_file():
        return f"{place}, which is unpacked first"
    source = open_source(place, config.kind, place, commands)
    return f"{place}: driver {source.version} ({source.kind})"


def _compiler(kernel: Kernel, commands: Commands, config: Config) -> str:
    compiler = find_compiler(kernel.target, commands, allow_mismatch=config.compiler_mismatch)
    same = (
        "the kernel's own version" if compiler.same else f"the kernel was built with {kernel.target.compiler}"
    )
    return f"{compiler.command}: {compiler.text}; {same}"


def _gpu(host: Host) -> Check:
    devices = nvidia_devices(host)
    claims = claimants(host)
    if not devices:
        return Check(
            "gpu", False, "no NVIDIA GPU on the PCI bus", "is it passed through to this machine?", 19
        )
    names = ", ".join(str(device) for device in devices)
    if not claims:
        return Check("gpu", True, names)
    detail = f"{names}; taken: {', '.join(str(claim) for claim in claims)}"
    hint = "unbind that driver, or keep it from loading"
    if sum(claim.device is not None for claim in claims) < len(devices):
        return Check("gpu", None, detail, hint)
    return Check("gpu", False, detail, hint, 15)


def _security(host: Host) -> Check:
    security = read_security(host.sys)
    words = [
        f"Secure Boot {_word(security.secure_boot)}",
        f"signatures enforced: {_word(security.sig_enforce)}",
        f"lockdown {security.lockdown or 'unknown'}",
    ]
    if security.enforces:
        hint = "the modules that are built here are not signed yet: switch it off, or use another node"
        return Check("security", False, ", ".join(words), hint, 14)
    return Check("security", None, ", ".join(words))


def _word(value: Optional[bool]) -> str:
    return {True: "on", False: "off", None: "unknown"}[value]


def _loaded(host: Host) -> Check:
    modules = driver_modules(host)
    names = ", ".join(f"{module.name} {module.version or ''}".strip() for module in modules.values())
    return Check("driver", None, f"loaded: {names}" if names else "none loaded")


def _space(config: Config) -> Check:
    place = _existing(config.store)
    free = shutil.disk_usage(place).free
    detail = f"{free / 2**30:.1f} GiB free for the store {config.store}"
    return Check(
        "space", free >= SPACE, detail, None if free >= SPACE else "a build needs about 2 GiB for a while"
    )


def _capacity(config: Config) -> Check:
    capacity = measure()
    memory = "unknown" if capacity.memory is None else f"{capacity.memory / 2**30:.1f} GiB"
    quota = "none" if capacity.quota is None else f"{capacity.quota:g}"
    jobs = config.jobs or capacity.jobs(config.job_memory)
    return Check("jobs", None, f"{jobs} at once ({capacity.cpus} processors, quota {quota}, memory {memory})")


def _store(config: Config) -> Check:
    entries = Store(config.store).entries()
    damaged = sum(entry.problem is not None for entry in entries)
    hint = "they are dropped when they are needed; 'store verify' says why" if damaged else None
    return Check("store", damaged == 0, f"{len(entries)} sets in {config.store}, {damaged} damaged", hint)


def _existing(path: Path) -> Path:
    return next(place for place in (path, *path.parents) if place.exists())
