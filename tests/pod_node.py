"""A node as the containers of the pod see it: folders that stand for the host's, and a faked kernel.

This machine is not the node: it runs another kernel, which takes no modules, and it has no GPU. What only the
kernel of a node would answer is bound over the container's own /proc and /sys by `WRAPPER`, before the
operator's command begins. Everything else is real.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Iterator, List, Optional, Tuple

from attrs import frozen
from fake_host import MODPROBE, RMMOD, build_id_note
from pod_scripts import PROBE, TRAP, WRAPPER
from vm.kit import KitKernel

from nvdriver_build.elf import read_module

SHARED = "/mnt/shared-nvidia-driver-toolkit"
STORE = "/var/lib/nvdriver-build"
GPU = {"vendor": "0x10de", "device": "0x2330", "class": "0x030200"}
TRAPS = ["dnf", "yum", "microdnf", "rpm", "apt", "apt-get", "subscription-manager", "curl", "wget"]
ENTITLEMENT = ("/etc/pki/entitlement", "/run/secrets/etc-pki-entitlement")
_PLANNED = "until [ -e /rig/planned ]; do sleep 0.02; done"
FOLDERS = ("run", "fabricmanager", "topologyd", "var-log", "mellanox/usr/src", "store", "rig/pci", "rig/bin")


@frozen
class PodNode:
    """The host's side of the mounts, below `folder`. `run` is its /run/nvidia, shared while in use."""

    folder: Path
    release: str

    @classmethod
    def make(cls, folder: Path, kernel: KitKernel, trees: Optional[Path] = None) -> PodNode:
        """A node that runs `kernel`, with one GPU and nothing in its store.

        `trees` has the kernel's module folder, where others have laid it out.
        """
        node = cls(folder, kernel.release)
        for name in FOLDERS:
            (folder / name).mkdir(parents=True)
        (folder / "dev-log").touch()
        (folder / "os-release").write_text('ID="rhcos"\nVERSION_ID="4.16"\n')
        (folder / "firmware-path").write_text("\n")
        _fake_kernel(folder / "rig", kernel)
        _lay_traps(folder)
        node.clear_traps()
        if trees is None:
            lay_out_module_tree(kernel, node.modules)
        else:
            node.modules.parent.parent.mkdir()
            node.modules.parent.symlink_to(trees)
        return node

    @classmethod
    @contextlib.contextmanager
    def used(cls, folder: Path, kernel: KitKernel) -> Iterator[PodNode]:
        """A node whose /run/nvidia is a shared mount, as a node's is; nothing of it is left afterwards."""
        node = cls.make(folder, kernel)
        try:
            node.share()
            yield node
        finally:
            node.unshare()
            remove(folder)

    def takes(self, module_set: Path) -> None:
        """From now on the node's kernel takes the modules of this set, and lets them go.

        /sys/module is a folder that all containers see; modprobe and rmmod, first on PATH, act on it.
        """
        self.takes_later()
        self.plan(module_set)

    def takes_later(self) -> None:
        """The same, for a set that `plan` will name: until then modprobe waits."""
        words = {"log": "/rig/loads", "plan": "/rig/plan", "modules": "/sys/module"}
        waits = MODPROBE.replace("\n", f"\n{_PLANNED}\n", 1)
        for name, program in (("modprobe", waits), ("rmmod", RMMOD)):
            (self.rig / "bin" / name).write_text(program.format(**words))
            (self.rig / "bin" / name).chmod(0o755)
        (self.rig / "module/firmware_class/parameters").mkdir(parents=True)
        (self.rig / "module/firmware_class/parameters/path").write_text("\n")

    def plan(self, module_set: Path) -> None:
        """The set that the node's kernel takes."""
        for path in module_set.glob("*.ko"):
            facts = read_module(path)
            _module(self.rig / "plan" / facts.name, facts.build_id or "")
        (self.rig / "planned").touch()

    def has(self, name: str, build_id: str) -> None:
        """Another driver's module is loaded."""
        _module(self.rig / "module" / name, build_id)

    @property
    def loads(self) -> List[str]:
        """What modprobe and rmmod were asked, a word and a name each."""
        log = self.rig / "loads"
        lines = log.read_text().splitlines() if log.exists() else []
        return [f"{words[0]} {words[-1]}" for words in map(str.split, lines) if "-a" not in words]

    @property
    def modules_loaded(self) -> List[str]:
        """What the node's kernel has."""
        return sorted(path.parent.name for path in (self.rig / "module").glob("*/initstate"))

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def rig(self) -> Path:
        return self.folder / "rig"

    @property
    def modules(self) -> Path:
        return self.folder / "lib/modules" / self.release

    @property
    def firmware_path(self) -> Path:
        """The host's /sys/module/firmware_class/parameters/path."""
        taking = self.rig / "module/firmware_class/parameters/path"
        return taking if taking.exists() else self.folder / "firmware-path"

    @property
    def trapped(self) -> Tuple[str, ...]:
        """What called a package manager or a downloader, or read an entitlement."""
        calls = (self.rig / "trapped").read_text().splitlines()
        read = [str(path) for path in self._certificates if path.stat().st_atime > 1]
        return (*calls, *read)

    def clear_traps(self) -> None:
        """Forget what was noticed so far."""
        (self.rig / "trapped").write_text("")
        for certificate in self._certificates:
            os.utime(
                certificate, (0, 1)
            )  # the next read sets the time, also under relatime; not on a read-only mount

    @property
    def _certificates(self) -> Iterator[Path]:
        return self.folder.glob("entitlement*/*.pem")

    def share(self) -> None:
        """Let mounts that a container makes below /run/nvidia appear here, as on a node."""
        subprocess.run(["mount", "--bind", str(self.run), str(self.run)], check=True)
        subprocess.run(["mount", "--make-shared", str(self.run)], check=True)

    def unshare(self) -> None:
        """Take away that mount, and what a killed container left in it."""
        while str(self.run) in _mounted():
            subprocess.run(["umount", "-l", "-R", str(self.run)], check=True)

    @property
    def mounts(self) -> List[str]:
        """What is mounted below the node's /run/nvidia."""
        return [place for place in _mounted() if place.startswith(f"{self.run}/")]

    def driver_mounts(self, shared: Path) -> List[str]:
        """podman's words for what the driver container sees (gpu-operator, 0500_daemonset.yaml)."""
        firmware = self.run / "driver/lib/firmware"
        firmware.mkdir(parents=True, exist_ok=True)  # DirectoryOrCreate
        volumes = {
            f"{self.run}": "/run/nvidia:rshared",
            f"{self.folder}/fabricmanager": "/run/nvidia-fabricmanager",
            f"{self.folder}/topologyd": "/run/nvidia-topologyd",
            f"{self.folder}/dev-log": "/dev/log",
            f"{self.folder}/mellanox": "/run/mellanox/drivers:rslave",
            "/sys/devices/system": "/sys/devices/system",
            f"{self.firmware_path}": "/sys/module/firmware_class/parameters/path",
            f"{firmware}": "/lib/firmware",
            f"{self.rig}/startup-probe.sh": "/usr/local/bin/startup-probe.sh",
            f"{self.store}": STORE,
        }
        return [*_volumes(volumes), *self.toolkit_mounts(shared)]

    def peermem_mounts(self) -> List[str]:
        """podman's words for what nvidia-peermem-ctr sees."""
        volumes = {
            f"{self.run}": "/run/nvidia:rshared",
            f"{self.folder}/var-log": "/var/log",
            f"{self.folder}/dev-log": "/dev/log:ro",
            f"{self.folder}/mellanox": "/run/mellanox/drivers:rslave",
            f"{self.rig}": "/rig",
        }
        return _volumes(volumes)

    def toolkit_mounts(self, shared: Path) -> List[str]:
        """podman's words for what the DTK container sees; the driver's container sees that as well."""
        volumes = {
            f"{shared}": SHARED,
            f"{self.folder}/var-log": "/var/log",
            f"{self.folder}/mellanox/usr/src": "/run/mellanox/drivers/usr/src:rslave",
            f"{self.folder}/os-release": "/host-etc/os-release:ro",
            f"{self.rig}": "/rig",
            f"{self.modules.parent}": "/rig/modules:ro",
            f"{self.folder}/entitlement0": ENTITLEMENT[0],
            f"{self.folder}/entitlement1": ENTITLEMENT[1],
        }
        return _volumes(volumes)


