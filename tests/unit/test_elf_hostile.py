"""Files that are no sound modules: a ModuleFormatError names file and reason, soon and in little memory."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import struct
import subprocess
import sys
import zlib
from datetime import timedelta
from pathlib import Path
from typing import Any, Callable, Dict

import pytest
import zstandard
from elf_files import (
    COMMON,
    LOCAL,
    NOBITS,
    NOTE,
    STRTAB,
    SYMTAB,
    WEAK,
    ElfFile,
    appended,
    export,
    module,
    pkcs7,
)
from elf_mutations import Mutation, damaged, mutations, read_or_refuse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nvdriver_build.elf import content, read_module, symbols
from nvdriver_build.errors import ModuleFormatError

Refuse = Callable[[bytes], str]


@pytest.fixture
def refuse(tmp_path: Path) -> Refuse:
    """Write a file that must be refused; gives the reason."""

    def reason(data: bytes) -> str:
        path = tmp_path / "sample.ko"
        path.write_bytes(data)
        with pytest.raises(ModuleFormatError) as caught:
            read_module(path)
        prefix = f"{path}: not a sound kernel module: "
        assert caught.value.message.startswith(prefix)
        assert caught.value.hint == "build or fetch it again"
        return caught.value.message[len(prefix) :]

    return reason


def test_missing(tmp_path: Path) -> None:
    """A missing file is refused in the system's words."""
    with pytest.raises(ModuleFormatError, match=r"none\.ko: cannot be read: No such file or dir") as caught:
        read_module(tmp_path / "none.ko")
    assert (caught.value.hint or "").startswith("is that the name")


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_not_a_file(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """A folder and a pipe are refused; opening the pipe would wait forever."""
    make(tmp_path / "sample.ko")
    with pytest.raises(ModuleFormatError, match="not a regular file"):
        read_module(tmp_path / "sample.ko")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "has only 0 bytes"),
        (b"\x7fELF", "has only 4 bytes"),
        (b"#!/bin/sh\nexit 0\n" * 10, "not an ELF file"),
        (b"\x7fELF\x03\x01\x01" + bytes(60), "an ELF file of unknown class 3, byte order 1 or version 1"),
        (b"\x7fELF\x02\x00\x01" + bytes(60), "an ELF file of unknown class 2, byte order 0 or version 1"),
        (b"\x7fELF\x02\x01\x01" + bytes(50), "has only 57 bytes"),
    ],
)
def test_not_elf(refuse: Refuse, data: bytes, reason: str) -> None:
    """What is not ELF is told as such."""
    assert refuse(data) == reason


def test_program_and_object(refuse: Refuse) -> None:
    """An executable and an object file that is no module are refused."""
    assert "not a relocatable one" in refuse(Path(sys.executable).read_bytes())
    assert refuse(module(kind=0xFE77).build()).startswith("an ELF file of type 65143")
    assert "without the section .gnu.linkonce.this_module" in refuse(ElfFile().build())


def without_modinfo() -> ElfFile:
    file = ElfFile()
    file.section(".gnu.linkonce.this_module", bytes(8))
    return file


def with_section(name: str, data: bytes, kind: int = 1) -> ElfFile:
    file = module()
    file.section(name, data, kind)
    return file


def with_common(name: str) -> ElfFile:
    file = module()
    file.symbol(name, COMMON, 8)
    return file


def with_extended(crcs: bytes, names: bytes) -> ElfFile:
    file = with_section("__version_ext_crcs", crcs)
    file.section("__version_ext_names", names)
    return file


def with_mark(name: str, section: int, value: int) -> ElfFile:
    """A module with one export `x`, and one more mark of it."""
    file = module()
    file.symbol("__ksymtab_x", file.section("__ksymtab", bytes(12)), 0, LOCAL)
    file.section("__kcrctab", bytes(4))
    file.section(".bss", bytes(4), NOBITS)
    file.section("__kflagstab", bytes(1))
    file.symbol(name, section, value, LOCAL)
    return file


