"""What headers and module folders say of a kernel: vermagic, symbols, configuration, flavour."""

from __future__ import annotations

import gzip
import lzma
import subprocess
from pathlib import Path
from typing import Mapping

import pytest
from elf_files import module
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_trees import CONFIG, PREEMPT, RELEASE, SYMBOLS, build_tree, config_text, symvers_text
from trees import write_tree

from nvdriver_build.errors import HeadersError, HeadersMismatch
from nvdriver_build.kernel import find_headers, parse_symvers, target_from_headers, target_from_modules
from nvdriver_build.kernel.config import digest, parse_config
from nvdriver_build.kernel.target import Symbol, flavour

SWITCHES = ("SMP", "PREEMPT", "PREEMPT_BUILD", "PREEMPT_RT", "MODULE_UNLOAD", "MODVERSIONS", "RANDSTRUCT")
ARCH_VERMAGIC = {"X86_64": '""', "ARM64": '"aarch64"'}
"""MODULE_ARCH_VERMAGIC of arch/x86 (64 bit) and arch/arm64, include/asm/vermagic.h."""
SEED = "0123456789abcdef"


def preprocess(folder: Path, config: Mapping[str, str], header: str, arch: str) -> str:
    """VERMAGIC_STRING as gcc makes it of the real header's text."""
    write_tree(
        folder,
        {
            "h/generated/utsrelease.h": f'#define UTS_RELEASE "{RELEASE}"',
            "h/generated/randstruct_hash.h": f'#define RANDSTRUCT_HASHED_SEED "{SEED}"',
            "h/asm/vermagic.h": f"#define MODULE_ARCH_VERMAGIC {ARCH_VERMAGIC[arch]}",
            "h/vermagic.h": header,
            "x.c": '#include "vermagic.h"\nBEGIN VERMAGIC_STRING\n',
        },
    )
    macros = [f"-DCONFIG_{name}=1" for name, value in config.items() if value == "y"]
    randstruct = ["-DRANDSTRUCT"] if config.get("RANDSTRUCT") == "y" else []
    command = ["gcc", "-E", "-P", "-I", str(folder / "h"), *macros, *randstruct, str(folder / "x.c")]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return "".join(out.partition("BEGIN")[2].split('"')[1::2])


@settings(max_examples=80, deadline=None)
@given(
    on=st.sets(st.sampled_from(SWITCHES)),
    arch=st.sampled_from(["X86_64", "ARM64"]),
    like=st.sampled_from(sorted(PREEMPT)),
)
def test_vermagic_is_what_the_preprocessor_makes(
    tmp_path_factory: pytest.TempPathFactory, on: set[str], arch: str, like: str
) -> None:
    """For any configuration the vermagic is VERMAGIC_STRING, whatever the order of its branches."""
    folder = tmp_path_factory.mktemp("vermagic")
    config = {arch: "y", **dict.fromkeys(sorted(on), "y")}
    randstruct = f'#define RANDSTRUCT_HASHED_SEED "{SEED}"'
    tree = build_tree(config=config, like=like)
    tree["include/generated/randstruct_hash.h"] = randstruct
    write_tree(folder / "tree", tree)
    wanted = preprocess(folder, config, str(tree["include/linux/vermagic.h"]), arch)
    assert target_from_headers(find_headers(folder / "tree")).vermagic == wanted


def test_vermagic_h_that_cannot_be_read(tmp_path: Path) -> None:
    """It is a part of the headers, so it is told as they are; the system's word alone was exit 2."""
    tree = build_tree()
    tree["include/linux/vermagic.h/x"] = tree.pop("include/linux/vermagic.h")
    with pytest.raises(HeadersError, match=r"vermagic\.h cannot be read: Is a directory"):
        target_from_headers(find_headers(write_tree(tmp_path, tree)))


