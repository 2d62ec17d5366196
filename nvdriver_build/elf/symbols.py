"""The symbol table: what a module needs from others and what it exports.

An exported symbol X leaves these marks, made by modpost and include/linux/export-internal.h:

    __ksymtab_X     its entry, in section __ksymtab or (up to Linux 7.0) __ksymtab_gpl
    __flags_X       from 7.1 on, a byte in __kflagstab whose bit 0 says GPL only
    __crc_X         its CRC: an absolute value (up to 5.18), or the place of four bytes that hold it
    __kstrtabns_X   the place of its namespace's name
"""

from __future__ import annotations

import struct
from typing import Dict, Iterator, List, Mapping, Optional, Tuple

from attrs import frozen

from nvdriver_build.elf.content import Damaged, text
from nvdriver_build.elf.facts import Export
from nvdriver_build.elf.layout import MAX_TABLE, Layout, Section

MAX_NAMES = 32 * 1024**2
"""Bytes of all names together. Names may overlap in their table, so the table's size does not bound them."""
_LONGEST_NAMESPACE = 512
_ENTRY, _FLAGS, _CRC, _NAMESPACE = _MARKS = (b"__ksymtab_", b"__flags_", b"__crc_", b"__kstrtabns_")
_SHN_UNDEF, _SHN_ABS, _SHN_COMMON = 0, 0xFFF1, 0xFFF2
_NOWHERE = (_SHN_UNDEF, _SHN_COMMON)
_LTO = b"__gnu_lto"
"""Start of the only common symbols that the kernel takes (simplify_symbols)."""
_STB_WEAK = 2
_STT_SECTION = 3
_KSYM_FLAG_GPL_ONLY = 1

_Symbol = Tuple[int, int, int, int]
"""Place of the name, binding and type, section, value."""
_Marks = Mapping[bytes, Dict[str, Tuple[int, int]]]
"""For each kind of mark the exported symbols that have it, with the mark's section and value."""


@frozen
class Symbols:
    """What the symbol table says; the fields are those of ModuleFacts."""

    undefined: Tuple[str, ...]
    weak: Tuple[str, ...]
    exports: Mapping[str, Export]


class _Names:
    """A string table that stops to answer when the names add up to more than a module can have."""

    def __init__(self, table: bytes) -> None:
        if not table or table[0] or table[-1]:
            raise Damaged("its table of symbol names does not start and end with a zero byte")
        self.table = table
        self.left = MAX_NAMES

    def at(self, start: int) -> bytes:
        return self.count(self.table[start : self.table.index(b"\0", start)])

    def count(self, name: bytes) -> bytes:
        self.left -= len(name)
        if self.left < 0:
            raise Damaged(f"its symbol names overlap to more than {MAX_NAMES} bytes")
        return name


def read_symbols(elf: Layout) -> Symbols:
    """Read the one symbol table of a module; raises Damaged."""
    tables = [section for section in elf.sections if section.type == "SHT_SYMTAB"]
    if len(tables) != 1:
        raise Damaged(f"has {len(tables)} symbol tables instead of one")
    names = _Names(elf.content(elf.section(tables[0].link), MAX_TABLE))
    undefined: List[str] = []
    weak: List[str] = []
    marks: _Marks = {mark: {} for mark in _MARKS}
    for symbol in _interesting(elf, tables[0], names.table):
        _sort(symbol, names, undefined, weak, marks)
    return Symbols(tuple(sorted(undefined)), tuple(sorted(weak)), _exports(elf, names, marks))


def _interesting(elf: Layout, table: Section, names: bytes) -> Iterator[_Symbol]:
    """Undefined and common ones, marks of exports: few of tens of thousands, hence no call per symbol."""
    end, starts_with = len(names), names.startswith
    for name, info, section, value in _entries(elf, table):
        if name >= end:
            raise Damaged(f"a symbol name at byte {name} of a table of {end} bytes")
        if (section in _NOWHERE and name) or starts_with(_MARKS, name):
            yield name, info, section, value


def _entries(elf: Layout, table: Section) -> Iterator[_Symbol]:
    data = elf.content(table, MAX_TABLE)
    layout = struct.Struct(elf.order + ("IBxHQ8x" if elf.bits == 64 else "II4xBxH"))
    if len(data) % layout.size:
        raise Damaged(f"its symbol table of {len(data)} bytes ends inside an entry")
    if elf.bits == 64:
        return layout.iter_unpack(data)
    return ((name, info, section, value) for name, value, info, section in layout.iter_unpack(data))


def _sort(symbol: _Symbol, names: _Names, undefined: List[str], weak: List[str], marks: _Marks) -> None:
    start, info, section, value = symbol
    name = names.at(start)
    if section == _SHN_UNDEF:
        (weak if info >> 4 == _STB_WEAK else undefined).append(text(name))
    elif section == _SHN_COMMON:
        if not name.startswith(_LTO):
            raise Damaged(f"has the common symbol {text(name)}: it was not compiled with -fno-common")
    elif info & 15 != _STT_SECTION:
        mark = next(mark for mark in _MARKS if name.startswith(mark))
        marks[mark][text(name[len(mark) :])] = section, value


def _exports(elf: Layout, names: _Names, marks: _Marks) -> Dict[str, Export]:
    namespaces: Dict[Tuple[int, int], Optional[str]] = {(_SHN_UNDEF, 0): None}
    exports = {}
    for symbol, (section, _) in sorted(marks[_ENTRY].items()):
        table = elf.section(section).name.lstrip(b"_")
        if not table.startswith((b"ksymtab+", b"ksymtab_gpl")) and table != b"ksymtab":
            continue
        place = marks[_NAMESPACE].get(symbol, (_SHN_UNDEF, 0))
        if place not in namespaces:
            namespaces[place] = _namespace(elf, names, *place)
        exports[symbol] = Export(
            crc=_crc(elf, marks[_CRC].get(symbol)),
            gpl_only=table.startswith(b"ksymtab_gpl") or _flagged(elf, marks[_FLAGS].get(symbol)),
            namespace=namespaces[place],
        )
    return exports


def _crc(elf: Layout, place: Optional[Tuple[int, int]]) -> Optional[int]:
    if place is None:
        return None
    section, value = place
    if section == _SHN_ABS:
        return value & 0xFFFFFFFF
    return int(struct.unpack(elf.order + "I", elf.part(elf.section(section), value, 4))[0])


def _flagged(elf: Layout, place: Optional[Tuple[int, int]]) -> bool:
    """Older kernels have no __kflagstab, and there `__flags_X` can be any variable."""
    index, offset = place or (_SHN_UNDEF, 0)
    if index >= len(elf.sections) or not elf.sections[index].name.lstrip(b"_").startswith(b"kflagstab"):
        return False
    return bool(elf.part(elf.section(index), offset, 1)[0] & _KSYM_FLAG_GPL_ONLY)


def _namespace(elf: Layout, names: _Names, index: int, offset: int) -> Optional[str]:
    section = elf.section(index)
    data = elf.part(section, offset, max(0, min(_LONGEST_NAMESPACE, section.size - offset)))
    name, end, _ = data.partition(b"\0")
    if not end:
        raise Damaged(f"a namespace of more than {len(name)} bytes")
    return text(names.count(name)) or None
