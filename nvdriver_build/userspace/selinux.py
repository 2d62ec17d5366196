"""SELinux: whether the host enforces it, and the label with which containers may use the driver's devices."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

from nvdriver_build.commands import CommandError, Commands

LABEL = "container_file_t"
"""The type that NVIDIA's container gives the device files (rhel9/nvidia-driver, _mount_rootfs)."""
_TIMEOUT = 60.0


def enforced(proc: Path) -> bool:
    """Whether the host has SELinux and enforces it; only a container with hostPID can see that.

    NVIDIA's _host_selinux_enabled asks for the same two files; selinuxfs holds `1` in `enforce` where it is
    not merely permissive (security/selinux/selinuxfs.c).
    """
    try:
        mounts = (proc / "1" / "mounts").read_bytes()
        enforce = (proc / "1" / "root" / "sys" / "fs" / "selinux" / "enforce").read_bytes()
    except OSError:
        return False
    return b"selinuxfs" in mounts.split() and enforce.strip() == b"1"


def label_devices(folder: Path, commands: Commands) -> Optional[str]:
    """Label all device files in `folder`; a sentence where that failed: the driver works without."""
    argv = ("chcon", "--recursive", f"--type={LABEL}", "--", str(folder))
    try:
        finished = commands.run(argv, timeout=_TIMEOUT)
    except CommandError as error:
        return _failure(folder, str(error))
    return None if finished.ok else _failure(folder, finished.output.strip())


def _failure(folder: Path, why: str) -> str:
    return f"{folder} was not labelled {LABEL}, so SELinux may keep containers from the GPUs: {why}"
