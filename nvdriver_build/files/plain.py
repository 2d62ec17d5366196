"""Files where anybody may write: what was looked at is what is read, and no link is followed."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from pathlib import Path
from typing import BinaryIO, Callable

from nvdriver_build.files.atomic import FOLDER

_CHUNK = 1024 * 1024
_FDS = "/proc/self/fd"


def _open(path: Path) -> BinaryIO:
    """A file to be read; OSError where it is no plain file.

    Nothing else is opened: that would wait for a pipe, and there are devices that act on it, watchdogs say.
    """
    seen = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        if not stat.S_ISREG(os.fstat(seen).st_mode):
            raise OSError(errno.EINVAL, "no plain file")
        return Path(f"{_FDS}/{seen}").open("rb")
    except FileNotFoundError as error:  # it was there: that must not look like a file that is not
        raise OSError(errno.EIO, "cannot be read without /proc", str(path)) from error
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(seen)


def read_plain(path: Path, limit: int) -> bytes:
    """The first `limit` bytes of a file; OSError where it is no plain file."""
    with _open(path) as file:
        return file.read(limit)


def copy_plain(path: Path, copy: Path, most: int, check: Callable[[], None] = lambda: None) -> None:
    """Copy a file, which may grow meanwhile; OSError where it is no plain file of at most `most` bytes.

    `check` is called again and again; what it raises ends the work.
    """
    with _open(path) as file, copy.open("xb") as copied:
        size = os.fstat(file.fileno()).st_size
        while size <= most:
            check()
            chunk = file.read(_CHUNK)
            if not chunk:
                return
            copied.write(chunk)
            size = copied.tell()
    raise OSError(errno.EFBIG, f"more than {most} bytes", str(path))


def same_plain(path: Path, ours: Path) -> bool:
    """Whether a file, of which no more is read, has the bytes of ours; OSError where it is no plain file."""
    with _open(path) as theirs, ours.open("rb") as file:
        chunks = iter(lambda: file.read(_CHUNK), b"")
        return all(theirs.read(len(chunk)) == chunk for chunk in chunks) and not theirs.read(1)


def put_plain(ours: Path, root: Path, place: Path) -> None:
    """Copy a file of ours to a new one below `root`; OSError where something is there. Makes folders.

    `root` alone is believed: any folder below it may become a link at any moment, to a folder of this
    machine. So each is opened from the one above it.
    """
    *folders, name = place.relative_to(root).parts
    here = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for folder in folders:
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder, dir_fd=here)
            there = os.open(folder, FOLDER, dir_fd=here)
            os.close(here)
            here = there
        copied = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644, dir_fd=here)
    finally:
        os.close(here)
    with os.fdopen(copied, "wb") as copy, ours.open("rb") as file:
        shutil.copyfileobj(file, copy, _CHUNK)
