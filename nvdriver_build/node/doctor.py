"""What this machine has and what `run` would do on it. Changes nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Callable, Optional, Sequence, Union

from attrs import frozen

from nvdriver_build.build import measure
from nvdriver_build.commands import Commands
from nvdriver_build.config import Config
from nvdriver_build.errors import BuildError, LoadError, NvdriverError, SigningError, StoreError
from nvdriver_build.kernel import (
    RunningKernel,
    find_compiler,
    find_headers,
    read_security,
    target_from_headers,
)
from nvdriver_build.loader.devices import claimants, nvidia_devices
from nvdriver_build.loader.host import Host, driver_modules
from nvdriver_build.loader.parameters import read_parameters
from nvdriver_build.node.getting import require_version
from nvdriver_build.node.look import Kernel, kernel_trust, look, source_place
from nvdriver_build.node.stores import outside, trust
from nvdriver_build.obtain import UNENFORCED
from nvdriver_build.signing import ENROLL, TRUST_HINT, read_identity, who
from nvdriver_build.source import check_archive, open_source
from nvdriver_build.store import Store
from nvdriver_build.toolkit import Shared

SPACE = 2 * 1024**3
"""Bytes that a build of the real source needs for a while: an unpacked source and its objects."""
_NO_KEY = "0" * 64
"""The key of no set: whether a registry answers at all."""
_BUILD_TOOLS = ("make", "strip")
_LOAD_TOOLS = ("depmod", "modprobe", "rmmod")


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
    """Look at everything that `run` needs, in its order; with `headers` at those, without a source."""
    checks = [_running(host, machine), _gpu(host)]
    if headers is not None:
        checks.append(_attempt("headers", lambda: _named_headers(headers, commands, config)))
    else:
        checks.append(_attempt("headers", lambda: _headers(look(config, host, machine))))
        checks.append(_attempt("source", lambda: _source(config, commands)))
    checks += [_attempt("store", lambda: _store(config)), _registry(config, commands)]
    checks += [_attempt("security", lambda: _security(config, host, commands))]
    if headers is None and checks[2].ok:
        checks += _compilers(look(config, host, machine), commands, config)
    return (
        *checks,
        _builder(config, commands),
        _attempt("space", lambda: _space(config)),
        _capacity(config),
        _loaded(host),
        _attempt("params", lambda: _parameters(config)),
        _programs("kmod", _LOAD_TOOLS, "install kmod", LoadError.exit_code, commands),
    )


def _attempt(name: str, check: Callable[[], Union[str, Check]]) -> Check:
    try:
        found = check()
        return found if isinstance(found, Check) else Check(name, True, found)
    except NvdriverError as error:
        return Check(name, False, error.message, error.hint, error.exit_code)
    except OSError as error:  # as the edge tells it where `run` meets it
        return Check(name, False, str(error), "is that the name, and may this user read there?", 2)


def _programs(name: str, wanted: Sequence[str], hint: str, code: int, commands: Commands) -> Check:
    missing = [program for program in wanted if commands.find(program) is None]
    if missing:
        return Check(name, False, f"not on PATH: {', '.join(missing)}", hint, code)
    return Check(name, True, ", ".join(wanted))


def _builder(config: Config, commands: Commands) -> Check:
    """What builds: the programs here, or the toolkit beside us."""
    if config.toolkit_dir is None:
        hint = "install make and binutils"
        return _programs("tools", _BUILD_TOOLS, hint, BuildError.exit_code, commands)
    if config.image_missing:
        return Check("toolkit", None, "the cluster has no image of it for this node: only the store serves")
    return _attempt("toolkit", lambda: _toolkit(Shared(config.toolkit_dir or Path("/"))))


def _toolkit(shared: Shared) -> Check:
    told = shared.introduced()
    if told is None:
        return Check("toolkit", None, f"has not said anything in {shared.root} yet")
    kernels = ", ".join(f"{release} ({flavour})" for release, flavour in (told.installed or {}).items())
    return Check(
        "toolkit", True, f"RHEL {told.rhel or 'unknown'}; kernels: {kernels or 'none'}; {told.compiler}"
    )


def _parameters(config: Config) -> str:
    given = read_parameters(config.parameters)
    counts = ", ".join(f"{len(tokens)} of {module}" for module, tokens in given.items())
    return f"{counts or 'none'} in {config.parameters}"


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
        check_archive(place, config.run_sha256)
        return f"{place}, which is unpacked first"
    source = open_source(place, config.kind, place, commands)
    require_version(config, source, place)
    return f"{place}: driver {source.version} ({source.kind})"


def _compilers(kernel: Kernel, commands: Commands, config: Config) -> list[Check]:
    if kernel.headers is None:
        return []
    return [_attempt("compiler", lambda: _compiler(kernel, commands, config))]


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


def _security(config: Config, host: Host, commands: Commands) -> Check:
    security, kernel = read_security(host.sys), kernel_trust(host, commands)
    own = read_identity(config.sign_key, config.sign_cert, config.sign_pin_file).certificate
    others = trust(config).certificates
    signers = (own,) if own else others if config.registry else ()
    held = [kernel.holds(each) for each in signers]
    words = [
        f"Secure Boot {_word(security.secure_boot)}",
        f"signatures enforced: {_word(security.sig_enforce)}",
        f"lockdown {security.lockdown or 'unknown'}",
        *(f"{_TRUSTED[known]} {who(each)}" for known, each in zip(held, signers)),
    ]
    if own is not None:
        words += [] if config.sign_key else ["no key here: sets that it signed are taken from the store"]
    elif signers:
        words.append("sets that one of these signed are taken from the registry")
    detail, code = ", ".join(words), SigningError.exit_code
    if kernel.enforced and True in held:  # one of them will do
        return Check("security", True, detail)
    if not kernel.enforced or None in held:
        return Check("security", None, detail)
    return Check("security", False, detail, ENROLL if signers else UNENFORCED, code)


_TRUSTED = {True: "trusts", False: "does not trust", None: "it is not known whether the kernel trusts"}


def _word(value: Optional[bool]) -> str:
    return {True: "on", False: "off", None: "unknown"}[value]


def _loaded(host: Host) -> Check:
    modules = driver_modules(host)
    names = ", ".join(f"{module.name} {module.version or ''}".strip() for module in modules.values())
    return Check("driver", None, f"loaded: {names}" if names else "none loaded")


def _space(config: Config) -> Check:
    place = _existing(config.store)
    if not os.access(place, os.W_OK):
        detail = f"{place} cannot be written to, for the store {config.store}"
        hint = "run as root, or let NVDRIVER_STORE name another place"
        return Check("space", False, detail, hint, StoreError.exit_code)
    free = shutil.disk_usage(place).free
    detail = f"{free / 2**30:.1f} GiB free for the store {config.store}"
    if free < SPACE:
        return Check("space", False, detail, "a build needs about 2 GiB for a while", BuildError.exit_code)
    return Check("space", True, detail)


def _capacity(config: Config) -> Check:
    capacity = measure()
    memory = "unknown" if capacity.memory is None else f"{capacity.memory / 2**30:.1f} GiB"
    quota = "none" if capacity.quota is None else f"{capacity.quota:g}"
    jobs = config.jobs or capacity.jobs(config.job_memory)
    return Check("jobs", None, f"{jobs} at once ({capacity.cpus} processors, quota {quota}, memory {memory})")


def _store(config: Config) -> Check:
    entries = Store(config.store).entries()
    unread = sum(entry.unread for entry in entries)
    damaged = sum(entry.problem is not None for entry in entries) - unread
    detail = f"{len(entries)} sets in {config.store}, {damaged} damaged"
    if unread:
        return Check("store", None, f"{detail}, {unread} that cannot be read now", "'store verify' says why")
    if damaged:
        return Check("store", None, detail, "they are dropped when they are needed; 'store verify' says why")
    return Check("store", True, detail)


def _registry(config: Config, commands: Commands) -> Check:
    """Whether others can serve this node; where not, `run` goes on without them."""
    try:
        place = outside(config, commands)
        if place is None:
            return Check("registry", None, "none: what is built here stays here")
        if not place.trust.certificates:
            return Check("registry", None, f"{place.remote} is not asked: nobody is trusted", TRUST_HINT)
        place.remote.offer(_NO_KEY)
        trusted = ", ".join(each.subject for each in place.trust.certificates)
        return Check("registry", True, f"{place.remote}, for sets signed by {trusted}")
    except StoreError as error:
        return Check("registry", None, error.message, error.hint)
    except NvdriverError as error:
        return Check("registry", False, error.message, error.hint, error.exit_code)


def _existing(path: Path) -> Path:
    return next(place for place in (path, *path.parents) if place.exists())
