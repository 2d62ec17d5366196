"""The driver's files in /dev, which no udev makes in a container.

Names, minors and modes: nvidia-modprobe's modprobe-utils/nvidia-modprobe-utils.{h,c} and chapter 'How and
when are the NVIDIA device files created?' of the driver's README. Majors: /proc/devices, where the driver
registers as `nvidia-frontend` (up to branch 535), later as `nvidia`. Files for MIG and IMEX are made by those
who use them.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from pathlib import Path
from typing import Iterator, Mapping, Tuple

from attrs import frozen

from nvdriver_build.commands import CommandError, Commands
from nvdriver_build.errors import LoadError
from nvdriver_build.loader.host import Host

_DRIVERS = ("nvidia-frontend", "nvidia")
_CONTROL, _MODESET = 255, 254
_ANYBODY = 0o666
_TIMEOUT = 60.0
_MINOR = re.compile(r"^Device Minor:\s*(\d+)\s*$", re.MULTILINE)
_PARAMETER = re.compile(r"^(\w+): (\d+)$", re.MULTILINE)
_OURS = re.compile(r"nvidia(\d+|ctl|-modeset|-uvm|-uvm-tools|-nvlink|-nvswitch(ctl|\d+)|-vgpu(ctl|\d+))")
_OUR_FOLDERS = ("nvidia-caps", "nvidia-caps-imex-channels")


@frozen
class Node:
    """A character device as it has to be."""

    name: str
    major: int
    minor: int
    mode: int = _ANYBODY
    uid: int = 0
    gid: int = 0

    def is_at(self, path: Path) -> bool:
        """Whether `path` is this device, with this owner and mode."""
        try:
            found = path.lstat()
        except FileNotFoundError:
            return False
        right = stat.S_ISCHR(found.st_mode) and found.st_rdev == os.makedev(self.major, self.minor)
        owned = (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (self.mode, self.uid, self.gid)
        return right and owned


def make_device_nodes(host: Host, commands: Commands) -> Tuple[str, ...]:
    """Make the device files of all modules that are loaded; the names of those that were missing or wrong.

    By nvidia-modprobe where it is on PATH, which acts on /dev, else here. Nothing is done where the driver is
    told to leave its files alone (NVreg_ModifyDeviceFiles=0). LoadError where a file cannot be made.
    """
    wanted = tuple(node for node in _wanted(host) if not node.is_at(host.dev / node.name))
    if wanted:
        _ask_nvidia_modprobe(wanted, commands)
    for node in wanted:
        _make(node, host.dev / node.name)
    return tuple(node.name for node in wanted)


def _wanted(host: Host) -> Iterator[Node]:
    majors, parameters = _majors(host.proc), _parameters(host.proc)
    driver = next((majors[name] for name in _DRIVERS if name in majors), None)
    if driver is not None and parameters.get("ModifyDeviceFiles", 1) == 1:
        owner = [parameters.get(f"DeviceFile{name}", 0) for name in ("UID", "GID")]
        mode = parameters.get("DeviceFileMode", _ANYBODY)
        for name, minor in _driver_minors(host):
            yield Node(name, driver, minor, mode, *owner)
    if "nvidia-uvm" in majors:
        yield Node("nvidia-uvm", majors["nvidia-uvm"], 0)
        yield Node("nvidia-uvm-tools", majors["nvidia-uvm"], 1)


def _driver_minors(host: Host) -> Iterator[Tuple[str, int]]:
    yield "nvidiactl", _CONTROL
    if (host.sys / "module" / "nvidia_modeset").is_dir():
        yield "nvidia-modeset", _MODESET
    for gpu in sorted((host.proc / "driver" / "nvidia" / "gpus").glob("*/information")):
        for minor in _MINOR.findall(_text(gpu)):
            yield f"nvidia{minor}", int(minor)


def _majors(proc: Path) -> Mapping[str, int]:
    """Majors of character devices by name, from /proc/devices (drivers/char and fs/proc/devices.c)."""
    section = _text(proc / "devices").partition("Character devices:\n")[2].partition("\n\n")[0]
    words = (line.split() for line in section.splitlines())
    return {name: int(major) for major, name in (pair for pair in words if len(pair) == 2)}


def _parameters(proc: Path) -> Mapping[str, int]:
    """The driver's own parameters; DeviceFileMode is decimal there."""
    return {name: int(value) for name, value in _PARAMETER.findall(_text(proc / "driver/nvidia/params"))}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # the driver is not loaded, or a GPU went
        return ""


def _ask_nvidia_modprobe(nodes: Tuple[Node, ...], commands: Commands) -> None:
    """Whatever it does not do is done here afterwards, with an error that says why not."""
    for argv in _modprobe_calls({node.name: node for node in nodes}):
        if commands.find(argv[0]):
            with contextlib.suppress(CommandError):
                commands.run(argv, timeout=_TIMEOUT)


def _modprobe_calls(nodes: Mapping[str, Node]) -> Iterator[Tuple[str, ...]]:
    """With -u, -c means a minor of nvidia-uvm (nvidia-modprobe.c); nvidia-uvm-tools is made with it."""
    plain = [str(node.minor) for name, node in nodes.items() if re.fullmatch(r"nvidia(ctl|\d+)", name)]
    modeset = ("-m",) if "nvidia-modeset" in nodes else ()
    if plain or modeset:
        yield ("nvidia-modprobe", *(word for minor in plain for word in ("-c", minor)), *modeset)
    if {"nvidia-uvm", "nvidia-uvm-tools"} & set(nodes):
        yield ("nvidia-modprobe", "-u", "-c", "0")


def _make(node: Node, path: Path) -> None:
    if node.is_at(path):
        return
    try:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        os.mknod(path, stat.S_IFCHR | node.mode, os.makedev(node.major, node.minor))
        path.chmod(node.mode)
        os.chown(path, node.uid, node.gid)
    except OSError as error:
        raise LoadError(
            f"cannot make {path} (character device {node.major}:{node.minor}): {error.strerror}",
            hint="the container must be privileged (CAP_MKNOD), with a /dev that it may write to",
        ) from error


def remove_device_nodes(host: Host) -> None:
    """Remove NVIDIA's device files, once the driver is gone; whatever else has such a name stays."""
    for path in host.dev.glob("nvidia*"):
        if _OURS.fullmatch(path.name):
            _remove(path)
    for folder in (host.dev / name for name in _OUR_FOLDERS):
        for path in folder.glob("*"):
            _remove(path)
        with contextlib.suppress(OSError):
            folder.rmdir()


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if stat.S_ISCHR(path.lstat().st_mode):
            path.unlink()
