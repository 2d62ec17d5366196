"""A module and what is signed of it: its bytes without the signature, and the signature itself."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import IO, Iterator, Optional, Tuple

from nvdriver_build.elf.content import CHUNK, read_at
from nvdriver_build.elf.reader import opened
from nvdriver_build.elf.signature import as_appended, read_appended

__all__ = ["appended_signature", "as_appended", "unsigned_bytes", "unsigned_digest"]


def appended_signature(path: Path) -> Optional[bytes]:
    """The DER of the PKCS#7 signature behind a module, or None; ModuleFormatError."""
    with _parts(path) as (_, _, signature):
        return signature


def unsigned_bytes(path: Path) -> bytes:
    """The whole module without a signature that may be there; ModuleFormatError."""
    with _parts(path) as (stream, end, _):
        return read_at(stream, 0, end)


def unsigned_digest(path: Path, hash_name: str) -> bytes:
    """The digest of these bytes; ModuleFormatError."""
    with _parts(path) as (stream, end, _):
        digest = hashlib.new(hash_name)
        for start in range(0, end, CHUNK):
            digest.update(read_at(stream, start, min(CHUNK, end - start)))
        return digest.digest()


@contextlib.contextmanager
def _parts(path: Path) -> Iterator[Tuple[IO[bytes], int, Optional[bytes]]]:
    with opened(path) as stream:
        yield (stream, *read_appended(stream, stream.seek(0, os.SEEK_END)))
