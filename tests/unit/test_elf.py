"""What `read_module` says of sound modules of every class, byte order and age."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Mapping, Sequence

import pytest
import zstandard
from attrs import evolve
from elf_files import ABS, LOCAL, NOBITS, NOTE, OBJECT_SECTION, WEAK, ElfFile, appended, export, module, pkcs7
from pytest_mock import MockerFixture

from nvdriver_build.elf import Export, ModuleFacts, Signature, canonical_name, read_module
from nvdriver_build.errors import ModuleFormatError

KINDS: Dict[str, Dict[str, Any]] = {
    "x86_64": {"bits": 64, "order": "<", "machine": 62},
    "arm64": {"bits": 64, "order": "<", "machine": 183},
    "s390x": {"bits": 64, "order": ">", "machine": 22},
    "arm": {"bits": 32, "order": "<", "machine": 40},
    "ppc": {"bits": 32, "order": ">", "machine": 20},
}
LONG_NAME = "_RNvMNtCs_a_name_of_rust_that_is_longer_than_the_56_bytes_of_a_version_entry"

Read = Callable[..., ModuleFacts]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Write a module and read it."""

    def read_file(file: ElfFile, signature: bytes = b"") -> ModuleFacts:
        path = tmp_path / "sample.ko"
        path.write_bytes(file.build() + signature)
        return read_module(path)

    return read_file


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Dict[str, Any]:
    """Class, byte order and machine of an ELF file."""
    return dict(KINDS[request.param])


@pytest.mark.parametrize("name", KINDS)
def test_machine(read: Read, name: str) -> None:
    """Machine, word size and byte order are told in the kernel's words."""
    facts = read(module(**KINDS[name]))
    assert (facts.machine, facts.bits) == (name, KINDS[name]["bits"])
    assert facts.byteorder == ("little" if KINDS[name]["order"] == "<" else "big")


def test_unknown_machine(read: Read) -> None:
    """A machine that has no name here is told as ELF has it, a number if need be."""
    assert read(module(machine=43)).machine == "sparcv9"
    assert read(module(machine=60000)).machine == "60000"


def test_modinfo(read: Read, kind: Dict[str, Any]) -> None:
    """.modinfo is given whole and in order: repeated keys, empty values, padding, odd bytes."""
    file = ElfFile(**kind)
    file.section(".gnu.linkonce.this_module", bytes(8))
    file.section(".modinfo", b"name=a_b\0\0\0alias=x=y\0alias=\0flag\0author=J\xfcrgen \xe2\x82\xac\0")
    facts = read(file)
    assert facts.modinfo == (
        ("name", "a_b"),
        ("alias", "x=y"),
        ("alias", ""),
        ("flag", ""),
        ("author", "J\\xfcrgen €"),
    )
    assert (facts.all("alias"), facts.first("alias"), facts.first("none")) == (("x=y", ""), "x=y", None)


def test_modinfo_properties(read: Read) -> None:
    """The fields that have a name of their own are the first of their key; lists are split."""
    facts = read(
        module(
            modinfo=(
                "version=535.1",
                "license=NVIDIA",
                "license=GPL",
                "import_ns=DMA_BUF",
                "import_ns=CXL",
                "srcversion=AB12",
                "depends=nvidia-uvm,drm",
                "vermagic=6.1.0 SMP ",
                "name=sample",
            )
        )
    )
    assert (facts.version, facts.license, facts.srcversion) == ("535.1", "NVIDIA", "AB12")
    assert (facts.vermagic, facts.depends) == ("6.1.0 SMP ", ("nvidia-uvm", "drm"))
    assert facts.import_ns == ("DMA_BUF", "CXL")


def test_absent_fields(read: Read) -> None:
    """What a module does not have is None or empty."""
    facts = read(module(modinfo=("name=sample", "depends=")))
    assert (facts.version, facts.vermagic, facts.srcversion, facts.license) == (None, None, None, None)
    assert (facts.depends, facts.import_ns, facts.build_id, facts.signature) == ((), (), None, None)
    assert (facts.needed, facts.undefined, facts.weak, facts.exports) == ({}, (), (), {})


@pytest.mark.parametrize(
    ("stated", "name"),
    [
        (["name=nvidia_uvm"], "nvidia_uvm"),
        (["name=nvidia-uvm"], "nvidia_uvm"),
        (["name=first", "name=second"], "first"),
        (["license=GPL"], "sample"),
    ],
)
def test_name(read: Read, stated: Sequence[str], name: str) -> None:
    """The name is the first of .modinfo, or of the file where .modinfo has none, with `_` for `-`."""
    assert read(module(modinfo=stated)).name == name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("nvidia", "nvidia"),
        ("nvidia-uvm", "nvidia_uvm"),
        ("nvidia-uvm.ko", "nvidia_uvm"),
        ("nvidia-uvm.ko.xz", "nvidia_uvm"),
        ("crc-t10dif.ko.gz", "crc_t10dif"),
        ("i2c-core.ko.zst", "i2c_core"),
        ("a.kofi", "a.kofi"),
    ],
)
def test_canonical_name(text: str, name: str) -> None:
    """One name for a module however it is written."""
    assert canonical_name(text) == name


