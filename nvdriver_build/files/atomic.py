"""Files and folders that appear whole, private folders that die with their owner, locks, digests."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import os
import re
import secrets
import tempfile
import time
from pathlib import Path
from typing import Callable, Iterable, Iterator, Optional, Union

from nvdriver_build.errors import NvdriverError

FULL = (errno.ENOSPC, errno.EDQUOT)
"""What a full disk says."""
_CHUNK = 1024 * 1024
_TEMPORARY = ".tmp-"
_PRIVATE = ".nvdriver-build-"
_PRIVATE_NAME = re.compile(re.escape(_PRIVATE) + "[0-9a-f]{16}")
_OWNER = "owner"
_POLL = 0.1
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
"""How a folder is opened that may have become a link."""
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
"""Linux include/uapi/linux/fcntl.h and fs.h."""


class LockedError(NvdriverError):
    """Somebody else holds the lock."""


def publish(path: Path, content: Union[str, bytes], mode: int = 0o644, *, durable: bool = True) -> None:
    """Write a file so that a reader sees the old content or the new, never a part.

    Raises OSError; what was there before is then untouched. Without `durable` the disk is not waited for.
    """
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}{_TEMPORARY}", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(descriptor, mode)
            if durable:
                os.fsync(descriptor)
        Path(temporary).replace(path)
    except BaseException:
        remove(Path(temporary))
        raise
    _sweep_files(path)


def _sweep_files(path: Path) -> None:
    """Remove what killed publishers of `path` left; a living one needs no minute for its write."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}{_TEMPORARY}*"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > 60:
                leftover.unlink()


def publish_folder(private: Path, place: Path, *, durable: bool = True) -> bool:
    """Move a filled private folder to its place in one step; False where somebody was there first.

    With `durable` everything in it reaches the disk before the rename does.
    """
    if durable:
        sync(private)
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        private.rename(place)
    except OSError:
        if not place.is_dir():
            raise
        return False
    if durable:
        _sync(place.parent)
    return True


def exchange(private: Path, place: Path) -> None:
    """Let a filled private folder and the one in its place change places, in one step; OSError.

    A reader sees the one or the other. Where the file system cannot do that, there is none for a moment.
    """
    import ctypes

    renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    if renameat2(_AT_FDCWD, os.fsencode(private), _AT_FDCWD, os.fsencode(place), _RENAME_EXCHANGE) == 0:
        return
    code = ctypes.get_errno()
    if code not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(code, os.strerror(code), str(place))
    aside = private.with_name(f"{private.name}.old")
    place.rename(aside)
    private.rename(place)
    aside.rename(private)


def sync(folder: Path) -> None:
    """Let everything in a folder reach the disk."""
    for path in (*folder.rglob("*"), folder):
        if not path.is_symlink():
            _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def private_folder(parent: Path) -> Iterator[Path]:
    """A folder beside the final place, removed at the end; what killed processes left is swept.

    It lies in another one together with a file that its owner keeps locked: so a sweep takes no living
    process's folder, and finds every dead one's. It is swept at the start, for the space, and at the end,
    since a dead process's compilers write a moment longer than it lives.
    """
    parent.mkdir(parents=True, exist_ok=True)
    sweep(parent)
    outer, owner = _own_folder(parent)
    try:
        (outer / "work").mkdir()
        yield outer / "work"
    finally:
        os.close(owner)
        remove(outer)
        sweep(parent)


def _own_folder(parent: Path) -> tuple[Path, int]:
    """A new folder and the descriptor of its lock; a sweep may take a folder that is not locked yet."""
    while True:
        outer = parent / f"{_PRIVATE}{secrets.token_hex(8)}"
        outer.mkdir(mode=0o700)
        owner = _try_lock(outer / _OWNER)
        if owner is not None:
            return outer, owner


def sweep(parent: Path) -> None:
    """Remove the private folders under `parent` whose owners are gone."""
    for outer in parent.glob(f"{_PRIVATE}*"):
        with contextlib.suppress(OSError):
            # In a shared folder, such as /tmp, a link or a stranger's folder may have such a name.
            ours = not outer.is_symlink() and outer.stat().st_uid == os.geteuid()
            if ours and _PRIVATE_NAME.fullmatch(outer.name):
                _sweep_one(outer)


def _sweep_one(outer: Path) -> None:
    owner = _try_lock(outer / _OWNER)
    if owner is not None:
        try:
            remove(outer)
        finally:
            os.close(owner)


def _try_lock(path: Path) -> Optional[int]:
    """A descriptor that locks the file `path`; None where another one does, or took the file away."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def remove(path: Path) -> None:
    """Remove a file or a whole folder, however deep; nothing there is fine. What cannot go of a folder stays.

    No link is followed, whoever changes the folder meanwhile.
    """
    if path.is_dir() and not path.is_symlink():
        with contextlib.suppress(OSError):
            _empty(path)
            path.rmdir()
    else:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def _empty(folder: Path) -> None:
    """Remove what is in a folder. Two descriptors serve any depth: the way back is `..`.

    That has to be where we came from: a folder that is moved meanwhile leads nobody to its new neighbours.
    """
    here = os.open(folder, FOLDER)
    way: list[tuple[str, tuple[int, int], list[str]]] = []
    try:
        folders = _unlink_files(here)
        while folders or way:
            if folders:
                name = folders.pop()
                try:
                    there = os.open(name, FOLDER, dir_fd=here)
                except OSError:
                    continue
                way.append((name, _identity(here), folders))
                folders = _unlink_files(there)
                os.close(here)
                here = there
            else:
                name, above, folders = way.pop()
                there = os.open("..", FOLDER, dir_fd=here)
                os.close(here)
                here = there
                if _identity(here) != above:
                    return
                with contextlib.suppress(OSError):
                    os.rmdir(name, dir_fd=here)
    finally:
        os.close(here)


def _unlink_files(folder: int) -> list[str]:
    """Remove all but the folders in a folder; their names."""
    folders = []
    with contextlib.suppress(OSError), os.scandir(folder) as found:
        for entry in list(found):
            with contextlib.suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
                else:
                    os.unlink(entry.name, dir_fd=folder)
    return folders


def _identity(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino


@contextlib.contextmanager
def lock(path: Path, timeout: float, check: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock file `path`; LockedError where another process has it for `timeout` seconds.

    `check` is called again and again while waiting; what it raises ends the wait.
    """
    until = time.monotonic() + timeout
    path.parent.mkdir(parents=True, exist_ok=True)
    while (descriptor := _try_lock(path)) is None:
        if time.monotonic() >= until:
            raise LockedError(f"{path} is locked by another process", hint="wait until it is done")
        check()
        time.sleep(_POLL)
    try:
        yield
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(_CHUNK), b""):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_tree(root: Path, names: Iterable[str]) -> str:
    """A digest over relative paths and bytes of files under `root`, whatever the order of `names`."""
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(os.fsencode(name) + f"\0{sha256_file(root / name)}\n".encode())
    return digest.hexdigest()
