"""GSP firmware: the files where the kernel can read them, and the kernel told where that is.

The kernel reads firmware in the mount namespace of process 1 (kernel_read_file_from_path_initns in
drivers/base/firmware_loader/main.c): so from the host's /run/nvidia/driver/lib/firmware, which is a folder of
the host that the operator mounts over /lib/firmware of this container. The image keeps its firmware
elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Iterator, Optional

from nvdriver_build.errors import LoadError
from nvdriver_build.files import remove

_PART = ".part-"


def stage_firmware(source: Path, target: Path) -> int:
    """Copy all files below `source` to the same places below `target`; how many had to be copied.

    Each appears whole. One of the same size and time is there already. Without `source` there is nothing to
    copy. LoadError where it cannot be done; firmware is tens of MB, and `target` may be memory.
    """
    try:
        return sum(_stage(path, target / path.relative_to(source)) for path in _files(source))
    except OSError as error:
        raise LoadError(
            f"cannot copy the GSP firmware from {source} to {target}: {error}",
            hint="make room there; /run is memory of the node, and firmware of another driver may lie in it",
        ) from error


def _files(source: Path) -> Iterator[Path]:
    return (path for path in sorted(source.rglob("*")) if path.is_file() and not path.is_symlink())


def _stage(source: Path, target: Path) -> bool:
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target)
    if _same(source, target):
        return False
    descriptor, part = tempfile.mkstemp(prefix=f"{_PART}{target.name}-", dir=target.parent)
    os.close(descriptor)
    try:
        shutil.copyfile(source, part)
        shutil.copystat(source, part)
        Path(part).replace(target)
    except BaseException:
        remove(Path(part))
        raise
    return True


def _sweep(target: Path) -> None:
    """Remove what a killed run left: nobody else writes here, a driver has one owner."""
    for part in target.parent.iterdir():
        if part.name.startswith(f"{_PART}{target.name}-"):
            part.unlink()


def _same(source: Path, target: Path) -> bool:
    if target.is_symlink() or not target.is_file():
        return False
    ours, theirs = source.stat(), target.stat()
    return (ours.st_size, ours.st_mtime_ns) == (theirs.st_size, theirs.st_mtime_ns)


def unstage_firmware(source: Path, target: Path) -> None:
    """Remove from `target` what `stage_firmware` put there, and the folders that are empty then."""
    for path in _files(source):
        staged = target / path.relative_to(source)
        with contextlib.suppress(OSError):
            _sweep(staged)
            if _same(path, staged):
                staged.unlink()
    folders = (path for path in source.rglob("*") if path.is_dir())
    for folder in sorted(folders, reverse=True):
        with contextlib.suppress(OSError):
            (target / folder.relative_to(source)).rmdir()


def set_search_path(sys: Path, folder: str) -> Optional[str]:
    """Let the kernel look for firmware in `folder` first; a sentence where it does not: it may do without.

    A path that somebody else has set is kept, as NVIDIA's container does.
    """
    parameter = _parameter(sys)
    try:
        current = _value(parameter)
        if not current:
            # No newline: before Linux 5.18 it became part of the path.
            parameter.write_bytes(os.fsencode(folder))
    except OSError as error:
        return f"the firmware search path was not set to {folder}: {error}"
    if current in ("", folder):
        return None
    return f"the firmware search path is {current} already, and is kept: the GSP firmware must lie there"


def clear_search_path(sys: Path, folder: str) -> None:
    """Take `folder` back, where it is the search path.

    sysfs passes on no write of nothing (fs/sysfs/file.c, sysfs_kf_write), and a newline would be a path: what
    clears it is a string that ends at once (param_set_copystring in kernel/params.c copies up to its NUL).
    """
    parameter = _parameter(sys)
    with contextlib.suppress(OSError):
        if _value(parameter) == folder:
            parameter.write_bytes(b"\0")


def _parameter(sys: Path) -> Path:
    return sys / "module" / "firmware_class" / "parameters" / "path"


def _value(parameter: Path) -> str:
    return os.fsdecode(parameter.read_bytes().strip(b"\0 \t\n"))