def test_vermagic_of_a_shuffled_kernel_up_to_5_18(tmp_path: Path) -> None:
    """The plugin's setting, header and word had other names before Linux 5.19."""
    tree = build_tree(config={**CONFIG, "GCC_PLUGIN_RANDSTRUCT": "y"})
    tree["include/generated/randomize_layout_hash.h"] = f'#define RANDSTRUCT_HASHED_SEED "{SEED}"\n'
    target = target_from_headers(find_headers(write_tree(tmp_path, tree)))
    assert target.vermagic == f"{RELEASE} SMP mod_unload modversions RANDSTRUCT_PLUGIN_{SEED}"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"PREEMPT": "y"}, "SMP preempt mod_unload modversions "),
        ({"PREEMPT_RT": "y"}, "SMP preempt_rt mod_unload modversions "),
        ({}, "SMP mod_unload modversions "),
        ({"X86_64": "n", "ARM64": "y"}, "SMP mod_unload modversions aarch64"),
    ],
)
def test_rhel9_vermagic(tmp_path: Path, changes: dict[str, str], words: str) -> None:
    """A 5.14 that asks for PREEMPT, not PREEMPT_BUILD; the strings are as its modules carry them."""
    tree = write_tree(tmp_path, build_tree(config={**CONFIG, **changes}, like="5.4"))
    assert target_from_headers(find_headers(tree)).vermagic == f"{RELEASE} {words}"


def test_facts_of_headers(tmp_path: Path) -> None:
    """A target holds what the files say, and the digests of their bytes."""
    target = target_from_headers(find_headers(write_tree(tmp_path, build_tree())))
    assert (target.release, target.arch, target.flavour, target.modversions) == (
        RELEASE,
        "x86_64",
        "standard",
        True,
    )
    assert target.compiler == "gcc (GCC) 11.4.1 20230605 (Red Hat 11.4.1-2)"
    assert target.symbols == {name: Symbol(crc, "vmlinux", False, None) for name, crc in SYMBOLS.items()}
    assert target.origin == str(tmp_path)


@pytest.mark.parametrize("name", [".config", "Module.symvers"])
def test_missing_file_is_told(tmp_path: Path, name: str) -> None:
    """Headers without configuration or symbols are told by the file's path."""
    tree = write_tree(tmp_path, build_tree())
    (tree / name).unlink()
    with pytest.raises(HeadersError, match=f"{tree}/{name}"):
        target_from_headers(find_headers(tree))


def test_other_architecture_is_refused(tmp_path: Path) -> None:
    """A kernel of neither x86_64 nor arm64 is refused."""
    tree = write_tree(tmp_path, build_tree(config={"S390": "y"}))
    with pytest.raises(HeadersError, match="neither of x86_64 nor of arm64"):
        target_from_headers(find_headers(tree))


def test_empty_config_is_refused(tmp_path: Path) -> None:
    """An empty configuration is told as such."""
    with pytest.raises(HeadersError, match="the configuration is empty"):
        target_from_headers(find_headers(write_tree(tmp_path, build_tree(config={}))))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("garbage\n", "line 1: 'garbage'"),
        (symvers_text() + "0x1\tx\n", "line 4"),
        ("xyz\tprintk\tvmlinux\tEXPORT_SYMBOL\t\n", "line 1"),
        ("0x1\t\tvmlinux\tEXPORT_SYMBOL\t\n", "line 1"),
        ("0x1\tprintk\tvmlinux\tprintk\t\n", "line 1"),
        (symvers_text()[:-1], "ends within a line"),
        (symvers_text()[:-16], "line 3"),
        (symvers_text(dict.fromkeys(SYMBOLS, 0)), "has no CRC although"),
    ],
)  # fmt: skip
def test_damaged_symvers(tmp_path: Path, text: str, message: str) -> None:
    """An empty, damaged or cut Module.symvers, or one without CRCs, is told with file and line."""
    tree = write_tree(tmp_path, build_tree(symvers=text))
    with pytest.raises(HeadersError, match=f"{tree}/Module.symvers.*{message}"):
        target_from_headers(find_headers(tree))


