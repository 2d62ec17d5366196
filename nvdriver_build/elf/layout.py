"""ELF header and section headers of a relocatable file, with the checks that the kernel makes of them.

The kernel's are in `elf_validity_cache_copy()` of kernel/module/main.c. pyelftools knows the structures; it
trusts the offsets and sizes in them, so those are compared with the file's size before anything is read.
"""

from __future__ import annotations

import functools
import io
from typing import IO, Any, List, NamedTuple, Optional, Tuple, Union

from attrs import frozen
from elftools.elf.structs import ELFStructs

from nvdriver_build.elf.content import Damaged, read_at

MAX_SMALL = 1024**2
"""Bytes of a section that becomes a Python object per entry; in-tree modules stay under 0.2 MiB."""
MAX_TABLE = 16 * 1024**2
"""Bytes of a symbol or string table; those of an unstripped nvidia.ko have 0.5 MiB."""
_EHDR_SIZE = {32: 52, 64: 64}
_SHDR_SIZE = {32: 40, 64: 64}
_LONGEST_NAME = 64
_SHF_ALLOC = 2
_MACHINES = {
    "EM_X86_64": "x86_64",
    "EM_AARCH64": "arm64",
    "EM_386": "i386",
    "EM_ARM": "arm",
    "EM_PPC": "ppc",
    "EM_PPC64": "ppc64",
    "EM_S390": "s390x",
    "EM_RISCV": "riscv64",
    "EM_LOONGARCH": "loongarch64",
}


class Section(NamedTuple):
    """One section header; a name longer than any that the kernel looks for is cut."""

    name: bytes
    type: Union[str, int]
    flags: int
    offset: int
    size: int
    link: int

    @property
    def has_content(self) -> bool:
        """Whether its offset and size speak of bytes in the file."""
        return self.type not in ("SHT_NULL", "SHT_NOBITS")


@frozen
class Layout:
    """The sections of a module, and access to their content."""

    stream: IO[bytes]
    machine: str
    bits: int
    byteorder: str
    sections: Tuple[Section, ...]

    @property
    def order(self) -> str:
        """The byte order as `struct` writes it."""
        return "<" if self.byteorder == "little" else ">"

    def section(self, index: int) -> Section:
        """The section of that number; raises Damaged where there is none with content."""
        if not 0 < index < len(self.sections) or not self.sections[index].has_content:
            raise Damaged(f"refers to section {index}, which has no content")
        return self.sections[index]

    def find(self, name: str) -> Optional[Section]:
        """The section that the kernel would find by that name: allocated, and the only one."""
        named = (section for section in self.sections if section.name == name.encode())
        found = [section for section in named if section.flags & _SHF_ALLOC and section.has_content]
        if len(found) > 1:
            raise Damaged(f"has {len(found)} sections {name}")
        return found[0] if found else None

    def content(self, section: Section, limit: int) -> bytes:
        """A whole section; raises Damaged where it has more bytes than `limit`."""
        if section.size > limit:
            raise Damaged(f"section {section.name.decode('ascii', 'replace')} has {section.size} bytes")
        return read_at(self.stream, section.offset, section.size)

    def part(self, section: Section, offset: int, length: int) -> bytes:
        """A few bytes of a section."""
        if not 0 <= offset <= section.size - length:
            raise Damaged(f"refers to byte {offset} of a section of {section.size} bytes")
        return read_at(self.stream, section.offset + offset, length)


def read_layout(stream: IO[bytes], size: int) -> Layout:
    """Read the headers of the ELF file in the first `size` bytes; raises Damaged."""
    little, bits = _identity(stream, size)
    header = _structs(little, bits).Elf_Ehdr.parse(read_at(stream, 0, _EHDR_SIZE[bits]))
    if header["e_type"] != "ET_REL":
        raise Damaged(f"an ELF file of type {header['e_type']}, not a relocatable one as modules are")
    return Layout(
        stream=stream,
        machine=_machine(header["e_machine"]),
        bits=bits,
        byteorder="little" if little else "big",
        sections=_sections(stream, size, header, _structs(little, bits), bits),
    )


def _identity(stream: IO[bytes], size: int) -> Tuple[bool, int]:
    if size < _EHDR_SIZE[32]:
        raise Damaged(f"has only {size} bytes")
    ident = read_at(stream, 0, 7)
    if ident[:4] != b"\x7fELF":
        raise Damaged("not an ELF file")
    bits, little = {1: 32, 2: 64}.get(ident[4]), {1: True, 2: False}.get(ident[5])
    if bits is None or little is None or ident[6] != 1:
        raise Damaged(f"an ELF file of unknown class {ident[4]}, byte order {ident[5]} or version {ident[6]}")
    if size < _EHDR_SIZE[bits]:
        raise Damaged(f"has only {size} bytes")
    return little, bits


@functools.lru_cache(maxsize=4)
def _structs(little: bool, bits: int) -> Any:
    structs = ELFStructs(little_endian=little, elfclass=bits)
    structs.create_basic_structs()
    structs.create_advanced_structs()
    return structs


def _machine(value: Union[str, int]) -> str:
    name = str(value)
    return _MACHINES.get(name, name.replace("EM_", "").lower())


def _sections(stream: IO[bytes], size: int, header: Any, structs: Any, bits: int) -> Tuple[Section, ...]:
    count, place, entry = header["e_shnum"], header["e_shoff"], _SHDR_SIZE[bits]
    if header["e_shentsize"] != entry or not 0 < count * entry <= size - place:
        raise Damaged(f"its {count} section headers at byte {place} do not lie in its {size} bytes")
    table = io.BytesIO(read_at(stream, place, count * entry))
    raw = [structs.Elf_Shdr.parse_stream(table) for _ in range(count)]
    sections = [_section(number, raw_section, size) for number, raw_section in enumerate(raw)]
    names = _section_names(stream, sections, header["e_shstrndx"])
    return tuple(
        section._replace(name=_section_name(names, entry["sh_name"]))
        if section.type != "SHT_NULL"
        else section
        for section, entry in zip(sections, raw)
    )


def _section(number: int, header: Any, size: int) -> Section:
    section = Section(
        name=b"",
        type=header["sh_type"],
        flags=header["sh_flags"],
        offset=header["sh_offset"],
        size=header["sh_size"],
        link=header["sh_link"],
    )
    if number == 0 and (section.type != "SHT_NULL" or section.size or header["sh_addr"]):
        raise Damaged("its first section header is not empty")
    if section.has_content and section.offset + section.size > size:
        raise Damaged(f"section {number}, {section.size} bytes at {section.offset}, exceeds its {size} bytes")
    return section


def _section_names(stream: IO[bytes], sections: List[Section], index: int) -> bytes:
    if not 0 < index < len(sections) or not sections[index].has_content:
        raise Damaged(f"its table of section names, section {index}, has no content")
    place = sections[index]
    if not 0 < place.size <= MAX_TABLE:
        raise Damaged(f"its table of section names has {place.size} bytes")
    names = read_at(stream, place.offset, place.size)
    if names[-1]:
        raise Damaged("its table of section names is not terminated")
    return names


def _section_name(names: bytes, start: int) -> bytes:
    if start >= len(names):
        raise Damaged(f"a section name at byte {start} of a table of {len(names)} bytes")
    return names[start : start + _LONGEST_NAME].partition(b"\0")[0]