KCRCTAB, BSS, FLAGS = 4, 5, 6


def both_versions() -> ElfFile:
    file = module(crcs={"printk": 1})
    file.section("__version_ext_crcs", struct.pack("<I", 2))
    file.section("__version_ext_names", b"printk\0")
    return file


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (without_modinfo(), "has no section .modinfo"),
        (with_section(".modinfo", b"license=GPL\0"), "has 2 sections .modinfo"),
        (with_common("buffer"), "has the common symbol buffer: it was not compiled with -fno-common"),
        (with_section(".symtab", b"", SYMTAB), "has 2 symbol tables instead of one"),
        (module(modinfo=("name=../../etc/passwd",)), "'../../etc/passwd' is not a module's name"),
        (module(modinfo=("name=.hidden",)), "'.hidden' is not a module's name"),
        (module(modinfo=("name=",)), "'' is not a module's name"),
        (module(modinfo=("name=" + "n" * 60,)), f"'{'n' * 60}' is not a module's name"),
        (with_section("__versions", bytes(63)), "its __versions of 63 bytes ends inside an entry"),
        (with_section("__versions", b"n" * 64), "a symbol name in its __versions is not terminated"),
        (module(modinfo=("x=" + "y" * 1024**2,)), "section .modinfo has 1048579 bytes"),
        (
            with_section("__version_ext_crcs", bytes(4)),
            "has only one of __version_ext_crcs and __version_ext_names",
        ),
        (with_extended(bytes(8), b"one\0"), "has 8 bytes of CRCs for 1 names"),
        (with_extended(bytes(7), b"one\0"), "has 7 bytes of CRCs for 1 names"),
        (with_extended(bytes(4), b"one"), "has 4 bytes of CRCs for 0 names"),
        (both_versions(), "wants two versions of printk: 0x00000002 and 0x00000001"),
        (with_section(".note.gnu.build-id", bytes(8), NOTE), "its build id is cut short"),
        (
            with_section(".note.gnu.build-id", struct.pack("<III4s", 4, 20, 3, b"GNU"), NOTE),
            "its build id is cut short",
        ),
        (
            with_section(".note.gnu.build-id", struct.pack("<III", 2**32 - 1, 0, 3), NOTE),
            "its build id is cut short",
        ),
        (with_mark("__crc_x", KCRCTAB, 1), "refers to byte 1 of a section of 4 bytes"),
        (with_mark("__crc_x", KCRCTAB, 2**64 - 1), f"refers to byte {2**64 - 1} of a section of 4 bytes"),
        (with_mark("__crc_x", 99, 0), "refers to section 99, which has no content"),
        (with_mark("__crc_x", BSS, 0), "refers to section 5, which has no content"),
        (with_mark("__flags_x", FLAGS, 1), "refers to byte 1 of a section of 1 bytes"),
        (with_mark("__kstrtabns_x", KCRCTAB, 5), "refers to byte 5 of a section of 4 bytes"),
    ],
)
def test_unsound(refuse: Refuse, file: ElfFile, reason: str) -> None:
    """Each thing that a module may not be has its own reason."""
    assert refuse(file.build()) == reason


def test_unterminated_text(refuse: Refuse) -> None:
    """Text that runs to the end of its section without a zero byte is refused."""
    file = ElfFile()
    file.section(".gnu.linkonce.this_module", bytes(8))
    file.section(".modinfo", b"name=x\0license=GPL")
    assert refuse(file.build()) == "its .modinfo is not terminated"
    file = module()
    file.symbol("__ksymtab_x", file.section("__ksymtab", bytes(12)), 0, LOCAL)
    file.symbol("__kstrtabns_x", file.section("__ksymtab_strings", b"NAMESPACE"), 0, LOCAL)
    assert refuse(file.build()) == "a namespace of more than 9 bytes"


