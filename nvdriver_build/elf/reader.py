"""One .ko file to ModuleFacts."""

from __future__ import annotations

import contextlib
import os
import re
import struct
from pathlib import Path
from typing import IO, Dict, Iterator, Optional, Tuple, Union

from nvdriver_build.elf.content import Damaged, open_content, sha256, text
from nvdriver_build.elf.facts import ModuleFacts, canonical_name
from nvdriver_build.elf.layout import MAX_SMALL, Layout, read_layout
from nvdriver_build.elf.signature import read_signature
from nvdriver_build.elf.symbols import read_symbols
from nvdriver_build.errors import ModuleFormatError

_NAME = re.compile(r"[0-9A-Za-z_][0-9A-Za-z_.+]{0,58}")
"""Names that a kernel can have (MODULE_NAME_LEN) and that are safe as a file name and an argument."""
_NT_GNU_BUILD_ID = 3
_MAX_SIZE = 2**31 - 1
"""Bytes of a file that the kernel takes (INT_MAX: finit_module)."""


def read_module(path: Union[str, Path], *, digest: bool = True) -> ModuleFacts:
    """Read a kernel module, plain or compressed.

    Without `digest` the file's bulk is not read at all. Raises ModuleFormatError, naming the file and the
    reason, for anything that is not a whole, sound module, a missing or unreadable file included.
    """
    with opened(path) as stream:
        return _facts(str(path), stream, digest)


@contextlib.contextmanager
def opened(path: Union[str, Path]) -> Iterator[IO[bytes]]:
    """The uncompressed bytes of a module; what is wrong with them is a ModuleFormatError."""
    try:
        with open_content(Path(path)) as stream:
            yield stream
    except Damaged as error:
        message = f"{path}: not a sound kernel module: {error}"
        raise ModuleFormatError(message, hint=error.hint) from error
    except OSError as error:
        raise ModuleFormatError(
            f"{path}: cannot be read: {error.strerror or error}",
            hint="is that the name, and may this user read it? A compressed module is unpacked in TMPDIR",
        ) from error


def _facts(path: str, stream: IO[bytes], digest: bool) -> ModuleFacts:
    stream.seek(0, os.SEEK_END)
    size = stream.tell()
    if size > _MAX_SIZE:
        raise Damaged(f"has {size} bytes, more than any kernel takes")
    end, signature = read_signature(stream, size)
    elf = read_layout(stream, end)
    if elf.find(".gnu.linkonce.this_module") is None:
        raise Damaged("an object file without the section .gnu.linkonce.this_module")
    modinfo = tuple(_modinfo(elf))
    symbols = read_symbols(elf)
    return ModuleFacts(
        path=path,
        name=_name(path, next((value for key, value in modinfo if key == "name"), None)),
        modinfo=modinfo,
        machine=elf.machine,
        bits=elf.bits,
        byteorder=elf.byteorder,
        needed=_needed(elf),
        undefined=symbols.undefined,
        weak=symbols.weak,
        exports=symbols.exports,
        build_id=_build_id(elf),
        signature=signature,
        sha256=sha256(stream) if digest else None,
        size=size,
        btf=any(section.name == b".BTF" for section in elf.sections),
        has_versions=elf.find("__versions") is not None,
    )


def _name(path: str, stated: Optional[str]) -> str:
    """The name in .modinfo; modules from before Linux 4.15 have none, there the file's name counts."""
    name = canonical_name(Path(path).name if stated is None else stated)
    if not _NAME.fullmatch(name):
        raise Damaged(f"{name!r} is not a module's name")
    return name


def _modinfo(elf: Layout) -> Iterator[Tuple[str, str]]:
    section = elf.find(".modinfo")
    if section is None:
        raise Damaged("has no section .modinfo")
    data = elf.content(section, MAX_SMALL)
    if data and data[-1]:
        raise Damaged("its .modinfo is not terminated")
    for entry in filter(None, data.split(b"\0")):
        key, _, value = entry.partition(b"=")
        yield text(key), text(value)


def _needed(elf: Layout) -> Dict[str, int]:
    """CRCs by symbol; where a symbol stands twice the kernel takes the first."""
    needed: Dict[str, int] = {}
    for symbol, crc in (*_extended_versions(elf), *_versions(elf)):
        if needed.setdefault(symbol, crc) != crc:
            raise Damaged(f"wants two versions of {symbol}: {needed[symbol]:#010x} and {crc:#010x}")
    return needed


def _versions(elf: Layout) -> Iterator[Tuple[str, int]]:
    """`struct modversion_info` of include/linux/module.h: an unsigned long and a name, 64 bytes."""
    section = elf.find("__versions")
    data = elf.content(section, MAX_SMALL) if section else b""
    layout = struct.Struct(elf.order + ("Q56s" if elf.bits == 64 else "I60s"))
    if len(data) % layout.size:
        raise Damaged(f"its __versions of {len(data)} bytes ends inside an entry")
    for crc, name in layout.iter_unpack(data):
        symbol, end, _ = name.partition(b"\0")
        if not end:
            raise Damaged("a symbol name in its __versions is not terminated")
        yield text(symbol), crc


def _extended_versions(elf: Layout) -> Iterator[Tuple[str, int]]:
    """From Linux 6.14 on CRCs in one section and names of any length in another, in the same order."""
    crcs, names = elf.find("__version_ext_crcs"), elf.find("__version_ext_names")
    if not crcs or not names:
        if crcs or names:
            raise Damaged("has only one of __version_ext_crcs and __version_ext_names")
        return
    numbers = elf.content(crcs, MAX_SMALL)
    symbols = elf.content(names, MAX_SMALL).split(b"\0")
    if len(numbers) % 4 or len(symbols) <= len(numbers) // 4:
        raise Damaged(f"has {len(numbers)} bytes of CRCs for {len(symbols) - 1} names")
    for (crc,), symbol in zip(struct.iter_unpack(elf.order + "I", numbers), symbols):
        yield text(symbol), crc


def _build_id(elf: Layout) -> Optional[str]:
    """The note that `ld --build-id` makes: sizes of name and description, type, `GNU`, the id."""
    section = elf.find(".note.gnu.build-id")
    data = elf.content(section, MAX_SMALL) if section else b""
    header = struct.Struct(elf.order + "III")
    while data:
        if len(data) < header.size:
            raise Damaged("its build id is cut short")
        name_size, size, kind = header.unpack_from(data)
        start = header.size + _aligned(name_size)
        if start + size > len(data):
            raise Damaged("its build id is cut short")
        if kind == _NT_GNU_BUILD_ID and data[header.size :].startswith(b"GNU\0"):
            return data[start : start + size].hex()
        data = data[start + _aligned(size) :]
    return None


def _aligned(size: int) -> int:
    return (size + 3) & ~3