def test_needed_versions(read: Read, kind: Dict[str, Any]) -> None:
    """CRCs of __versions are given by symbol, module_layout too."""
    crcs = {"module_layout": 0xDEADBEEF, "printk": 0x00000001, "n" * 55: 0xFFFFFFFF}
    assert read(module(crcs=crcs, **kind)).needed == crcs


def extended(file: ElfFile, crcs: Mapping[str, int]) -> None:
    """Add the version sections of Linux 6.14."""
    file.section("__version_ext_crcs", file.pack(f"{len(crcs)}I", *crcs.values()))
    file.section("__version_ext_names", b"".join(name.encode() + b"\0" for name in crcs))


def test_extended_versions(read: Read, kind: Dict[str, Any]) -> None:
    """CRCs of long names come from the sections of Linux 6.14, which stand alone or beside __versions."""
    crcs = {"module_layout": 0x11223344, LONG_NAME: 0xAABBCCDD}
    alone = module(**kind)
    extended(alone, crcs)
    both = module(crcs={"module_layout": 0x11223344}, **kind)
    extended(both, crcs)
    for file, has_versions in ((alone, False), (both, True)):
        facts = read(file)
        assert (facts.needed, facts.has_versions) == (crcs, has_versions)


def test_undefined_symbols(read: Read, kind: Dict[str, Any]) -> None:
    """Undefined symbols are sorted, weak ones apart, defined ones left out."""
    file = module(**kind)
    code = file.section(".text", bytes(16))
    for name, section, info in [
        ("printk", 0, 0x10),
        ("kfree", 0, 0x10),
        ("maybe", 0, WEAK),
        ("init_module", code, 0x12),
        ("weak_here", code, WEAK | 2),
    ]:
        file.symbol(name, section, info=info)
    facts = read(file)
    assert (facts.undefined, facts.weak) == (("kfree", "printk"), ("maybe",))


def test_exports(read: Read, kind: Dict[str, Any]) -> None:
    """Exports of Linux 6.1 to 7.0: CRCs in four bytes, GPL by section, namespaces."""
    file = module(**kind)
    export(file, {"open_one": 0x01020304, "open_two": 0xF0E0D0C0})
    export(file, {"gpl_one": 0xCAFEBABE}, gpl=True, namespace="NVIDIA")
    assert read(file).exports == {
        "open_one": Export(0x01020304, False, None),
        "open_two": Export(0xF0E0D0C0, False, None),
        "gpl_one": Export(0xCAFEBABE, True, "NVIDIA"),
    }


def test_absolute_crcs(read: Read, kind: Dict[str, Any]) -> None:
    """Up to Linux 5.18 32 bits of an absolute symbol are the CRC; a weak undefined one means none."""
    file = module(**kind)
    wide = 0xFFFFFFFF00000000 if file.bits == 64 else 0
    table = file.section("__ksymtab", bytes(24))
    for symbol in ("one", "two"):
        file.symbol(f"__ksymtab_{symbol}", table, 0, LOCAL)
    file.symbol("__crc_one", ABS, wide | 0xFEDCBA98)
    file.symbol("__crc_two", 0, 0, WEAK)
    facts = read(file)
    assert facts.exports == {"one": Export(0xFEDCBA98, False, None), "two": Export(None, False, None)}
    assert facts.weak == ("__crc_two",)


def test_crcs_in_read_only_data(read: Read, kind: Dict[str, Any]) -> None:
    """With MODULE_REL_CRCS, up to Linux 5.18, a CRC lies anywhere in a section of constants."""
    file = module(**kind)
    table = file.section("___ksymtab_gpl+one", bytes(24))
    data = file.section(".rodata", bytes(7) + file.pack("I", 0x0BADCAFE) + bytes(5))
    file.symbol("__ksymtab_one", table, 0, LOCAL)
    file.symbol("__crc_one", data, 7, LOCAL)
    assert read(file).exports == {"one": Export(0x0BADCAFE, True, None)}


def test_flags_of_linux_7(read: Read, kind: Dict[str, Any]) -> None:
    """From Linux 7.1 on all exports stand in one table, and bit 0 of a byte says GPL only."""
    file = module(**kind)
    table, flags = file.section("__ksymtab", bytes(72)), file.section("__kflagstab", bytes([0, 1, 2]))
    for position, symbol in enumerate(("free", "gpl", "other")):
        file.symbol(f"__ksymtab_{symbol}", table, 24 * position, LOCAL)
        file.symbol(f"__flags_{symbol}", flags, position, LOCAL)
    assert read(file).exports == {
        "free": Export(None, False, None),
        "gpl": Export(None, True, None),
        "other": Export(None, False, None),
    }


