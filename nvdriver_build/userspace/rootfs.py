"""This container's root file system at /run/nvidia/driver, for the rest of the GPU stack to chroot into.

NVIDIA's container (rhel9/nvidia-driver, _mount_rootfs) makes /sys private and binds / in the mount namespace
that it lives in. Where / is shared there, as Kubernetes makes it for a container with a Bidirectional mount,
the bound tree then shares its groups with the container's own mounts, and to unmount it takes /proc, /dev and
/run/nvidia from the container too. So the tree is made in a mount namespace of its own, of which only the
last step, one mount, is seen outside: by this container and, since /run/nvidia is shared, by the host. That
tree is tied to nothing else, the propagation of /sys never changes here, and a crash leaves a whole tree or
none.

The steps are NVIDIA's otherwise: /sys without what is mounted below it, and everything else.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Optional, Sequence, Tuple

from nvdriver_build.commands import CommandError, Commands
from nvdriver_build.errors import InUseError, LoadError, UsageError
from nvdriver_build.userspace.mounts import Mount, holder, read_mounts, taken_along

_TIMEOUT = 60.0
_PRIVILEGED = "the container must be privileged (CAP_SYS_ADMIN)"
_BIDIRECTIONAL = (
    "the folder above it must be a mount that the host shares: mountPropagation Bidirectional, "
    "or `podman run -v /run/nvidia:/run/nvidia:rshared`"
)
_SYSTEM = ("bin", "boot", "dev", "etc", "lib", "lib64", "proc", "sbin", "sys", "usr")
"""Folders of / in which no root file system belongs."""

_STEPS = """
mount --make-runbindable /sys
mount --make-private /sys
mount --rbind / /sys
mount --make-rprivate /sys
if [ -n "$2" ]; then mount --bind "$2" "/sys$3"; fi
exec mount --rbind /sys "$1"
"""
"""The tree grows on /sys, the one mount point that is always there, and is tied to nothing by the last."""


def mount_root(
    place: Path, commands: Commands, proc: Path, modules: Optional[Tuple[Path, Path]] = None
) -> None:
    """Bind / and all that is mounted in it at `place`, for this container and the host.

    What is mounted at `place`, by whomever, goes first. With `modules`, a folder (our lib/modules/R) and the
    place for it (/lib/modules/R), the tree at `place`, and it alone, shows the folder there. Raises
    UsageError for a `place` that cannot be meant, LoadError where it cannot be mounted, and as `unmount_root`
    does.
    """
    unmount_root(place, commands, proc)
    place, target = place.resolve(), _made(place, modules)
    _require_shared(place, read_mounts(proc))
    folder, spot = target or ("", "")
    words = ("sh", "-e", "-c", _STEPS, "sh", str(place), str(folder), str(spot))
    said = _run(("unshare", "--mount", "--propagation", "unchanged", *words), commands)
    if not any(mount.within(place) for mount in read_mounts(proc)):
        raise LoadError(f"/ was not mounted at {place}: {said}", hint=f"{_PRIVILEGED}; {_BIDIRECTIONAL}")


def _made(place: Path, modules: Optional[Tuple[Path, Path]]) -> Optional[Tuple[Path, Path]]:
    """Make the mount points; links are followed, since in the tree at `place` they would lead out of it."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        if modules is None:
            return None
        folder, spot = (path.resolve() for path in modules)
        spot.mkdir(parents=True, exist_ok=True)
        return folder, spot
    except OSError as error:
        raise LoadError(f"cannot make a mount point: {error}", hint=_PRIVILEGED) from error


def _require_shared(place: Path, mounts: Sequence[Mount]) -> None:
    on = holder(place, mounts)
    if on is None or on.group is None:
        raise LoadError(
            f"nothing mounted at {place} would reach the host: {on.point if on else '/'} is not shared",
            hint=_BIDIRECTIONAL,
        )


def unmount_root(place: Path, commands: Commands, proc: Path) -> bool:
    """Unmount all that is mounted at `place` or below; whether there was anything.

    Lazily: whoever has a file open in it keeps that file. Raises UsageError for a `place` that cannot be
    meant; InUseError where a mount elsewhere would go as well, and nothing is touched then; LoadError where
    something stays.
    """
    place = _sane(place)
    mounts = read_mounts(proc)
    left = _within(place, mounts)
    found = bool(left)
    while left:
        _require_alone(place, mounts)
        highest = min(
            left, key=lambda mount: len(mount.point)
        ).point  # of two at one place, the upper one goes
        said = _run(("umount", "--lazy", "--recursive", highest), commands)
        before, mounts = left, read_mounts(proc)
        left = _within(place, mounts)
        if len(left) >= len(before):
            raise LoadError(f"{highest} cannot be unmounted: {said}", hint=_PRIVILEGED)
    return found


def _within(place: Path, mounts: Sequence[Mount]) -> list[Mount]:
    return [mount for mount in mounts if mount.within(place)]


def _require_alone(place: Path, mounts: Sequence[Mount]) -> None:
    others = taken_along(place, mounts)
    if others:
        raise InUseError(
            f"to unmount {place} would unmount {', '.join(others)} as well: they are shared with it",
            hint="unmount these first, once nobody needs them, or restart the node",
        )


def _sane(place: Path) -> Path:
    """`place` without links, as mountinfo shows it."""
    with contextlib.suppress(OSError, RuntimeError):  # a circle of links, or one that may not be read
        with contextlib.suppress(FileNotFoundError):
            place.stat()  # the resolve() of Python 3.13 passes over a circle
        if _outside_system(place) and _outside_system(place.resolve()):
            return place.resolve()
    raise UsageError(
        f"{place} is no place for the driver's root file system",
        hint="it takes an absolute path outside of the system's folders, such as /run/nvidia/driver",
    )


def _outside_system(place: Path) -> bool:
    return place.is_absolute() and len(place.parts) > 2 and place.parts[1] not in _SYSTEM


def _run(argv: Sequence[str], commands: Commands) -> str:
    """What the program said; whether it did its work is looked up in mountinfo."""
    try:
        finished = commands.run(argv, timeout=_TIMEOUT)
    except CommandError as error:
        raise LoadError(str(error), hint=error.hint) from error
    return finished.output.strip() or f"{argv[0]} ended with {finished.exit_code}"
