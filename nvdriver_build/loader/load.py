"""Loads modules in order, and proves that the kernel has these very ones."""

from __future__ import annotations

import contextlib
import time
from typing import Iterable, Mapping

from attrs import frozen

from nvdriver_build.commands import CommandError, Commands, Finished
from nvdriver_build.errors import LoadError, NvdriverError
from nvdriver_build.loader.devices import claimants, nvidia_devices
from nvdriver_build.loader.diagnosis import Failure, diagnose, notices
from nvdriver_build.loader.host import LOAD_ORDER, Host, driver_modules, loaded_module, missing
from nvdriver_build.loader.kernel_log import Journal
from nvdriver_build.loader.patience import repeat_while
from nvdriver_build.loader.root import ModuleRoot
from nvdriver_build.loader.unload import remove_module, unload_order

TIMEOUT = 300.0
"""Seconds that one modprobe may take; `nvidia` probes every GPU of the node in it."""
_OTHERS = 30.0
"""Seconds to wait for somebody else's load or unload of the same module."""


@frozen
class LoadResult:
    """Seconds by module, 0 where it was there already, and what the kernel held against what it loaded."""

    seconds: Mapping[str, float]
    notices: tuple[str, ...]


def load(
    names: Iterable[str], root: ModuleRoot, commands: Commands, host: Host, journal: Journal
) -> LoadResult:
    """Load modules of `root`, by their canonical names, in NVIDIA's order; prove each live and of its build.

    Where one fails, an error by cause (`causes`), and what this call brought in is unloaded again.
    """
    before = set(driver_modules(host))
    said = list(_load_helpers(root, commands, host))
    seconds = {}
    try:
        for name in sorted(names, key=_position):
            started = time.monotonic()
            present = _present(name, host)
            said += () if present else _insert(name, root, commands, host, journal)
            seconds[name] = 0.0 if present else time.monotonic() - started
            _prove(name, root, host)
    except NvdriverError:
        _roll_back(before, commands, host)
        raise
    return LoadResult(seconds, tuple(said))


def _position(name: str) -> tuple[int, str]:
    return (LOAD_ORDER.index(name) if name in LOAD_ORDER else len(LOAD_ORDER), name)


def _load_helpers(root: ModuleRoot, commands: Commands, host: Host) -> tuple[str, ...]:
    """Load the optional in-tree modules; a sentence where that fails, since the driver works without."""
    names = [name for name in root.helpers if loaded_module(host, name) is None]
    if not names:
        return ()
    finished = _modprobe(root, commands, "-a", *names)
    return () if finished.ok else (f"optional modules ({', '.join(names)}): {finished.output.strip()}",)


def _present(name: str, host: Host) -> bool:
    module = loaded_module(host, name)
    return module is not None and module.live


def _insert(name: str, root: ModuleRoot, commands: Commands, host: Host, journal: Journal) -> tuple[str, ...]:
    with journal() as read:
        finished = repeat_while(_busy, _OTHERS, _modprobe, root, commands, name)
        log = read()
    claims = claimants(host)
    if finished.ok:
        return notices(name, log, claims)
    raise diagnose(Failure(name, finished.output, log, nvidia_devices(host), claims))


def _busy(finished: Finished) -> bool:
    """Somebody else loads or unloads the same module now (EBUSY, or EAGAIN of older kernels)."""
    return "Device or resource busy" in finished.output or "temporarily unavailable" in finished.output


def _modprobe(root: ModuleRoot, commands: Commands, *arguments: str) -> Finished:
    try:
        return commands.run(root.modprobe(*arguments), timeout=TIMEOUT)
    except CommandError as error:
        raise LoadError(f"modules not loaded: {error}", hint=error.hint) from error


def _prove(name: str, root: ModuleRoot, host: Host) -> None:
    lacking = missing(host, {name: root.build_ids[name]})
    if lacking:
        raise LoadError(
            f"the kernel does not have the module that was to be loaded: {lacking[0]}",
            hint="another driver was loaded before: unload it first",
        )


def _roll_back(before: set[str], commands: Commands, host: Host) -> None:
    """Unload what came since `before`, as far as it goes: the first failure is the one to tell."""
    came = {name: module for name, module in driver_modules(host).items() if name not in before}
    for name in unload_order(came):
        with contextlib.suppress(NvdriverError):
            remove_module(name, host, commands)