def lay_out_module_tree(kernel: KitKernel, place: Path) -> None:
    """A kernel's module folder as RHEL's kernel-core has it: with symvers.gz and config."""
    assert kernel.modules is not None
    place.parent.mkdir(parents=True)
    subprocess.run(["cp", "-al", str(kernel.modules), str(place)], check=True)
    for name in ("build", "source"):
        (place / name).unlink(missing_ok=True)
    symvers = (kernel.headers / "Module.symvers").read_bytes()
    (place / "symvers.gz").write_bytes(gzip.compress(symvers, 1, mtime=0))
    shutil.copyfile(kernel.headers / ".config", place / "config")


def remove(folder: Path) -> None:
    """Remove it; what a dead container has started may write into it a moment longer."""
    end = time.monotonic() + 30
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=time.monotonic() < end)
        time.sleep(0.05)


def _mounted() -> List[str]:
    """Where something is mounted: os.path.ismount does not see a folder that is bound to itself."""
    return [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]


def _module(folder: Path, build_id: str) -> None:
    """A live module, as /sys/module shows it."""
    for part in ("notes", "holders"):
        (folder / part).mkdir(parents=True)
    (folder / "initstate").write_text("live\n")
    (folder / "refcnt").write_text("0\n")
    (folder / "notes/.note.gnu.build-id").write_bytes(build_id_note(build_id))


def uts_version(kernel: KitKernel) -> str:
    """What `uname -v` says where this kernel runs."""
    for name in ("utsversion.h", "compile.h"):
        path = kernel.headers / "include/generated" / name
        found = re.search(r'UTS_VERSION "([^"]+)"', path.read_text()) if path.exists() else None
        if found:
            return found[1]
    raise AssertionError(f"{kernel.headers} does not say")


def _fake_kernel(rig: Path, kernel: KitKernel) -> None:
    (rig / "osrelease").write_text(f"{kernel.release}\n")
    (rig / "version").write_text(f"{uts_version(kernel)}\n")
    gpu = rig / "pci/0000:3b:00.0"
    gpu.mkdir()
    for name, value in GPU.items():
        (gpu / name).write_text(f"{value}\n")
    for name, text in (("node.sh", WRAPPER), ("startup-probe.sh", PROBE)):
        (rig / name).write_text(text)


def _lay_traps(folder: Path) -> None:
    for name in TRAPS:
        trap = folder / "rig/bin" / name
        trap.write_text(TRAP)
        trap.chmod(0o755)
    for number in range(len(ENTITLEMENT)):
        certificate = folder / f"entitlement{number}/1.pem"
        certificate.parent.mkdir()
        certificate.write_text("none of your business\n")


def _volumes(volumes: dict[str, str]) -> List[str]:
    return [word for source, target in volumes.items() for word in ("-v", f"{source}:{target}")]
