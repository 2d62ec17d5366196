"""Files that appear whole, locks, digests, and archives unpacked as hostile.

Nothing here knows what a kernel module is.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import stat
import tarfile
import tempfile
import time
from pathlib import Path, PurePosixPath
from typing import IO, Any, Iterable, Iterator, Union

import filelock

from nvdriver_build.errors import NvdriverError

MAX_UNPACKED = 4 * 1024**3
"""Bytes that an archive may unpack to; NVIDIA's largest source needs about 0.5 GiB."""
MAX_MEMBERS = 100_000
"""Files, folders and links that an archive may hold; NVIDIA's largest source has about 2,000."""
_CHUNK = 1024 * 1024
_PRIVATE = ".tmp-"


class ArchiveError(NvdriverError):
    """An archive that is damaged, or that tries to reach out of its folder."""


class LockedError(NvdriverError):
    """Somebody else holds the lock."""


def publish(path: Path, content: Union[str, bytes], mode: int = 0o644) -> None:
    """Write a file so that a reader sees the old content or the new, never a part.

    Raises OSError; what was there before is then untouched.
    """
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}{_PRIVATE}", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        Path(temporary).replace(path)
    except BaseException:
        remove(Path(temporary))
        raise
    _sweep_files(path)


def _sweep_files(path: Path) -> None:
    """Remove what killed publishers of `path` left; a living one needs no minute for its write."""
    for leftover in path.parent.glob(f".{path.name}{_PRIVATE}*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - leftover.stat().st_mtime > 60:
                leftover.unlink()


def publish_folder(private: Path, place: Path) -> bool:
    """Move a filled private folder to its place in one step; False where somebody was there first.

    Everything in it reaches the disk before the rename does.
    """
    for path in private.rglob("*"):
        if path.is_file() and not path.is_symlink():
            _sync(path)
    _sync(private)
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        private.rename(place)
    except OSError:
        if not place.is_dir():
            raise
        return False
    _sync(place.parent)
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def private_folder(parent: Path) -> Iterator[Path]:
    """A folder beside the final place, removed at the end; one that a killed process left is swept first.

    Its owner holds a lock that exists before the folder does, so that sweeping takes no living
    process's folder and finds every dead one's.
    """
    parent.mkdir(parents=True, exist_ok=True)
    sweep(parent)
    folder = parent / f"{_PRIVATE}{secrets.token_hex(8)}"
    with filelock.FileLock(_owner_lock(folder), timeout=0):
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            remove(folder)
            _owner_lock(folder).unlink(missing_ok=True)


def sweep(parent: Path) -> None:
    """Remove the private folders under `parent` whose owners are gone."""
    for owner in parent.glob(f"{_PRIVATE}*.lock"):
        with contextlib.suppress(filelock.Timeout), filelock.FileLock(owner, timeout=0):
            remove(owner.with_suffix(""))
            owner.unlink(missing_ok=True)


def _owner_lock(folder: Path) -> Path:
    return folder.with_name(folder.name + ".lock")


def remove(path: Path) -> None:
    """Remove a file or a whole folder; nothing there is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


@contextlib.contextmanager
def lock(path: Path, timeout: float) -> Iterator[None]:
    """Hold the lock file `path`; LockedError where another process has it for `timeout` seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(path, timeout=timeout):
            yield
    except filelock.Timeout as error:
        raise LockedError(f"{path} is locked by another process", hint="wait until it is done") from error


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
        digest.update(f"{name}\0{sha256_file(root / name)}\n".encode())
    return digest.hexdigest()


def unpack(archive: Path, place: Path) -> None:
    """Unpack a tar archive (plain, gz, xz, zst) into the folder `place`, which must exist.

    Refuses, by ArchiveError, absolute and climbing names, links that lead out, writing through a link,
    devices, and more than MAX_UNPACKED bytes. Owners and special modes are dropped.
    """
    try:
        with _tar_stream(archive) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            _unpack_members(tar, place)
    except (tarfile.TarError, EOFError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, FileExistsError):
            raise
        raise ArchiveError(f"{archive}: not a readable tar archive: {error}") from error
    except Exception as error:  # lzma and zstandard have error types of their own
        if isinstance(error, NvdriverError) or type(error).__name__ not in ("LZMAError", "ZstdError"):
            raise
        raise ArchiveError(f"{archive}: damaged: {error}") from error


@contextlib.contextmanager
def _tar_stream(archive: Path) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(archive.open("rb"))
        magic = file.read(6)
        file.seek(0)
        yield stack.enter_context(_decompressed(file, magic))


def _decompressed(file: IO[bytes], magic: bytes) -> Any:
    if magic.startswith(b"\x1f\x8b"):
        import gzip

        return gzip.GzipFile(fileobj=file)
    if magic.startswith(b"\xfd7zXZ\x00"):
        import lzma

        return lzma.LZMAFile(file)
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        import zstandard

        return zstandard.ZstdDecompressor().stream_reader(file)
    return file


def _unpack_members(tar: tarfile.TarFile, place: Path) -> None:
    links: set[PurePosixPath] = set()
    total = 0
    for count, member in enumerate(tar, 1):
        total += max(member.size, 0)
        if count > MAX_MEMBERS or total > MAX_UNPACKED:
            raise ArchiveError(f"archive holds more than {MAX_MEMBERS} members or {MAX_UNPACKED} bytes")
        name = _safe_name(member.name, links)
        if member.issym():
            _check_link(member, name)
            links.add(name)
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).symlink_to(member.linkname)
        elif member.isdir():
            (place / name).mkdir(parents=True, exist_ok=True)
        elif member.isreg():
            _write_member(tar, member, place / name)
        else:
            raise ArchiveError(f"archive member {member.name!r} is neither file, folder nor symbolic link")


def _safe_name(text: str, links: set[PurePosixPath]) -> PurePosixPath:
    name = PurePosixPath(text)
    if name.is_absolute() or ".." in name.parts or "\0" in text:
        raise ArchiveError(f"archive member {text!r} leads out of the folder")
    if any(parent in links for parent in (name, *name.parents)):
        raise ArchiveError(f"archive member {text!r} is written through a link")
    return name


def _check_link(member: tarfile.TarInfo, name: PurePosixPath) -> None:
    """A link may climb only at its start, and not above the archive's top: then it cannot lead out."""
    target = PurePosixPath(member.linkname)
    climbs = 0
    for part in target.parts:
        if part != "..":
            break
        climbs += 1
    if target.is_absolute() or ".." in target.parts[climbs:] or climbs > len(name.parts) - 1:
        raise ArchiveError(f"archive member {member.name!r} links to {member.linkname!r}, out of the folder")


def _write_member(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    source = tar.extractfile(member)
    assert source is not None  # a regular file always has content
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        shutil.copyfileobj(source, file, _CHUNK)
    path.chmod(0o755 if member.mode & stat.S_IXUSR else 0o644)
    os.utime(path, (member.mtime, member.mtime))
