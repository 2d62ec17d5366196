"""Tar archives (plain, gz, xz, zst) unpacked as hostile."""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from pathlib import Path, PurePosixPath
from typing import IO, Any, Callable, cast

from nvdriver_build.errors import NvdriverError

MAX_UNPACKED = 4 * 1024**3
"""Bytes that an archive may unpack to; NVIDIA's largest source needs about 0.5 GiB."""
MAX_MEMBERS = 100_000
"""Files, folders and links that an archive may hold; NVIDIA's largest source has about 2,000."""
MAX_DEPTH = 64
"""Folders that a member may lie in."""
_NAME_MAX = 255
"""Linux include/uapi/linux/limits.h."""
_MAX_HEADERS = 4 * 1024**2
"""Bytes of headers that may come before the first member, or beyond `_HEADER` for each."""
_HEADER = 8 * 1024
_MAX_WINDOW = 256 * 1024**2
"""Bytes of history that a decoder may keep; `xz -9` needs 64 MiB."""
_CHUNK = 64 * 1024
_FEED = 1024
"""Bytes given to a decoder at once. Zstandard can make 128 KiB of four bytes, so 32 MiB of these."""
_ARCHIVES_FAULT = {
    errno.EEXIST,
    errno.EINVAL,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
}
"""What the system says to names that cannot be; all else (no space, no permission) is the machine's."""


class ArchiveError(NvdriverError):
    """An archive that is damaged, or that tries to reach out of its folder."""


def unpack(archive: Path, place: Path, check: Callable[[], None] = lambda: None) -> None:
    """Unpack a tar archive (plain, gz, xz, zst) into the folder `place`, which must exist and be empty.

    Refuses, by ArchiveError, absolute and climbing names, links that lead out, writing through a link,
    devices, and more than MAX_UNPACKED bytes. Owners, times and special modes are dropped. `check` is called
    again and again meanwhile; what it raises ends the work. OSError is the machine's fault: no space, say.
    """
    with archive.open("rb") as file:
        stream = _Stream(file)
        try:
            # A stream, since `r|` never seeks; the type wants a file that could be written, too.
            with tarfile.open(fileobj=cast(Any, stream), mode="r|", bufsize=_CHUNK, tarinfo=_Member) as tar:
                _unpack_members(tar, stream, place, check)
            stream.drain()
        except NvdriverError as error:
            raise ArchiveError(f"{archive}: {error.message}") from error
        except OSError as error:
            if error.errno not in _ARCHIVES_FAULT:
                raise
            raise ArchiveError(f"{archive}: cannot be unpacked: {error}") from error
        except Exception as error:  # tarfile and the decoders raise of many kinds at hostile bytes
            raise ArchiveError(f"{archive}: damaged, or no tar archive: {error}") from error


class _Stream:
    """An archive's unpacked bytes, read only as far as `allowed`: headers alone can be bombs."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._new = file, _decoder_of(file)
        self._decoder = self._new()
        self._rest = memoryview(b"")
        self.allowed = _MAX_HEADERS

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none at the end."""
        rest = self._rest or memoryview(self._more())
        self._rest = rest[size:]
        self.allowed -= min(size, len(rest))
        if self.allowed < 0:
            raise ArchiveError("holds more bytes than its members say")
        return bytes(rest[:size])

    def drain(self) -> None:
        """Read to the end, where the checksums are."""
        while self.read(_CHUNK):
            pass

    def _more(self) -> bytes:
        data = b""
        while not data:
            chunk = self._file.read(_FEED)
            if not chunk:
                if not self._decoder.eof:
                    raise ArchiveError("ends too early")
                break
            data = self._decode(chunk)
        return data

    def _decode(self, chunk: bytes) -> bytes:
        """Several compressed streams in a row are one, as parallel compressors write them."""
        data = b""
        while chunk:
            if self._decoder.eof:
                self._decoder = self._new()
            data += self._decoder.decompress(chunk)
            chunk = self._decoder.unused_data if self._decoder.eof else b""
        return data