def rewritten(field: int, value: int, name: str = "", width: int = 8) -> bytes:
    """A 64-bit module with a field of the ELF header, or of the header of section `name`, written over."""
    file = module()
    data = bytearray(file.build())
    start = 0
    if name:
        index = [section[0] for section in file.sections].index(name)
        start = struct.unpack_from("<Q", data, 40)[0] + 64 * index
    data[start + field : start + field + width] = value.to_bytes(width, "little")
    return bytes(data)


NAME, TYPE, ADDRESS, OFFSET, SIZE, LINK = 0, 4, 16, 24, 32, 40


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (rewritten(40, 2**64 - 1), "section headers at byte 18446744073709551615 do not lie"),
        (rewritten(60, 0xFFFF, width=2), "its 65535 section headers"),
        (rewritten(60, 0, width=2), "its 0 section headers"),
        (rewritten(58, 40, width=2), "section headers at byte"),
        (rewritten(62, 0, width=2), "its table of section names, section 0, has no content"),
        (rewritten(62, 0xFFFF, width=2), "its table of section names, section 65535, has no content"),
        (rewritten(SIZE, 0, ".shstrtab"), "its table of section names has 0 bytes"),
        (rewritten(SIZE, 3, ".shstrtab"), "its table of section names is not terminated"),
        (rewritten(NAME, 2**31, ".modinfo", 4), "a section name at byte 2147483648"),
        (
            rewritten(OFFSET, 2**64 - 1, ".modinfo"),
            "section 2, 44 bytes at 18446744073709551615, exceeds its",
        ),
        (rewritten(SIZE, 2**63, ".symtab"), "section 4, 9223372036854775808 bytes at"),
        (rewritten(SIZE, 23, ".symtab"), "its symbol table of 23 bytes ends inside an entry"),
        (rewritten(LINK, 77, ".symtab", 4), "refers to section 77, which has no content"),
        (rewritten(SIZE, 0, ".strtab"), "its table of symbol names does not start and end with a zero byte"),
        (rewritten(TYPE, 1, ".symtab", 4), "has 0 symbol tables instead of one"),
    ],
)
def test_lying_headers(refuse: Refuse, data: bytes, reason: str) -> None:
    """A header that points out of the file, or at the wrong thing, is refused."""
    assert reason in refuse(data)


def test_first_section_must_be_empty(refuse: Refuse) -> None:
    """As for the kernel, the first section header is a null one."""
    data = module().build()
    start = struct.unpack_from("<Q", data, 40)[0]
    for field in (TYPE, ADDRESS):
        reason = refuse(data[: start + field] + b"\1" + data[start + field + 1 :])
        assert reason == "its first section header is not empty"


def test_symbol_name_out_of_its_table(refuse: Refuse) -> None:
    """A symbol whose name lies behind the string table is refused, as the kernel refuses it."""
    file = module()
    file.section(".symtab", file.pack("IBBHQQ", 500, 0, 0, 1, 0, 0), SYMTAB, link=4)
    file.section("names", b"\0x\0", STRTAB)
    data = file.build()
    assert "symbol tables" in refuse(data)
    index = [section[0] for section in file.sections][4:].index(".symtab") + 4
    start = struct.unpack_from("<Q", data, 40)[0] + 64 * index + TYPE
    assert "a symbol name at byte 500 of a table of 3 bytes" in refuse(
        data[:start] + b"\1" + data[start + 1 :]
    )


def test_every_truncation(refuse: Refuse) -> None:
    """A module cut anywhere is refused."""
    file = module(crcs={"printk": 1})
    export(file, {"x": 1}, namespace="NS")
    data = file.build()
    for size in range(len(data)):
        refuse(data[:size])


@pytest.mark.parametrize("pack", [lzma.compress, gzip.compress, zstandard.compress])
def test_every_truncation_of_a_compressed_module(refuse: Refuse, pack: Callable[[bytes], bytes]) -> None:
    """A compressed module cut anywhere is refused, or followed by anything."""
    data = pack(module(crcs={"printk": 1}).build())
    for size in range(len(data)):
        refuse(data[:size])
    assert refuse(data + b"more") == "has data after the end of its compressed content"
    assert refuse(data + bytes(5000)) == "has data after the end of its compressed content"


