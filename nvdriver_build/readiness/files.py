"""The files in /run/nvidia, and the order in which they come and go.

    nvidia-driver.pid                     locked for life: one driver a node
    validations/.driver-daemons-status    NotReady before anything else, Ready after everything else
    validations/.driver-ctr-ready         by the startup probe; by us only after a loss that was mended
    validations/driver-ready              by us only where nobody validates
    nvdriver-build/driver-ready           a validator's, put aside until the driver is ready again
    nvidia-driver.state                   the configuration's digest while that driver is loaded
    nvdriver-build/loaded                 the digest of what is loaded: the set's key and its parameters
    nvdriver-build/status.json, heartbeat for `status` and `probe`

/run/nvidia is a tmpfs of the node, so nothing outlives a boot. A process that is killed leaves what it had
announced; the next one withdraws that before it does anything else. Each file is renamed into place whole;
only the pid file is written in place, under its lock, since a rename would make a second owner possible.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path
from typing import Iterator, Optional

from attrs import evolve, frozen

from nvdriver_build.errors import InUseError, UsageError
from nvdriver_build.files import publish
from nvdriver_build.readiness.status import Status, parse_status

READY = "Ready"
NOT_READY = "NotReady"
BEAT = 1.0
"""Seconds after which a heartbeat is written again."""


@frozen
class Features:
    """What `.driver-ctr-ready` says of the driver, as the operator's startup probe writes it."""

    gdrcopy: bool = False
    gds: bool = False
    rdma: bool = False

    def text(self) -> str:
        """The three lines."""
        gdrcopy, gds, rdma = (str(flag).lower() for flag in (self.gdrcopy, self.gds, self.rdma))
        return f"GDRCOPY_ENABLED: {gdrcopy}\nGDS_ENABLED: {gds}\nGPU_DIRECT_RDMA_ENABLED: {rdma}\n"