class _Plain:
    """The decoder of what is not compressed."""

    eof = True
    unused_data = b""

    def decompress(self, data: bytes) -> bytes:
        return data


def _decoder_of(file: IO[bytes]) -> Callable[[], Any]:
    """What makes a decoder of the kind that a file's first bytes tell."""
    magic = file.read(6)
    file.seek(0)
    if magic.startswith(b"\x1f\x8b"):
        import zlib

        return lambda: zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    if magic == b"\xfd7zXZ\x00":
        import lzma

        return lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MAX_WINDOW)
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        try:
            import zstandard
        except ImportError as error:  # compiled: neither a driver image nor a toolkit has it
            raise ArchiveError(
                f"{file.name}: compressed by zstd, and this Python has no package zstandard to read that",
                hint="unpack it first: zstd -d",
            ) from error
        return lambda: zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).decompressobj()
    return _Plain


class _Member(tarfile.TarInfo):
    """A member's header; a damaged one is an error, where tarfile takes it for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> _Member:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the end as it should be
            raise
        except tarfile.HeaderError as error:
            raise ArchiveError(f"damaged, or no tar archive: {error}") from error


def _unpack_members(tar: tarfile.TarFile, stream: _Stream, place: Path, check: Callable[[], None]) -> None:
    links: set[PurePosixPath] = set()
    total = 0
    for count, member in enumerate(tar, 1):
        check()
        size = member.size if member.isreg() else 0
        total += size
        if count > MAX_MEMBERS or total > MAX_UNPACKED:
            raise ArchiveError(f"holds more than {MAX_MEMBERS} members or {MAX_UNPACKED} bytes")
        stream.allowed += size + _HEADER
        name = _safe_name(member.name, links)
        if member.issym():
            target = _link_target(member, name)
            links.add(name)
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).symlink_to(target)
        elif member.isdir():
            (place / name).mkdir(parents=True, exist_ok=True)
        elif member.isreg() and not member.issparse():
            _write_member(tar, member, place / name, check)
        else:
            raise ArchiveError(f"member {member.name!r} is neither file, folder nor symbolic link")


def _safe_name(text: str, links: set[PurePosixPath]) -> PurePosixPath:
    name = PurePosixPath(text)
    if name.is_absolute() or ".." in name.parts or "\0" in text:
        raise ArchiveError(f"member {text!r} leads out of the folder")
    if len(name.parts) > MAX_DEPTH:
        raise ArchiveError(f"member {text[:200]!r} lies more than {MAX_DEPTH} folders deep")
    if any(parent in links for parent in (name, *name.parents)):
        raise ArchiveError(f"member {text!r} is written through a link")
    return name


def _link_target(member: tarfile.TarInfo, name: PurePosixPath) -> PurePosixPath:
    """A link may climb only at its start, and not above the archive's top: then it cannot lead out.

    Names that no file can have are refused as well: whoever asks where such a link leads gets an error.
    """
    target = PurePosixPath(member.linkname)
    climbs = 0
    for part in target.parts:
        if part != "..":
            break
        climbs += 1
    odd = not member.linkname or any(len(os.fsencode(part)) > _NAME_MAX for part in target.parts)
    if odd or target.is_absolute() or ".." in target.parts[climbs:] or climbs > len(name.parts) - 1:
        raise ArchiveError(f"member {member.name!r} links to {member.linkname[:200]!r}, out of the folder")
    return target


def _write_member(
    tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path, check: Callable[[], None]
) -> None:
    source = tar.extractfile(member)
    assert source is not None  # a regular file always has content
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        for chunk in iter(lambda: source.read(_CHUNK), b""):
            check()
            file.write(chunk)
    path.chmod(0o755 if member.mode & stat.S_IXUSR else 0o644)
