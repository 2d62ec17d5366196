"""The GPUs that PCI shows, and the drivers that have taken them.

Format: Documentation/ABI/testing/sysfs-bus-pci of the kernel; class codes: PCI Code and ID Assignment, 03h.
"""

from __future__ import annotations

from pathlib import Path
from typing import Optional

from attrs import frozen

from nvdriver_build.loader.host import DRIVER, Host, loaded_module

NVIDIA = "10de"
MELLANOX = "15b3"
RIVALS = ("nouveau", "nova_core", "nova_drm", "nvidiafb", "rivafb")
"""Modules of the kernel that drive NVIDIA GPUs and nothing else: loaded, they take a GPU when they can."""


@frozen
class PciDevice:
    """A PCI device; numbers in hex as `lspci -n` writes them, `driver` None where none is bound."""

    address: str
    vendor: str
    device: str
    pci_class: str
    driver: Optional[str]

    def __str__(self) -> str:
        return f"{self.address} ({self.vendor}:{self.device})"


@frozen
class Claim:
    """A driver that is in our way; `device` is the GPU it has, None where it is only loaded."""

    driver: str
    device: Optional[PciDevice]

    def __str__(self) -> str:
        return f"{self.device} is bound to {self.driver}" if self.device else f"{self.driver} is loaded"


def nvidia_devices(host: Host) -> tuple[PciDevice, ...]:
    """NVIDIA's display controllers (class 03xx): the GPUs, whether anything drives them or not."""
    devices = _pci_devices(host)
    return tuple(item for item in devices if item.vendor == NVIDIA and item.pci_class.startswith("03"))


def mellanox_present(host: Host) -> bool:
    """Whether there is a Mellanox device, which nvidia-peermem is for."""
    return any(item.vendor == MELLANOX for item in _pci_devices(host))


def claimants(host: Host) -> tuple[Claim, ...]:
    """Drivers other than ours that have a GPU (nouveau, vfio-pci, ...) or are loaded to take one."""
    bound = [Claim(item.driver, item) for item in nvidia_devices(host) if item.driver not in (None, DRIVER)]
    taken = {claim.driver for claim in bound}
    idle = [name for name in RIVALS if name not in taken and loaded_module(host, name)]
    return (*bound, *(Claim(name, None) for name in idle))


def _pci_devices(host: Host) -> tuple[PciDevice, ...]:
    found = (_device(folder) for folder in sorted((host.sys / "bus/pci/devices").glob("*")))
    return tuple(item for item in found if item is not None)


def _device(folder: Path) -> Optional[PciDevice]:
    try:
        vendor, device, pci_class = (_number(folder / name) for name in ("vendor", "device", "class"))
    except OSError:  # unplugged meanwhile
        return None
    return PciDevice(folder.name, vendor, device, pci_class, _driver(folder / "driver"))


def _number(path: Path) -> str:
    return path.read_text(encoding="ascii", errors="replace").strip().lower().replace("0x", "", 1)


def _driver(link: Path) -> Optional[str]:
    try:
        return Path(link.readlink()).name
    except OSError:
        return None