@frozen
class Readiness:
    """The files under `run_dir`. With `validates`, `driver-ready` is ours to write: nobody else validates.

    Whatever cannot be written is a UsageError: the folder must be a writable mount of the node's /run/nvidia.
    """

    run_dir: Path = Path("/run/nvidia")
    features: Features = Features()
    validates: bool = False
    driver_root: Path = Path("/run/nvidia/driver")

    @property
    def ctr_ready(self) -> Path:
        """The file by which the container's driver counts as ready."""
        return self.run_dir / "validations" / ".driver-ctr-ready"

    @property
    def daemons_status(self) -> Path:
        """The file that says Ready or NotReady."""
        return self.run_dir / "validations" / ".driver-daemons-status"

    @property
    def driver_ready(self) -> Path:
        """The file that the toolkit and the device plugin wait for."""
        return self.run_dir / "validations" / "driver-ready"

    @property
    def validated(self) -> Path:
        """Where what a validator wrote is kept while the driver is not ready."""
        return self.run_dir / "nvdriver-build" / "driver-ready"

    @property
    def state(self) -> Path:
        """The file with the digest of the configuration."""
        return self.run_dir / "nvidia-driver.state"

    @property
    def loaded(self) -> Path:
        """The file with the digest of what is loaded."""
        return self.run_dir / "nvdriver-build" / "loaded"

    @property
    def pid_file(self) -> Path:
        """The locked file with the owner's pid."""
        return self.run_dir / "nvidia-driver.pid"

    @property
    def status_file(self) -> Path:
        """The document for `status` and `probe`."""
        return self.run_dir / "nvdriver-build" / "status.json"

    @property
    def heartbeat(self) -> Path:
        """The monotonic clock, in seconds, when `run` was last seen to move."""
        return self.run_dir / "nvdriver-build" / "heartbeat"

    @property
    def announced(self) -> Optional[str]:
        """The word that is announced, or None."""
        return _read(self.daemons_status)

    @property
    def ready(self) -> bool:
        """Whether Ready is announced."""
        return self.announced == READY

    @contextlib.contextmanager
    def owned(self) -> Iterator[None]:
        """Be the node's one driver; InUseError naming the pid where another process is."""
        with _translated(self.pid_file):
            descriptor = _lock(self.pid_file)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                if _is_at(descriptor, self.pid_file):
                    self.pid_file.unlink()
            os.close(descriptor)

    def withdraw(self) -> bool:
        """Announce NotReady, then remove what says ready; whether `.driver-ctr-ready` was there."""
        was_ready = self.ctr_ready.exists()
        try:
            self._not_ready()
        finally:  # on a full disk nothing can be written, but still be removed
            with _translated(self.ctr_ready):
                self.ctr_ready.unlink(missing_ok=True)
                self._set_aside()
        return was_ready

    def _set_aside(self) -> None:
        """The operator's validator writes `driver-ready` once in its pod's life: it is kept for later."""
        with contextlib.suppress(OSError):  # there is none, or no space for the folder
            if not self.validates:
                self.validated.parent.mkdir(parents=True, exist_ok=True)
                self.driver_ready.replace(self.validated)
        self.driver_ready.unlink(missing_ok=True)

    def _put_back(self) -> None:
        if self.validated.is_file() and not self.driver_ready.exists():
            self.validated.replace(self.driver_ready)

    def withdraw_stale(self) -> None:
        """Let what a killed owner announced not outlive a start that comes to nothing; quiet on failure."""
        if self.ready or self.ctr_ready.exists():
            with contextlib.suppress(InUseError, UsageError), self.owned():
                self.clear()

    def _not_ready(self) -> None:
        """Where there is no space for a new file, over the old word: it is shorter, one write is whole."""
        try:
            self._write(self.daemons_status, NOT_READY + "\n")
        except UsageError as error:
            try:
                with self.daemons_status.open("r+b", buffering=0) as file:
                    file.write(f"{NOT_READY}\n".encode())
            except OSError:
                raise error from None

    def announce(self, status: Status, *, restore: bool = False) -> None:
        """Announce that every module is live, Ready last of all.

        `restore` writes `.driver-ctr-ready` too, after a loss: the startup probe, which wrote it first, runs
        no more after its first success.
        """
        if restore:
            self.write_ctr_ready()
        if self.validates:
            self._write(self.driver_ready, self._driver_ready_text())
        with _translated(self.driver_ready):
            self._put_back()
        self.write_status(evolve(status, ready=True))
        self._write(self.daemons_status, READY + "\n")

    def keep(self, digest: str, configured: Optional[str]) -> None:
        """Write down what is loaded: `digest` is ours, `configured` the operator's, which others read."""
        self._write(self.loaded, digest + "\n")
        self._write(self.state, (configured or digest) + "\n")

    def holds(self, digest: str, configured: Optional[str]) -> bool:
        """Whether what is loaded was written down with both of these digests."""
        return (_read(self.loaded), _read(self.state)) == (digest, configured or digest)

    def forget(self) -> None:
        """Drop the digests: the driver that they speak of is about to go."""
        with _translated(self.state):
            self.state.unlink(missing_ok=True)
            self.loaded.unlink(missing_ok=True)

    def clear(self) -> None:
        """Withdraw, and leave nothing on which a later driver could stumble; people keep status.json."""
        self.withdraw()
        with _translated(self.daemons_status):
            self.daemons_status.unlink(missing_ok=True)
            self.heartbeat.unlink(missing_ok=True)

    def write_ctr_ready(self) -> None:
        """Say that the container's driver works, and with which features: a validator waits for each."""
        status = self.read_status()
        rdma = self.features.rdma and not (status and status.peermem_error)
        self._write(self.ctr_ready, evolve(self.features, rdma=rdma).text())

    def write_status(self, status: Status) -> None:
        """Replace status.json."""
        self._write(self.status_file, status.text())

    def read_status(self) -> Optional[Status]:
        """The last status, or None where there is none. It is ready only while Ready is announced as well."""
        status = parse_status(_read(self.status_file) or "")
        return evolve(status, ready=status.ready and self.ready) if status else None

    def beat(self) -> None:
        """Show that this process moves; may be called at any rate, and never fails."""
        age = self.heartbeat_age()
        if age is None or not 0 <= age < BEAT:
            with contextlib.suppress(OSError):
                publish(self.heartbeat, f"{time.monotonic()}\n")

    def heartbeat_age(self) -> Optional[float]:
        """Seconds since the last heartbeat; None where there is none, negative if it is of another boot."""
        try:
            return time.monotonic() - float(_read(self.heartbeat) or "")
        except ValueError:
            return None

    def _driver_ready_text(self) -> str:
        """As the operator's validator writes it; the others mount the driver's root at /driver-root."""
        lines = {
            "IS_HOST_DRIVER": "false",
            "NVIDIA_DRIVER_ROOT": self.driver_root,
            "DRIVER_ROOT_CTR_PATH": "/driver-root",
            "NVIDIA_DEV_ROOT": self.driver_root,
            "DEV_ROOT_CTR_PATH": "/driver-root",
        }
        return "".join(f"{name}={value}\n" for name, value in lines.items())

    def _write(self, path: Path, text: str) -> None:
        with _translated(path):
            publish(path, text)


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written: {error.strerror}",
            hint="the node's /run/nvidia must be mounted here, writable (hostPath, Bidirectional)",
        ) from error


def _lock(path: Path) -> int:
    """The descriptor of the locked pid file; it tries again where a driver manager removes the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            pid = _read(path) or "unknown"
            raise InUseError(
                f"another driver runs on this node: process {pid} holds {path}",
                hint="wait until it has ended, or end it: only one driver can own the node's GPUs",
            ) from None
        if _is_at(descriptor, path):
            return descriptor
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _read(path: Path) -> Optional[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
