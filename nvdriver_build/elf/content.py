"""A module's bytes as one seekable stream: plain, xz, gz or zst, told apart by their first bytes."""

from __future__ import annotations

import contextlib
import hashlib
import stat
import tempfile
from pathlib import Path
from typing import IO, Any, Iterator, Optional, Tuple, Type

MAX_EXPANDED = 1024**3
"""Bytes that a compressed module may expand to; NVIDIA's largest, with debug information, has 0.2 GiB."""
_MAX_WINDOW = 64 * 1024**2
"""Bytes of history that a decoder may keep: `xz -9` needs this much, distributions use far less."""
_FEED = 1024
"""Bytes given to a decoder at once. Zstandard can make 128 KiB of four bytes, so 32 MiB of these."""
_SPOOL = 4 * 1024**2
CHUNK = 1024**2


class Damaged(Exception):
    """Why a file is no module to be trusted, and what mends it; `read_module` adds which file."""

    def __init__(self, message: str, hint: str = "build or fetch it again") -> None:
        super().__init__(message)
        self.hint = hint


@contextlib.contextmanager
def open_content(path: Path) -> Iterator[IO[bytes]]:
    """The uncompressed module; raises Damaged or OSError."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise Damaged("not a regular file")
    with path.open("rb") as file:
        decoder, failure = _decoder(file.read(6))
        file.seek(0)
        if decoder is None:
            yield file
            return
        with tempfile.SpooledTemporaryFile(max_size=_SPOOL) as expanded:
            try:
                _expand(file, decoder, expanded)
            except failure as error:
                raise Damaged(f"damaged compression: {error}") from error
            yield expanded


def _decoder(magic: bytes) -> Tuple[Optional[Any], Type[Exception]]:
    if magic == b"\xfd7zXZ\x00":
        import lzma

        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MAX_WINDOW + CHUNK * 2), lzma.LZMAError
    if magic.startswith(b"\x1f\x8b"):
        import zlib

        return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS), zlib.error
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        try:
            import zstandard
        except ImportError as error:  # compiled: neither a driver image nor a toolkit has it
            message = "compressed by zstd, and this Python has no package zstandard to read that"
            raise Damaged(message, hint="unpack it first: zstd -d") from error
        decoder = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).decompressobj()
        return decoder, zstandard.ZstdError
    return None, Damaged


def _expand(file: IO[bytes], decoder: Any, expanded: IO[bytes]) -> None:
    size = 0
    for chunk in iter(lambda: file.read(_FEED), b""):
        if decoder.eof:
            raise Damaged("has data after the end of its compressed content")
        data = decoder.decompress(chunk)
        size += len(data)
        if size > MAX_EXPANDED:
            raise Damaged(f"expands to more than {MAX_EXPANDED} bytes")
        expanded.write(data)
    if not decoder.eof:
        raise Damaged("its compressed content ends too early")
    if decoder.unused_data:
        raise Damaged("has data after the end of its compressed content")


def read_at(stream: IO[bytes], offset: int, length: int) -> bytes:
    """Exactly `length` bytes; raises Damaged where the file has become shorter than it said."""
    stream.seek(offset)
    data = stream.read(length)
    if len(data) != length:
        raise Damaged(f"ends before byte {offset + length}")
    return data


def sha256(stream: IO[bytes]) -> str:
    """The digest of the whole stream, in hex."""
    digest = hashlib.sha256()
    stream.seek(0)
    for chunk in iter(lambda: stream.read(CHUNK), b""):
        digest.update(chunk)
    return digest.hexdigest()


def text(data: bytes) -> str:
    """Text of a module, which is meant to be UTF-8 and can be anything."""
    return data.decode("utf-8", "backslashreplace")