@given(cut=st.integers(1, len(symvers_text()) - 1))
def test_symvers_cut_anywhere(cut: int) -> None:
    """A Module.symvers is refused wherever it is cut, but at the end of a line."""
    text = symvers_text()[:cut]
    if text.endswith("\n"):
        assert parse_symvers(text.encode(), "x")
        return
    with pytest.raises(HeadersError):
        parse_symvers(text.encode(), "x")


def test_zero_crcs_without_modversions(tmp_path: Path) -> None:
    """Where the kernel has no modversions all CRCs are zero, and that is fine."""
    config = {**CONFIG, "MODVERSIONS": "n"}
    tree = write_tree(tmp_path, build_tree(config=config, symvers=symvers_text(dict.fromkeys(SYMBOLS, 0))))
    target = target_from_headers(find_headers(tree))
    assert not target.modversions
    assert target.vermagic.endswith("mod_unload ")


@pytest.mark.parametrize(("modversions", "differ"), [("n", True), ("y", False)])
def test_two_builds_of_one_release(tmp_path: Path, modversions: str, differ: bool) -> None:
    """Without CRCs the symbols of two builds are equal: `uname -v` keeps their sets apart."""
    config = {**CONFIG, "MODVERSIONS": modversions}
    symvers = symvers_text(dict.fromkeys(SYMBOLS, int(modversions == "y")))
    found = set()
    for build in ("#1 SMP Mon", "#2 SMP Tue"):
        files = build_tree(config=config, symvers=symvers)
        files["include/generated/utsversion.h"] = f'#define UTS_VERSION "{build}"\n'
        found.add(target_from_headers(find_headers(write_tree(tmp_path / build[1], files))).symvers_sha256)
    assert (len(found) == 2) == differ


@pytest.mark.parametrize(
    ("export", "gpl_only"),
    [
        ("EXPORT_SYMBOL", False), ("EXPORT_SYMBOL_GPL", True),
        ("EXPORT_UNUSED_SYMBOL", False), ("EXPORT_UNUSED_SYMBOL_GPL", True),
    ],
)  # fmt: skip
def test_symvers_rows(export: str, gpl_only: bool) -> None:
    """Module, GPL mark and namespace of a row, with the fifth column or without."""
    row = f"0xdeadbeef\tx\tdrivers/gpu/drm/drm\t{export}"
    symbol = Symbol(0xDEADBEEF, "drivers/gpu/drm/drm", gpl_only, None)
    assert parse_symvers(f"{row}\n".encode(), "x") == {"x": symbol}
    assert parse_symvers(f"{row}\t\n".encode(), "x") == {"x": symbol}
    assert parse_symvers(f"{row}\tDMA_BUF\n".encode(), "x") == {"x": symbol._replace(namespace="DMA_BUF")}


@pytest.mark.parametrize(
    ("release", "config", "wanted"),
    [
        (RELEASE, {}, "standard"),
        ("5.14.0-427.13.1.el9_4.x86_64+rt", {"PREEMPT_RT": "y"}, "rt"),
        ("5.14.0-70.13.1.rt21.83.el9_0.x86_64", {"PREEMPT_RT": "y"}, "rt"),
        ("5.14.0-427.13.1.el9_4.aarch64+64k", {"ARM64_64K_PAGES": "y"}, "64k"),
        ("5.14.0-427.13.1.el9_4.x86_64+debug", {}, "debug"),
        ("6.1.0-9-debug-amd64", {}, "debug"),
        ("6.1.0-9-debugger", {}, "standard"),
        ("5.14.0-1.rt.x86_64", {}, "standard"),
    ],
)  # fmt: skip
def test_flavour(release: str, config: dict[str, str], wanted: str) -> None:
    """The configuration tells rt and 64k, the name tells debug."""
    assert flavour(release, config) == wanted


def node_folder(folder: Path, suffix: str) -> Path:
    """/lib/modules/R as RHEL's kernel-core fills it."""
    data = symvers_text().encode()
    packed = gzip.compress(data) if suffix == "gz" else lzma.compress(data)
    return write_tree(folder, {f"symvers.{suffix}": packed, "config": config_text(CONFIG)})


