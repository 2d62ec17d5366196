"""nvidia-peermem on a node: waits for MOFED, and keeps the module loaded from a container of its own.

MOFED says that it is ready by a file, RUN_MELLANOX/.driver-ready, or, where it is the host's own, by having
mlx5_core loaded (NVIDIA: rhel9/nvidia-driver, reload_nvidia_peermem). The container beside the driver's loads
nvidia-peermem from the driver's root file system, and again whenever an update of MOFED has unloaded it.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any, Callable, Mapping, Optional

import structlog
from attrs import define, field, frozen

from nvdriver_build.commands import Commands
from nvdriver_build.elf import ModuleFacts, read_module
from nvdriver_build.errors import FitError, HeadersError, LoadError
from nvdriver_build.loader.devices import mellanox_present
from nvdriver_build.loader.host import DRIVER, Host, loaded_module
from nvdriver_build.loader.kernel_log import Journal
from nvdriver_build.loader.load import load
from nvdriver_build.loader.root import ModuleRoot
from nvdriver_build.mofed import CLIENT_SYMBOLS, PEERMEM, Mofed, find_mofed
from nvdriver_build.readiness import Readiness

LIMIT = 900.0
"""Seconds that MOFED may take, whose container compiles too. The operator's startup probe gives us 1260."""
INTERVAL = 1.0
"""Seconds between two looks."""
REMIND = 60.0
"""Seconds after which it is said again what is waited for."""
MODULE = "nvidia_peermem"
_MOFED_HINT = (
    "the network operator's MOFED pod must run on this node, or MOFED be installed on the host and "
    "USE_HOST_MOFED=true; without RDMA set GPU_DIRECT_RDMA_ENABLED=false"
)
_REBUILD = "restart the driver's pod: it builds nvidia-peermem against the MOFED that is there now"
_log = structlog.get_logger()


@frozen
class MofedPlace:
    """Where MOFED shows itself: `root` is what its container mounts, `on_host` says that it is the host's."""

    host: Host
    root: Path = Path("/run/mellanox/drivers")
    on_host: bool = False

    def lacking(self) -> Optional[str]:
        """Why MOFED's modules cannot be counted on yet; None once they can."""
        if self.on_host:
            core = loaded_module(self.host, "mlx5_core")
            return None if core and core.live else "mlx5_core is not loaded"
        ready = self.root / ".driver-ready"
        return None if ready.exists() else f"{ready} is not there"

    def find(self, arch: str, release: str) -> Optional[Mofed]:
        """MOFED for this kernel, where its sources are mounted or, on_host, on the host; as `find_mofed`."""
        found = find_mofed(self.root, arch, release)
        if found is None and self.on_host:
            found = find_mofed(self.host.proc / "1/root", arch, release)
        return found


@frozen
class Patience:
    """How long to wait, and how: `stop` raises Stopped once a signal came."""

    stop: Callable[[], None]
    limit: float = LIMIT
    pause: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic

    def wait(self, lacking: Callable[[], Optional[str]]) -> Optional[str]:
        """Wait until `lacking` has nothing to say; what it says in the end, told every minute meanwhile."""
        started = told = self.clock()
        while (why := lacking()) is not None:
            now = self.clock()
            if now - started >= self.limit:
                return why
            if now == started or now - told >= REMIND:
                _log.info("waiting", lacking=why, seconds=round(now - started), limit=self.limit)
                told = now
            self.stop()
            self.pause(INTERVAL)
        return None


def wait_for_mofed(place: MofedPlace, arch: str, release: str, patience: Patience) -> Mofed:
    """MOFED, once its modules are there and what they export can be read.

    LoadError where it does not come up in time; as `find_mofed` where what is there stays of no use.
    """
    found: list[Mofed] = []
    errors: list[HeadersError] = []

    def lacking() -> Optional[str]:
        errors.clear()
        why = place.lacking()
        if why is not None:
            return why
        try:
            mofed = place.find(arch, release)
        except HeadersError as error:  # MOFED may be on its way to this kernel
            errors.append(error)
            return error.message
        found.extend([mofed] if mofed else [])
        return None if mofed else f"{place.root} has no usr/src/ofa_kernel for kernel {release}"

    why = patience.wait(lacking)
    if errors:
        raise errors[0]
    if why is not None:
        raise LoadError(f"MOFED was not ready after {patience.limit:g} s: {why}", hint=_MOFED_HINT)
    return found[0]