def test_variable_that_only_looks_like_flags(read: Read) -> None:
    """A variable `__flags_X` of an exported X says nothing about it, wherever it lies."""
    file = module()
    export(file, {"one": 1, "two": 2, "three": 3})
    file.symbol("__flags_one", file.section(".data", b"\1"), 0, LOCAL)
    file.symbol("__flags_two", file.section(".bss", b"\1", NOBITS), 0, LOCAL)
    file.symbol("__flags_three", ABS, 1, LOCAL)
    assert not [name for name, export in read(file).exports.items() if export.gpl_only]


def test_symbols_that_only_look_like_exports(read: Read) -> None:
    """A section symbol `__ksymtab_strings` and marks outside the export tables are no exports."""
    file = module()
    strings = file.section("__ksymtab_strings", b"\0")
    code = file.section(".text", bytes(8))
    file.symbol("__ksymtab_strings", strings, 0, OBJECT_SECTION)
    file.symbol("__ksymtab_gpl", file.section("__ksymtab_gpl"), 0, OBJECT_SECTION)
    file.symbol("__ksymtab_stray", code, 0, LOCAL)
    file.symbol("__crc_alone", ABS, 1)
    assert read(file).exports == {}


def test_build_id(read: Read, kind: Dict[str, Any]) -> None:
    """The build id is found among other notes of its section, whatever their length."""
    file = module(**kind)
    other = file.pack("III8s", 6, 5, 3, b"Linux\0\0\0") + b"12345\0\0\0"
    abi = file.pack("III4s4x", 4, 4, 1, b"GNU\0")
    file.section(".note.gnu.build-id", other + abi + file.build_id(bytes(range(20))), NOTE)
    assert read(file).build_id == bytes(range(20)).hex()


def test_sections_that_the_kernel_does_not_see(read: Read) -> None:
    """Sections that are not allocated do not count, as the kernel does not count them."""
    file = module()
    file.section("__versions", file.versions({"printk": 1}), flags=0)
    file.section(".modinfo", b"name=other\0", flags=0)
    facts = read(file)
    assert (facts.needed, facts.name) == ({}, "sample")


COMPRESSIONS: Dict[str, Callable[[bytes], bytes]] = {
    "xz": lambda data: lzma.compress(data, check=lzma.CHECK_CRC32),
    "gz": gzip.compress,
    "zst": zstandard.ZstdCompressor(write_content_size=False).compress,
}


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_compressed(tmp_path: Path, suffix: str) -> None:
    """A compressed module, whatever its name, says what the plain one says, digest and size included."""
    file = module(crcs={"printk": 7})
    file.section(".text", bytes(range(256)) * 5000)
    data = file.build() + appended(pkcs7({"common_name": "key"}, 5))
    plain, packed = tmp_path / "sample.ko", tmp_path / "packed"
    plain.write_bytes(data)
    packed.write_bytes(COMPRESSIONS[suffix](data))
    facts = read_module(packed)
    assert facts == evolve(read_module(plain), path=str(packed))
    assert (facts.sha256, facts.size) == (hashlib.sha256(data).hexdigest(), len(data))


def test_zstd_where_nobody_reads_it(tmp_path: Path, mocker: MockerFixture) -> None:
    """The package is compiled, so that images have none: what to do is said, and it is no bug."""
    mocker.patch.dict("sys.modules", zstandard=None)
    packed = tmp_path / "sample.ko.zst"
    packed.write_bytes(COMPRESSIONS["zst"](module().build()))
    with pytest.raises(ModuleFormatError, match="compressed by zstd, and this Python has no") as raised:
        read_module(packed)
    assert raised.value.hint == "unpack it first: zstd -d"


def test_no_digest(tmp_path: Path) -> None:
    """Without digest all but the digest is told."""
    path = tmp_path / "sample.ko"
    path.write_bytes(module().build())
    facts = read_module(str(path), digest=False)
    assert (facts.sha256, facts.size, facts.path) == (None, path.stat().st_size, str(path))


def test_signature(read: Read) -> None:
    """A PKCS#7 signature tells signer, whole issuer, serial number and hash; the digest covers it."""
    issuer = {"organization_name": "Example", "common_name": "Module key"}
    facts = read(module(), appended(pkcs7(issuer, 0x00A1B2C3, "sha512")))
    assert facts.signature == Signature(
        signer="Module key",
        issuer="Common Name: Module key, Organization: Example",
        serial="a1b2c3",
        hash="sha512",
    )
    assert facts.sha256 != read(module()).sha256


