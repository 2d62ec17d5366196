"""Takes the driver out of the kernel, holders first, or says who uses it.

Whether anybody uses it is looked at before anything is removed: a refusal leaves the driver whole for them.
"""

from __future__ import annotations

import re
from graphlib import TopologicalSorter
from typing import Mapping

from nvdriver_build.commands import CommandError, Commands, Finished
from nvdriver_build.errors import InUseError, LoadError
from nvdriver_build.loader.host import DRIVER, Host, LoadedModule, driver_modules, loaded_module
from nvdriver_build.loader.patience import repeat_while
from nvdriver_build.loader.processes import processes_holding

PATIENCE = 3.0
"""Seconds that a use may last before it counts: udev, a probe's nvidia-smi."""
SETTLE = 60.0
"""Seconds that a module's init or exit may take; `nvidia` needs several on a node with eight GPUs."""
_RMMOD_TIMEOUT = 120.0
_BUSY = re.compile(r"in use|busy|temporarily unavailable", re.IGNORECASE)
_FREE_HINT = "end these first: drain the node's GPU pods, stop the driver's daemons, unload the other modules"


def unload(host: Host, commands: Commands, *, patience: float = PATIENCE) -> tuple[str, ...]:
    """Unload the driver's modules and all that hold them; the names, in the order in which they went.

    InUseError, naming modules and processes, where it is in use for longer than `patience` seconds; LoadError
    where the kernel does not let a module go for another reason. Nothing is ever forced.
    """
    require_unused(host, patience=patience)
    order = unload_order(driver_modules(host))
    for name in order:
        remove_module(name, host, commands, patience=patience)
    return order


def unload_order(modules: Mapping[str, LoadedModule]) -> tuple[str, ...]:
    """Every module after all of its holders; `nvidia` after all others, since some hold it without a link."""
    holders = {name: set(module.holders) & set(modules) for name, module in sorted(modules.items())}
    if DRIVER in holders:
        holders[DRIVER] = set(modules) - {DRIVER}
    return tuple(TopologicalSorter(holders).static_order())


def require_unused(host: Host, *, patience: float = PATIENCE) -> None:
    """Return once only its own modules hold the driver; InUseError after `patience` seconds of other use."""
    repeat_while(bool, SETTLE, _unsettled, host)
    used = repeat_while(bool, patience, _used, host)
    if used:
        raise _in_use(used, host)


def _unsettled(host: Host) -> bool:
    return any(not module.live for module in driver_modules(host).values())


def _used(host: Host) -> tuple[str, ...]:
    modules = driver_modules(host)
    return tuple(name for name, module in modules.items() if _users(module, modules) > 0)


def _users(module: LoadedModule, modules: Mapping[str, LoadedModule]) -> int:
    """References that no module accounts for; a relative without a holder link may have one by symbol_get."""
    unlinked = set(modules) - _all_holders(module, modules) - {DRIVER} if module.name == DRIVER else ()
    return (module.refcount or 0) - len(module.holders) - len(unlinked)


def _all_holders(module: LoadedModule, modules: Mapping[str, LoadedModule]) -> set[str]:
    found = set(module.holders)
    for name in module.holders:
        if name in modules:
            found |= _all_holders(modules[name], modules)
    return found


def remove_module(name: str, host: Host, commands: Commands, *, patience: float = PATIENCE) -> None:
    """Remove one module; one that is gone already is fine. Raises as `unload` does."""
    finished = repeat_while(_busy, patience, _rmmod, name, host, commands)
    if finished.ok or loaded_module(host, name) is None:
        return
    if _busy(finished):
        raise _in_use((name,), host)
    raise LoadError(
        f"{name} was not unloaded: {finished.output.strip()}",
        hint="the container must be privileged (CAP_SYS_MODULE); `dmesg` may say more",
    )


def _busy(finished: Finished) -> bool:
    return not finished.ok and bool(_BUSY.search(finished.output))


def _rmmod(name: str, host: Host, commands: Commands) -> Finished:
    """Run rmmod, in /proc: it would take a file of the module's name where it stands, and there is none."""
    try:
        return commands.run(("rmmod", name), timeout=_RMMOD_TIMEOUT, cwd=host.proc)
    except CommandError as error:
        raise LoadError(f"{name} was not unloaded: {error}", hint=error.hint) from error


def _in_use(modules: tuple[str, ...], host: Host) -> InUseError:
    held = [f"{name}{_holding(name, host)}" for name in modules]
    processes = [str(holder) for holder in processes_holding(host)]
    by = ", ".join(processes) or "no process that is visible here (hostPID shows all), or the kernel itself"
    return InUseError(f"the driver is in use: {', '.join(held)}; by {by}", hint=_FREE_HINT)


def _holding(name: str, host: Host) -> str:
    module = loaded_module(host, name)
    if module is None:
        return ""
    modules = f", by module {', '.join(module.holders)}" if module.holders else ""
    return f" (references: {module.refcount}{modules})"