@frozen
class DriversRoot(ModuleRoot):
    """The module root of the driver's container, as it is seen inside `driver_root`."""

    driver_root: Path = Path("/run/nvidia/driver")

    def modprobe(self, *arguments: str) -> tuple[str, ...]:
        """modprobe of the driver's own container: it and its paths are those that loaded the driver."""
        return ("chroot", str(self.driver_root), *super().modprobe(*arguments))


@define
class Peermem:
    """Keeps nvidia-peermem loaded. `modules` is the module root, as paths are inside `driver_root`."""

    place: MofedPlace
    readiness: Readiness
    arch: str
    release: str
    commands: Commands
    journal: Journal
    patience: Patience
    driver_root: Path = Path("/run/nvidia/driver")
    modules: Path = Path("/run/nvdriver-build/modules")
    _told: Optional[Mapping[str, Any]] = field(init=False, default=None)

    def run(self) -> None:
        """Until a signal, which is raised as Stopped; LoadError or FitError where it cannot be loaded."""
        if not mellanox_present(self.place.host):
            _log.warning("no Mellanox device on this node: nvidia-peermem has nothing to do here")
        while True:
            self.patience.stop()
            if mellanox_present(self.place.host) and not _is_live(self.place.host, MODULE):
                self._load()
            self.patience.pause(INTERVAL)

    def _load(self) -> None:
        why = self.patience.wait(self._lacking)
        if why is not None:
            raise LoadError(
                f"nvidia-peermem was not loaded in {self.patience.limit:g} s: {why}", hint=_MOFED_HINT
            )
        left_out = self._left_out()
        if left_out is not None:
            self._tell(left_out)
            return
        facts = self._module()
        self._require_same_mofed(facts)
        root = DriversRoot(self.modules, self.release, {MODULE: facts.build_id}, (), self.driver_root)
        load((MODULE,), root, self.commands, self.place.host, self.journal)
        _log.info("nvidia-peermem is loaded", build_id=facts.build_id)

    def _lacking(self) -> Optional[str]:
        """modprobe would bring nvidia back: it has to be there, and the driver's container at peace."""
        if self._left_out() is not None:
            return None
        if not self.readiness.ctr_ready.exists():
            return f"the driver is not ready: {self.readiness.ctr_ready} is not there"
        if not _is_live(self.place.host, DRIVER):
            return f"{DRIVER} is not loaded"
        return self.place.lacking()

    def _left_out(self) -> Optional[Mapping[str, Any]]:
        """Why the driver came up without nvidia-peermem; None where it has it, or is not that far."""
        status = self.readiness.read_status()
        return status.peermem_error if status else None

    def _tell(self, error: Mapping[str, Any]) -> None:
        """Once: there is nothing to load until the driver's container has started anew."""
        if error != self._told:
            _log.warning("nothing to load", error=error["message"], hint=error["hint"])
            self._told = error

    def _module(self) -> ModuleFacts:
        folder = self.driver_root / self.modules.relative_to("/") / "lib/modules" / self.release / "updates"
        if not (folder / f"{PEERMEM}.ko").is_file():
            raise LoadError(
                f"the driver in {self.driver_root} has no nvidia-peermem for {self.release}",
                hint=f"GPU_DIRECT_RDMA_ENABLED must be true for the driver's container too; {_REBUILD}",
            )
        return read_module(folder / f"{PEERMEM}.ko", digest=False)

    def _require_same_mofed(self, facts: ModuleFacts) -> None:
        """Say it before the kernel does, where MOFED's exports can be read at all."""
        with contextlib.suppress(HeadersError):
            mofed = self.place.find(self.arch, self.release)
            if mofed is not None:
                _require_same(facts, mofed)


def _require_same(facts: ModuleFacts, mofed: Mofed) -> None:
    for name in CLIENT_SYMBOLS:
        there, wanted = mofed.symbols[name].crc, facts.needed.get(name)
        if wanted is not None and wanted != there:
            raise FitError(
                f"nvidia-peermem was built against another MOFED: it needs {name} with CRC {wanted:#010x}, "
                f"{mofed.origin} has {there:#010x}",
                hint=_REBUILD,
            )


def _is_live(host: Host, name: str) -> bool:
    module = loaded_module(host, name)
    return module is not None and module.live
