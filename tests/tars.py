"""Tar archives made by hand, for tests."""

from __future__ import annotations

import gzip
import io
import lzma
import tarfile
from pathlib import Path
from typing import Callable, Dict, Iterable, Tuple

import pytest
import zstandard

from nvdriver_build.files.archives import ArchiveError, unpack

COMPRESS: Dict[str, Callable[[bytes], bytes]] = {
    "gz": lambda data: gzip.compress(data, 1),
    "xz": lambda data: lzma.compress(data, preset=0),
    "zst": lambda data: zstandard.ZstdCompressor(write_checksum=True).compress(data),
}
Member = Tuple[str, bytes, str, bytes]
"""Name, type, link target, content."""


FILE, DIR, SYM, HARD, FIFO = (
    tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE
)  # fmt: skip


def contents(root: Path) -> Dict[str, str]:
    """Every file's text and every link's target."""
    return {
        path.relative_to(root).as_posix(): str(path.readlink()) if path.is_symlink() else path.read_text()
        for path in root.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def tar_of(members: Iterable[Member]) -> bytes:
    """A tar archive of these members, in pax format."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, target, content in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, target, len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def refused(data: bytes, place: Path) -> str:
    """Why `data` is refused as an archive; what is around the place stays as it was."""
    archive = place.parent.parent / "archive"
    archive.write_bytes(data)
    with pytest.raises(ArchiveError) as caught:
        unpack(archive, place)
    assert [path.name for path in place.parent.iterdir()] == ["place"]
    return caught.value.message
