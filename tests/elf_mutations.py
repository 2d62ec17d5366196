"""Damage for kernel modules, as hypothesis strategies: random, and where a reader would trust a number."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Callable, List, Sequence

from hypothesis import strategies as st

from nvdriver_build.elf import ModuleFacts, read_module
from nvdriver_build.errors import ModuleFormatError

Mutation = Callable[[bytes], bytes]
EXTREMES = [0, 1, 2, 3, 0x7F, 0x80, 0xFF, 0xFFFE, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1]


def _place(fraction: float, size: int) -> int:
    return min(int(fraction * size), max(size - 1, 0))


def _flip(fraction: float, bit: int) -> Mutation:
    def mutate(data: bytes) -> bytes:
        place = _place(fraction, len(data))
        return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :] if data else data

    return mutate


def _truncate(fraction: float) -> Mutation:
    return lambda data: data[: _place(fraction, len(data))]


def _copy(source: float, target: float, length: int) -> Mutation:
    def mutate(data: bytes) -> bytes:
        start, place = _place(source, len(data)), _place(target, len(data))
        piece = data[start : start + length]
        return data[:place] + piece + data[place + len(piece) :]

    return mutate


def _insert(fraction: float, piece: bytes) -> Mutation:
    def mutate(data: bytes) -> bytes:
        place = _place(fraction, len(data))
        return data[:place] + piece + data[place:]

    return mutate


def _write(place: int, value: int, width: int) -> Mutation:
    """Write a number over `width` bytes; a negative place counts from the end."""

    def mutate(data: bytes) -> bytes:
        start = place if place >= 0 else max(len(data) + place, 0)
        number = int(value % 256**width).to_bytes(width, "little" if data[5:6] == b"\1" else "big")
        return data[:start] + number + data[start + width :]

    return mutate


def _section(number: int, field: int, value: int) -> Mutation:
    """Let a field of a section header lie: name, type, flags, address, offset, size, link."""

    def mutate(data: bytes) -> bytes:
        if len(data) < 64 or data[4] not in (1, 2):
            return data
        order, wide = "<" if data[5] == 1 else ">", data[4] == 2
        start = struct.unpack_from(order + ("Q" if wide else "I"), data, 40 if wide else 32)[0]
        count = struct.unpack_from(order + "H", data, 60 if wide else 48)[0]
        entry = start + (64 if wide else 40) * (number % max(count, 1))
        offsets = (0, 4, 8, 16, 24, 32, 40) if wide else (0, 4, 8, 12, 16, 20, 24)
        width = 8 if wide and 2 <= field <= 5 else 4
        return _write(entry + offsets[field], value, width)(data) if entry < len(data) else data

    return mutate


_fraction = st.floats(0, 1, exclude_max=True)
_number = st.sampled_from(EXTREMES) | st.integers(0, 100_000)
_mutation = st.one_of(
    st.builds(_section, st.integers(0, 100), st.integers(0, 6), _number),
    st.builds(_write, st.integers(0, 63), _number, st.sampled_from([1, 2, 4, 8])),
    st.builds(_write, st.integers(-60, -1), _number, st.sampled_from([1, 2, 4])),
    st.builds(_flip, _fraction, st.integers(0, 7)),
    st.builds(_copy, _fraction, _fraction, st.integers(1, 5000)),
    st.builds(_insert, _fraction, st.binary(max_size=64)),
    st.builds(_truncate, _fraction),
)


def mutations() -> st.SearchStrategy[List[Mutation]]:
    """One to four kinds of damage, to be done one after the other."""
    return st.lists(_mutation, min_size=1, max_size=4)


def damaged(data: bytes, damage: Sequence[Mutation]) -> bytes:
    """The data after all of the damage."""
    for mutate in damage:
        data = mutate(data)
    return data


def read_or_refuse(path: Path) -> bool:
    """Read a file that may be damaged; gives whether it was taken. Other errors pass through."""
    try:
        facts = read_module(path, digest=False)
    except ModuleFormatError as error:
        assert str(path) in error.message
        return False
    _check_sound(facts)
    return True


def _check_sound(facts: ModuleFacts) -> None:
    """What is taken must be usable: names that are safe, text that can be printed, numbers in their range."""
    assert facts.name and "/" not in facts.name and not facts.name.startswith((".", "-"))
    repr(facts).encode("utf-8")
    assert facts.bits in (32, 64) and facts.byteorder in ("little", "big")
    assert all(0 <= crc < 2**64 for crc in facts.needed.values())
    assert all(export.crc is None or 0 <= export.crc < 2**32 for export in facts.exports.values())