def test_signature_without_common_name(read: Read) -> None:
    """A signature by key id, or by an issuer without common name, tells what it holds."""
    by_key = read(module(), appended(pkcs7({}, 0, "sha3_256", key_id=b"\x01" * 20))).signature
    assert by_key == Signature(signer=None, issuer=None, serial=None, hash="sha3-256")
    nameless = read(module(), appended(pkcs7({"organization_name": "Example"}, 0))).signature
    assert nameless == Signature(signer=None, issuer="Organization: Example", serial="00", hash="sha256")


def test_old_signature(read: Read) -> None:
    """The form before PKCS#7, with signer and key id in plain text, is read as modinfo reads it."""
    data = appended(b"Old key" + b"\x0a\x0b" + b"\x55" * 8, kind=1, hash=4, signer=7, key=2, size=8)
    wanted = Signature(signer="Old key", issuer=None, serial="0a0b", hash="sha256")
    assert read(module(), data).signature == wanted


def test_signature_of_a_stripped_module_is_gone(read: Read) -> None:
    """Without the magic line at the very end there is no signature."""
    assert read(module(), appended(pkcs7({"common_name": "key"}, 5)) + b"\0").signature is None


SOURCE = """
#define SECTION(name) __attribute__((section(name), used, aligned(1)))
extern int printk(const char *, ...);
extern int optional(void) __attribute__((weak));
static const char info[] SECTION(".modinfo") = "name=built";
static const char license[] SECTION(".modinfo") = "license=GPL";
struct { char name[56]; } this_module SECTION(".gnu.linkonce.this_module");
int shared(void) { return printk("x") + (optional ? optional() : 0); }
__asm__(".section \\"__ksymtab_gpl\\",\\"a\\"\\n__ksymtab_shared:\\n.long 0, 0, 0\\n.previous\\n"
        ".section \\"__kcrctab_gpl\\",\\"a\\"\\n__crc_shared:\\n.long 0x1234abcd\\n.previous\\n"
        ".section \\"__ksymtab_strings\\",\\"aMS\\",%progbits,1\\n"
        "__kstrtabns_shared:\\n.asciz \\"SPACE\\"\\n.previous");
"""


def test_compiled_and_linked(tmp_path: Path) -> None:
    """What gcc and ld make is read alike with debug information and without."""
    source, whole, stripped = (tmp_path / name for name in ("built.c", "built.ko", "stripped.ko"))
    source.write_text(SOURCE)
    subprocess.run(("gcc", "-g", "-ffunction-sections", "-c", source, "-o", tmp_path / "built.o"), check=True)
    subprocess.run(("ld", "-r", "--build-id=sha1", tmp_path / "built.o", "-o", whole), check=True)
    subprocess.run(("strip", "--strip-debug", whole, "-o", stripped), check=True)
    facts = read_module(stripped)
    assert facts.modinfo == (("name", "built"), ("license", "GPL"))
    assert [name for name in facts.undefined if name != "_GLOBAL_OFFSET_TABLE_"] == ["printk"]
    assert (facts.weak, facts.exports) == (("optional",), {"shared": Export(0x1234ABCD, True, "SPACE")})
    notes = subprocess.run(("readelf", "-n", whole), stdout=subprocess.PIPE, check=True, text=True).stdout
    assert f"Build ID: {facts.build_id}\n" in notes
    assert evolve(read_module(whole), path=facts.path, sha256=facts.sha256, size=facts.size) == facts


LARGE = """
import resource, sys
from nvdriver_build.elf import read_module
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
read_module(sys.argv[1], digest=False)
before = peak()
facts = read_module(sys.argv[2])
print(facts.size, peak() - before)
"""


def test_memory(tmp_path: Path) -> None:
    """A module of 256 MiB is read, digest included, with less than 8 MiB more memory than a small one."""
    small, large = tmp_path / "small.ko", tmp_path / "large.ko"
    data = module(crcs={"printk": 7}).build()
    small.write_bytes(data)
    with large.open("wb") as file:
        file.write(data)
        file.truncate(256 * 1024**2)
    done = subprocess.run((sys.executable, "-c", LARGE, small, large), check=True, stdout=subprocess.PIPE)
    size, kibibytes = map(int, done.stdout.split())
    assert size == 256 * 1024**2
    assert kibibytes < 8 * 1024


def test_import_is_light() -> None:
    """Importing the reader brings in neither zstandard nor the reader of signatures."""
    heavy = "{'zstandard', 'asn1crypto'}"
    program = f"import sys, nvdriver_build.elf; assert not {heavy} & set(sys.modules)"
    subprocess.run((sys.executable, "-c", program), check=True)
