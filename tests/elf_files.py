"""Small kernel modules made by hand, of any class and byte order, for the tests of `nvdriver_build.elf`."""

from __future__ import annotations

import struct
from typing import Any, List, Mapping, Optional, Sequence, Tuple

from asn1crypto import algos, cms, x509

ABS, COMMON = 0xFFF1, 0xFFF2
LOCAL, GLOBAL, WEAK = 0x00, 0x10, 0x20
OBJECT_SECTION = 3
PROGBITS, SYMTAB, STRTAB, NOTE, NOBITS = 1, 2, 3, 7, 8
ALLOC = 2
SIGNATURE_MAGIC = b"~Module signature appended~\n"

Named = Tuple[str, int, int, int]
"""A symbol: name, binding and type, section, value."""


class ElfFile:
    """A relocatable ELF file; sections and symbols are written in the order of the calls."""

    def __init__(self, bits: int = 64, order: str = "<", machine: int = 62, kind: int = 1) -> None:
        self.bits, self.order, self.machine, self.kind = bits, order, machine, kind
        self.sections: List[Tuple[str, bytes, int, int, int]] = [("", b"", 0, 0, 0)]
        self.symbols: List[Named] = [("", 0, 0, 0)]

    def section(
        self, name: str, data: bytes = b"", kind: int = PROGBITS, flags: int = ALLOC, link: int = 0
    ) -> int:
        """Add a section; gives its index."""
        self.sections.append((name, data, kind, flags, link))
        return len(self.sections) - 1

    def symbol(self, name: str, section: int = 0, value: int = 0, info: int = GLOBAL) -> None:
        """Add a symbol; section 0 makes it undefined."""
        self.symbols.append((name, info, section, value))

    def pack(self, layout: str, *values: object) -> bytes:
        """Values in the file's byte order."""
        return struct.pack(self.order + layout, *values)

    def build(self) -> bytes:
        """The file's bytes: header, contents, symbol table, names, section headers."""
        names, table = b"\0", b""
        for name, info, section, value in self.symbols:
            table += self._symbol(len(names) if name else 0, info, section, value)
            names += name.encode() + b"\0" if name else b""
        strings = self.section(".strtab", names, STRTAB, flags=0)
        self.section(".symtab", table, SYMTAB, flags=0, link=strings)
        section_names = "".join(name + "\0" for name, *_ in self.sections).encode() + b".shstrtab\0"
        self.section(".shstrtab", section_names, STRTAB, flags=0)
        return self._assemble(section_names)

    def _assemble(self, names: bytes) -> bytes:
        size = 64 if self.bits == 64 else 52
        contents, headers = b"", b""
        for name, data, kind, flags, link in self.sections:
            start = names.index(b"\0" + name.encode() + b"\0") + 1 if name else 0
            headers += self._header(start, kind, flags, size + len(contents), len(data), link)
            contents += data if kind != NOBITS else b""
        return self._elf_header(size, size + len(contents)) + contents + headers

    def _elf_header(self, size: int, sections: int) -> bytes:
        ident = bytes([0x7F, *b"ELF", self.bits // 32, 1 if self.order == "<" else 2, 1]).ljust(16, b"\0")
        word = "Q" if self.bits == 64 else "I"
        entry = 64 if self.bits == 64 else 40
        return ident + self.pack(
            f"HHI3{word}I6H",
            *(self.kind, self.machine, 1, 0, 0, sections, 0, size, 0, 0, entry),
            *(len(self.sections), len(self.sections) - 1),
        )

    def _header(self, name: int, kind: int, flags: int, offset: int, size: int, link: int) -> bytes:
        word = "Q" if self.bits == 64 else "I"
        return self.pack(f"II4{word}II2{word}", name, kind, flags, 0, offset, size, link, 0, 1, 0)

    def _symbol(self, name: int, info: int, section: int, value: int) -> bytes:
        if self.bits == 64:
            return self.pack("IBBHQQ", name, info, 0, section, value, 0)
        return self.pack("IIIBBH", name, value, 0, info, 0, section)

    def versions(self, crcs: Mapping[str, int]) -> bytes:
        """The content of __versions."""
        layout = "Q56s" if self.bits == 64 else "I60s"
        return b"".join(self.pack(layout, crc, name.encode()) for name, crc in crcs.items())

    def build_id(self, identity: bytes) -> bytes:
        """The content of .note.gnu.build-id."""
        return self.pack("III4s", 4, len(identity), 3, b"GNU\0") + identity


def module(
    modinfo: Sequence[str] = ("name=sample", "vermagic=6.1.0 SMP ", "license=GPL"),
    crcs: Optional[Mapping[str, int]] = None,
    **elf: Any,
) -> ElfFile:
    """A module with what the kernel asks of each; more can be added before `build`."""
    file = ElfFile(**elf)
    file.section(".gnu.linkonce.this_module", bytes(64))
    file.section(".modinfo", b"".join(entry.encode() + b"\0" for entry in modinfo))
    if crcs is not None:
        file.section("__versions", file.versions(crcs))
    return file


def export(file: ElfFile, crcs: Mapping[str, int], gpl: bool = False, namespace: str = "") -> None:
    """Export symbols as modpost of Linux 6.1 to 7.0 writes it."""
    suffix = "_gpl" if gpl else ""
    table = file.section("__ksymtab" + suffix, bytes(12 * len(crcs)))
    numbers = file.section("__kcrctab" + suffix, file.pack(f"{len(crcs)}I", *crcs.values()))
    strings = file.section("__ksymtab_strings", b"\0" + namespace.encode() + b"\0")
    for position, symbol in enumerate(crcs):
        file.symbol(f"__ksymtab_{symbol}", table, 12 * position, LOCAL)
        file.symbol(f"__crc_{symbol}", numbers, 4 * position, LOCAL)
        file.symbol(f"__kstrtabns_{symbol}", strings, 1 if namespace else 0, LOCAL)


def appended(signature: bytes, kind: int = 2, **fields: int) -> bytes:
    """A signature with its description and the magic line, as sign-file appends it."""
    values = {"algorithm": 0, "hash": 0, "kind": kind, "signer": 0, "key": 0, "size": len(signature)}
    return signature + struct.pack(">BBBBB3xI", *{**values, **fields}.values()) + SIGNATURE_MAGIC


def pkcs7(
    names: Mapping[str, str], serial: int, digest: str = "sha256", key_id: Optional[bytes] = None
) -> bytes:
    """A PKCS#7 signature by that issuer and serial number, or by a key id; it proves nothing."""
    if key_id is None:
        name = x509.Name.build(dict(names))
        issuer = cms.IssuerAndSerialNumber({"issuer": name, "serial_number": serial})
        signer = cms.SignerIdentifier("issuer_and_serial_number", issuer)
    else:
        signer = cms.SignerIdentifier("subject_key_identifier", key_id)
    algorithm = algos.DigestAlgorithm({"algorithm": digest})
    info = cms.SignerInfo(
        {
            "version": "v1" if key_id is None else "v3",
            "sid": signer,
            "digest_algorithm": algorithm,
            "signature_algorithm": {"algorithm": "rsassa_pkcs1v15"},
            "signature": b"\x55" * 64,
        }
    )
    signed = cms.SignedData(
        {
            "version": "v1",
            "digest_algorithms": [algorithm],
            "encap_content_info": {"content_type": "data"},
            "signer_infos": [info],
        }
    )
    return bytes(cms.ContentInfo({"content_type": "signed_data", "content": signed}).dump())