def test_damaged_compression(refuse: Refuse) -> None:
    """A flipped byte in compressed data is told as that."""
    data = bytearray(lzma.compress(module().build()))
    data[60] ^= 0xFF
    assert refuse(bytes(data)).startswith("damaged compression: ")


@pytest.mark.parametrize("pack", [lzma.compress, gzip.compress, zstandard.compress])
def test_expansion_is_bounded(
    refuse: Refuse, pack: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data that expands without end is given up at the limit."""
    monkeypatch.setattr(content, "MAX_EXPANDED", 10**7)
    assert refuse(pack(bytes(2 * 10**7))) == "expands to more than 10000000 bytes"


def test_decoders_keep_little(refuse: Refuse) -> None:
    """Compressed data that asks for gigabytes of history is refused."""
    data = bytearray(lzma.compress(b"x"))
    data[16] = 40  # the largest dictionary, 4 GiB; the block header's CRC follows it
    data[20:24] = zlib.crc32(data[12:20]).to_bytes(4, "little")
    assert refuse(bytes(data)) == "damaged compression: Memory usage limit exceeded"
    frame = b"\x28\xb5\x2f\xfd\x00" + bytes([19 << 3]) + b"\x01\x00\x00"  # a window of 512 MiB
    assert "memory" in refuse(frame)


@pytest.mark.parametrize(
    ("signature", "reason"),
    [
        (appended(b""), "its signature is not PKCS#7"),
        (appended(b"\x30\x03\x02\x01"), "its signature is not PKCS#7"),
        (appended(b"\x30\x80" * 50_000), "its signature is not PKCS#7"),
        (appended(pkcs7({"common_name": "key"}, 1) + b"\0"), "its signature is not PKCS#7"),
        (appended(b"x", hash=4), "its signature is described wrongly"),
        (appended(b"x", algorithm=1), "its signature is described wrongly"),
        (appended(b"x", size=2**32 - 1), "its signature claims 4294967295"),
        (appended(b"x", size=10**9), "its signature claims 1000000000"),
        (appended(bytes(300_000)), "its signature claims 300000"),
    ],
)
def test_signatures(refuse: Refuse, signature: bytes, reason: str) -> None:
    """A signature block that lies is refused, as the kernel refuses it."""
    assert refuse(module().build() + signature).startswith(reason)


@pytest.mark.parametrize(
    "signature", [appended(pkcs7({"common_name": "key"}, 1)), appended(b"old", kind=1, signer=3, size=0)]
)
def test_signature_is_no_part_of_the_elf_file(refuse: Refuse, tmp_path: Path, signature: bytes) -> None:
    """A section may reach to the signature, not into it."""
    size = len(module().build()) - 64
    (tmp_path / "whole.ko").write_bytes(rewritten(SIZE, size, ".gnu.linkonce.this_module") + signature)
    assert read_module(tmp_path / "whole.ko").signature
    reason = refuse(rewritten(SIZE, size + 1, ".gnu.linkonce.this_module") + signature)
    assert reason == f"section 1, {size + 1} bytes at 64, exceeds its {size + 64} bytes"


def test_overlapping_names(refuse: Refuse) -> None:
    """Symbols that share one endless name are given up, in time and memory that the file's size bounds."""
    file = module()
    for _ in range(20_000):
        file.symbol("", 0, 0, WEAK)
    data = bytearray(file.build())
    names = b"\0" + b"n" * (8 * 1024**2) + b"\0"
    headers = struct.unpack_from("<Q", data, 40)[0]
    kinds = [section[0] for section in file.sections]
    strings, table = (headers + 64 * kinds.index(name) for name in (".strtab", ".symtab"))
    struct.pack_into("<QQ", data, strings + OFFSET, len(data), len(names))
    start = struct.unpack_from("<Q", data, table + OFFSET)[0]
    for number in range(1, 20_001):
        struct.pack_into("<I", data, start + 24 * number, number)
    assert refuse(bytes(data) + names) == f"its symbol names overlap to more than {symbols.MAX_NAMES} bytes"


def test_overlapping_namespaces(refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    """Namespaces that share one text count as often as they are named."""
    monkeypatch.setattr(symbols, "MAX_NAMES", 2000)
    file = module()
    table = file.section("__ksymtab", bytes(12))
    strings = file.section("__ksymtab_strings", b"N" * 300 + b"\0")
    for number in range(10):
        file.symbol(f"__ksymtab_{number}", table, 0, LOCAL)
        file.symbol(f"__kstrtabns_{number}", strings, number, LOCAL)
    assert refuse(file.build()) == "its symbol names overlap to more than 2000 bytes"


def test_file_that_shrinks() -> None:
    """A file that ends before the place where it was said to end is refused while it is read."""
    with pytest.raises(content.Damaged, match="ends before byte 6"):
        content.read_at(io.BytesIO(b"abc"), 1, 5)


SEEDS: Dict[str, bytes] = {}
_ELVES: Dict[str, Dict[str, Any]] = {
    "64": {},
    "64 big": {"order": ">", "machine": 22},
    "32": {"bits": 32, "machine": 40},
    "32 big": {"bits": 32, "order": ">", "machine": 20},
}
for _name, _elf in _ELVES.items():
    _file = module(crcs={"module_layout": 1, "printk": 2}, **_elf)
    export(_file, {"one": 3, "two": 4}, namespace="SPACE")
    export(_file, {"three": 5}, gpl=True)
    _file.section("__version_ext_crcs", _file.pack("I", 2))
    _file.section("__version_ext_names", b"printk\0")
    _file.section(".note.gnu.build-id", _file.build_id(bytes(20)), NOTE)
    _file.symbol("printk")
    _file.symbol("maybe", info=WEAK)
    SEEDS[_name] = _file.build() + appended(pkcs7({"common_name": "key"}, 77))
SEEDS.update(
    {
        "xz": lzma.compress(SEEDS["64"]),
        "gz": gzip.compress(SEEDS["64"]),
        "zst": zstandard.compress(SEEDS["64"]),
    }
)


@settings(
    max_examples=2000,
    deadline=timedelta(seconds=5),
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(seed=st.sampled_from(sorted(SEEDS)), damage=mutations())
def test_mutations(tmp_path: Path, seed: str, damage: list[Mutation]) -> None:
    """Whatever is done to a module, it is read or refused by ModuleFormatError, and soon."""
    path = tmp_path / "sample.ko"
    path.write_bytes(damaged(SEEDS[seed], damage))
    read_or_refuse(path)


def test_seeds_are_sound(tmp_path: Path) -> None:
    """The modules that are damaged above are read while they are whole, also by kmod."""
    for name, data in SEEDS.items():
        path = tmp_path / f"sample{name.replace(' ', '')}.ko"
        path.write_bytes(data)
        facts = read_module(path)
        assert len(facts.exports) == 3 and facts.signature and facts.build_id
        if data.startswith(b"\x7fELF"):
            done = subprocess.run(
                ("modprobe", "--dump-modversions", path), stdout=subprocess.PIPE, check=True
            )
            assert done.stdout == b"0x00000001\tmodule_layout\n0x00000002\tprintk\n"


def test_larger_than_a_kernel_takes(tmp_path: Path) -> None:
    """A file of more than INT_MAX bytes is refused by its size: to read a terabyte of nothing takes hours."""
    path = tmp_path / "sample.ko"
    path.write_bytes(module().build())
    os.truncate(path, 2**31)
    with pytest.raises(ModuleFormatError, match="has 2147483648 bytes, more than any kernel takes"):
        read_module(path)
