"""What the kernel has loaded, read from /sys/module.

Formats: Documentation/ABI/testing/sysfs-module and kernel/module/sysfs.c of the kernel. Only a module that
was loaded, not one that is built in, has `initstate` (`coming`, `live`, `going`).
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Mapping, Optional

from attrs import frozen

DRIVER = "nvidia"
"""The module that all others of the driver hold."""
LOAD_ORDER = (DRIVER, "nvidia_uvm", "nvidia_modeset", "nvidia_drm", "nvidia_peermem")
"""NVIDIA's modules in the order in which their own container loads them."""
RELATIVES = frozenset(LOAD_ORDER) | {"nvidia_fs", "nvidia_vgpu_vfio", "gdrdrv", "nv_peer_mem"}
"""Modules of the driver even where /sys shows no holder link: some take `nvidia` by symbol_get."""

_NOTE = struct.Struct("=III4s")
_NT_GNU_BUILD_ID = 3


@frozen
class Host:
    """Where the node's kernel shows itself; in a container `lib_modules` is the host's, by /proc/1/root."""

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    dev: Path = Path("/dev")
    lib_modules: Path = Path("/lib/modules")


@frozen
class LoadedModule:
    """A module in the kernel. `refcount` is None where the kernel cannot unload modules at all."""

    name: str
    state: str
    refcount: Optional[int]
    holders: tuple[str, ...]
    build_id: Optional[str]
    version: Optional[str]
    srcversion: Optional[str]

    @property
    def live(self) -> bool:
        """Whether its init has succeeded and its exit has not begun."""
        return self.state == "live"


def loaded(host: Host) -> Mapping[str, LoadedModule]:
    """All modules that are loaded, by name. Built-in ones are left out."""
    folder = host.sys / "module"
    names = sorted(path.parent.name for path in folder.glob("*/initstate"))
    found = (loaded_module(host, name) for name in names)
    return {module.name: module for module in found if module is not None}


def loaded_module(host: Host, name: str) -> Optional[LoadedModule]:
    """One module as the kernel has it, or None where it is not loaded."""
    folder = host.sys / "module" / name
    state = _text(folder / "initstate")
    if state is None:
        return None
    refcount = _text(folder / "refcnt")
    return LoadedModule(
        name=name,
        state=state,
        refcount=int(refcount) if refcount else None,
        holders=tuple(sorted(path.name for path in folder.glob("holders/*"))),
        build_id=_build_id(folder),
        version=_text(folder / "version"),
        srcversion=_text(folder / "srcversion"),
    )


def driver_modules(host: Host) -> Mapping[str, LoadedModule]:
    """The loaded modules of an NVIDIA driver: its own, and all that hold one of them, directly or not."""
    modules = loaded(host)
    members: set[str] = set()
    found = {name for name in modules if name in RELATIVES}
    while found:
        members |= found
        found = {holder for name in found for holder in modules[name].holders if holder in modules} - members
    return {name: modules[name] for name in sorted(members)}


def missing(host: Host, expected: Mapping[str, Optional[str]]) -> tuple[str, ...]:
    """What the kernel lacks of `expected` (name to build id), a sentence each; empty means all is well.

    A build id of None asks only that the module is live. Reads two small files a module.
    """
    findings = (_finding(host.sys / "module" / name, name, wanted) for name, wanted in expected.items())
    return tuple(finding for finding in findings if finding is not None)


def _finding(folder: Path, name: str, wanted: Optional[str]) -> Optional[str]:
    state = _text(folder / "initstate")
    if state is None:
        return f"{name} is not loaded"
    if state != "live":
        return f"{name} is {state}, not live"
    if wanted is None:
        return None
    found = _build_id(folder)
    return None if found == wanted else f"{name} is of another build: wanted {wanted}, loaded is {found}"


def _text(path: Path) -> Optional[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:  # the module went meanwhile, or the parameter is not for reading
        return None


def _build_id(folder: Path) -> Optional[str]:
    """The build id in hex, from the note that the kernel keeps of the file it loaded (elf(5), Nhdr)."""
    try:
        note = (folder / "notes" / ".note.gnu.build-id").read_bytes()
        _, size, kind, _ = _NOTE.unpack_from(note)
    except (OSError, struct.error):
        return None
    value = note[_NOTE.size : _NOTE.size + size]
    return value.hex() if kind == _NT_GNU_BUILD_ID and value else None