@pytest.mark.parametrize("suffix", ["gz", "xz"])
def test_module_folder_equals_headers(tmp_path: Path, suffix: str) -> None:
    """A node's module folder gives the target that the headers of that kernel give."""
    headers = target_from_headers(find_headers(write_tree(tmp_path / "h", build_tree(like="5.16"))))
    node = target_from_modules(node_folder(tmp_path / "m", suffix), RELEASE)
    for name in (
        "release",
        "arch",
        "flavour",
        "vermagic",
        "symbols",
        "config",
        "symvers_sha256",
        "config_sha256",
    ):
        assert getattr(node, name) == getattr(headers, name)


def test_module_folder_takes_vermagic_of_its_modules(tmp_path: Path) -> None:
    """Where in-tree modules are there, their vermagic counts: a damaged one is passed over."""
    tree = node_folder(tmp_path, "gz")
    vermagic = f"{RELEASE} SMP mod_unload modversions "
    write_tree(
        tree, {"kernel/a/a.ko": b"junk", "kernel/b/b.ko": module(["name=b", f"vermagic={vermagic}"]).build()}
    )
    assert target_from_modules(tree, RELEASE).vermagic == vermagic


def test_module_folder_of_another_kernel(tmp_path: Path) -> None:
    """A folder whose modules are of another kernel is refused with both releases."""
    tree = node_folder(tmp_path, "xz")
    write_tree(tree, {"kernel/b.ko": module(["name=b", "vermagic=6.1.0-9-amd64 SMP "]).build()})
    with pytest.raises(HeadersMismatch, match=rf"of kernel 6\.1\.0-9-amd64, not {RELEASE}"):
        target_from_modules(tree, RELEASE)


def test_module_folder_without_symvers(tmp_path: Path) -> None:
    """A module folder that does not hold its symbols (Debian's) says to give headers."""
    with pytest.raises(HeadersError, match=r"no symvers\.gz or symvers\.xz") as caught:
        target_from_modules(tmp_path, RELEASE)
    assert "headers" in str(caught.value.hint)


@pytest.mark.parametrize("suffix", ["gz", "xz"])
@pytest.mark.parametrize("damage", [b"", b"not packed", None])
def test_damaged_packed_symvers(tmp_path: Path, suffix: str, damage: bytes | None) -> None:
    """A packed symvers that is empty, of another format or cut short is told by its path."""
    tree = node_folder(tmp_path, suffix)
    packed = tree / f"symvers.{suffix}"
    packed.write_bytes(packed.read_bytes()[:-12] if damage is None else damage)
    with pytest.raises(HeadersError, match=f"{tree}/symvers"):
        target_from_modules(tree, RELEASE)


def test_config_is_read_as_written() -> None:
    """Settings keep their values; what is not set is not there; quotes go."""
    config = parse_config(
        'CONFIG_A=y\nCONFIG_B="text = x"\n# CONFIG_C is not set\nCONFIG_D=0x10\nCONFIG_E\n\njunk\n'
    )
    assert config == {"A": "y", "B": "text = x", "D": "0x10"}


@given(order=st.permutations(sorted(CONFIG)))
def test_config_digest_ignores_order_and_names(order: list[str]) -> None:
    """Order, salt, local version, keys and the compiler's text do not count; any other setting does."""
    shuffled = {name: CONFIG[name] for name in order}
    other = {
        **shuffled,
        "BUILD_SALT": "x",
        "LOCALVERSION": "-x",
        "CC_VERSION_TEXT": "x",
        "MODULE_SIG_KEY": "k",
    }
    assert digest(CONFIG) == digest(shuffled) == digest(other)
    assert digest({**CONFIG, "SMP": "n"}) != digest(CONFIG)
    assert digest({**CONFIG, "NR_CPUS": "8"}) != digest(CONFIG)
