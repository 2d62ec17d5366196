"""What the driver needs on this node beside its modules, and its undoing on every way out."""

from __future__ import annotations

from pathlib import Path
from typing import Optional, Protocol

import structlog
from attrs import define, frozen

from nvdriver_build.commands import Commands
from nvdriver_build.errors import NvdriverError
from nvdriver_build.loader.host import Host
from nvdriver_build.loader.parameters import Parameters
from nvdriver_build.loader.root import ModuleRoot
from nvdriver_build.userspace.daemons import Supervisor, refuse_nvlink5
from nvdriver_build.userspace.device_nodes import make_device_nodes, remove_device_nodes
from nvdriver_build.userspace.firmware import (
    clear_search_path,
    set_search_path,
    stage_firmware,
    unstage_firmware,
)
from nvdriver_build.userspace.rootfs import mount_root, unmount_root
from nvdriver_build.userspace.selinux import enforced, label_devices

NO_GSP = "NVreg_EnableGpuFirmware=0"
_log = structlog.get_logger()


class Userland(Protocol):
    """What `Node` asks for between its stages. Only `undo` and `clean` may be called at any time."""

    def require_supported(self) -> None:
        """UsageError for a node whose GPUs need more than there is here."""

    def before_load(self, parameters: Parameters) -> None:
        """Firmware, where the kernel will look for it."""

    def after_load(self, root: ModuleRoot) -> None:
        """Device files, daemons, root file system."""

    def down(self) -> tuple[str, ...]:
        """A sentence for each part that is down now. Called twice a second."""

    def undo(self) -> None:
        """Take away what uses the driver: daemons and root file system, whoever left them."""

    def clean(self) -> None:
        """Take away what is left once the driver is gone: device files, firmware, its path."""


@frozen
class Places:
    """Where the parts are. The image keeps its firmware where no mount of the operator's hides it."""

    driver_root: Path = Path("/run/nvidia/driver")
    firmware: Path = Path("/opt/lib/firmware")
    staged: Path = Path("/lib/firmware")
    modules: Path = Path("/lib/modules")

    @property
    def search_path(self) -> str:
        """Where the kernel looks for firmware: it reads in the host's mount namespace."""
        return str(self.driver_root / "lib/firmware")


@define
class NodeUserland:
    """The real one. `commands` end with the first signal; what is undone is undone by `leaving`."""

    host: Host
    commands: Commands
    leaving: Commands
    supervisor: Supervisor
    places: Places = Places()

    def require_supported(self) -> None:
        """See `Userland`."""
        refuse_nvlink5(self.host)

    def before_load(self, parameters: Parameters) -> None:
        """See `Userland`."""
        if NO_GSP in parameters.get("nvidia", ()):
            _log.info("no GSP firmware is wanted", parameter=NO_GSP)
            return
        copied = stage_firmware(self.places.firmware, self.places.staged)
        _warn(set_search_path(self.host.sys, self.places.search_path))
        _log.info("firmware is in place", copied=copied, search_path=self.places.search_path)

    def after_load(self, root: ModuleRoot) -> None:
        """See `Userland`."""
        made = make_device_nodes(self.host, self.commands)
        daemons = self.supervisor.start()
        _log.info("the driver's device files and daemons", made=made, daemons=daemons)
        if self._mounts:
            inside = root.path / "lib/modules" / root.release
            mount_root(
                self.places.driver_root,
                self.commands,
                self.host.proc,
                modules=(inside, self.places.modules / root.release),
            )
            if enforced(self.host.proc):
                _warn(label_devices(self.places.driver_root / "dev", self.commands))

    def down(self) -> tuple[str, ...]:
        """See `Userland`."""
        return self.supervisor.check()

    def undo(self) -> None:
        """See `Userland`."""
        self.supervisor.stop()
        if self._mounts:
            unmount_root(self.places.driver_root, self.leaving, self.host.proc)

    def clean(self) -> None:
        """See `Userland`."""
        remove_device_nodes(self.host)
        clear_search_path(self.host.sys, self.places.search_path)
        unstage_firmware(self.places.firmware, self.places.staged)

    @property
    def _mounts(self) -> bool:
        """A driver on the host itself has its root there already."""
        return self.places.driver_root != Path("/")


def _warn(sentence: Optional[str]) -> None:
    if sentence:
        _log.warning(sentence)


def undo_quietly(userland: Userland) -> None:
    """Undo on the way out after an error, which must not be hidden by another one."""
    try:
        userland.undo()
    except NvdriverError as error:
        _log.error("not undone", error=error.message, hint=error.hint)
