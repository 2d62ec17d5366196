"""The initramfs of the VM: busybox, the few modules that the root file system needs, and an init script."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Dict, List

from .kit import KitKernel

NEEDED = ("virtio_pci", "9pnet_virtio", "9p", "overlay")
FOLDERS = ("bin", "dev", "lower", "modules", "new", "proc", "upper")


def write(path: Path, kernel: KitKernel, busybox: Path, init: str) -> None:
    """Write the archive. `init` is the text of /init; the modules are in /modules, named in their order."""
    if kernel.modules is None:
        raise ValueError(f"the kit has no modules of {kernel.release}")
    archive = b"".join(_entry(name, stat.S_IFDIR | 0o755) for name in FOLDERS)
    archive += _entry("bin/busybox", stat.S_IFREG | 0o755, busybox.read_bytes())
    archive += _entry("init", stat.S_IFREG | 0o755, init.encode())
    for number, module in enumerate(module_order(kernel.modules)):
        archive += _entry(f"modules/{number:02}.ko", stat.S_IFREG | 0o644, module.read_bytes())
    path.write_bytes(archive + _entry("TRAILER!!!", 0))


def module_order(folder: Path) -> List[Path]:
    """NEEDED with what they depend on, in the order of loading, from modules.dep (modules.dep(5))."""
    lines = [line.split(":") for line in (folder / "modules.dep").read_text().splitlines()]
    depends = {path: rest.split() for path, rest in lines}
    by_name = {Path(path).name.split(".")[0].replace("-", "_"): path for path in depends}
    order: Dict[str, None] = {}
    for name in NEEDED:
        order.update(dict.fromkeys([*reversed(depends[by_name[name]]), by_name[name]]))
    return [folder / path for path in order]


def _entry(name: str, mode: int, data: bytes = b"") -> bytes:
    """One file of a cpio archive of the format 'newc' (Documentation/driver-api/early-userspace)."""
    encoded = name.encode() + b"\0"
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    return head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4)
