"""Whether headers are the running kernel's: what proves it, and what contradicts it."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Mapping, Optional

import pytest
from elf_files import module
from kernel_trees import (
    CONFIG,
    RELEASE,
    SYMBOLS,
    Files,
    build_tree,
    config_text,
    symvers_text,
    toolkit,
    under,
)
from trees import Link, write_tree

from nvdriver_build.errors import HeadersMismatch
from nvdriver_build.kernel import Proof, RunningKernel, find_headers, prove, target_from_headers

UTS_VERSION = "#1 SMP PREEMPT_DYNAMIC Thu May 9 12:00:00 UTC 2024"
RUNNING = RunningKernel(RELEASE, UTS_VERSION, "x86_64")
VERMAGIC = f"{RELEASE} SMP preempt mod_unload modversions "
OTHER_CRC = {**SYMBOLS, "printk": 0x99999999}


def node(
    symbols: Optional[Mapping[str, int]] = None,
    config: Optional[Mapping[str, str]] = None,
    module_crcs: Optional[Mapping[str, int]] = None,
    vermagic: str = VERMAGIC,
) -> Files:
    """The module folder of a node, with symvers, config and one in-tree module where they are given."""
    files: Files = {"modules.order": ""}
    if symbols is not None:
        files["symvers.gz"] = gzip.compress(symvers_text(symbols).encode())
    if config is not None:
        files["config"] = config_text(config)
    if module_crcs is not None:
        in_tree = module([f"vermagic={vermagic}", "name=x"], module_crcs)
        files["kernel/drivers/x/x.ko"] = in_tree.build()
    return files


def proof(
    folder: Path, tree: Files, generated: Optional[Files] = None, running: RunningKernel = RUNNING
) -> Proof:
    """`prove` for headers with some more generated files and a node with `tree`."""
    files = {**build_tree(like="5.16"), **under("include/generated", generated or {})}
    found = find_headers(write_tree(folder / "headers", files))
    return prove(found, target_from_headers(found), running, write_tree(folder / "tree", tree))


def uts(version: str) -> str:
    return f'#define UTS_VERSION "{version}"\n'


def test_symvers_and_config_prove(tmp_path: Path) -> None:
    """The node's own symbols and settings, all equal, are the strongest proof."""
    found = proof(tmp_path, node(SYMBOLS, CONFIG, SYMBOLS), {"utsversion.h": uts(UTS_VERSION)})
    assert found == Proof(
        "symvers", f"3 exported symbols and {len(CONFIG) - 2} settings equal the node's own"
    )


def test_symvers_alone_prove(tmp_path: Path) -> None:
    """A node without its configuration is compared by symbols."""
    assert proof(tmp_path, node(SYMBOLS)) == Proof("symvers", "3 exported symbols equal the node's own")


def test_compiler_text_and_salt_may_differ(tmp_path: Path) -> None:
    """Settings that change no layout do not contradict."""
    config = {**CONFIG, "CC_VERSION_TEXT": '"gcc (GCC) 11.4.0"', "BUILD_SALT": '"x"'}
    assert proof(tmp_path, node(SYMBOLS, config)).by == "symvers"


def test_other_crc_contradicts(tmp_path: Path) -> None:
    """One CRC that differs under the same release is another build: symbol and both CRCs are told."""
    with pytest.raises(HeadersMismatch, match=r"same release .* another build") as caught:
        proof(tmp_path, node(OTHER_CRC))
    assert "printk has CRC 0x99999999 in the node's symvers and 0x22222222" in str(caught.value)


def test_symbol_that_headers_lack_contradicts(tmp_path: Path) -> None:
    """A symbol of the node that the headers do not know is another build."""
    with pytest.raises(HeadersMismatch, match=r"vmalloc has CRC 0x44444444 .* and is missing in"):
        proof(tmp_path, node({**SYMBOLS, "vmalloc": 0x44444444}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"NR_CPUS": "8192"}, "CONFIG_NR_CPUS is 8192 in .*/config of the node and not set in"),
        ({"SMP": "n"}, "CONFIG_SMP is n in .* and y in"),
    ],
)
def test_other_setting_contradicts(tmp_path: Path, change: dict[str, str], message: str) -> None:
    """CRCs do not see inlines and macros: a setting that differs is another build, though all CRCs agree."""
    with pytest.raises(HeadersMismatch, match=message):
        proof(tmp_path, node(SYMBOLS, {**CONFIG, **change}))


@pytest.mark.parametrize("name", ["utsversion.h", "compile.h"])
def test_build_proves(tmp_path: Path, name: str) -> None:
    """UTS_VERSION, which is in utsversion.h since Linux 6.1 and in compile.h before, equals `uname -v`."""
    text = f'/* generated */\n#define UTS_MACHINE "x86_64"\n{uts(UTS_VERSION)}'
    assert proof(tmp_path, node(), {name: text}) == Proof(
        "build", f"UTS_VERSION equals uname -v: {UTS_VERSION}"
    )


@pytest.mark.parametrize("name", ["utsversion.h", "compile.h"])
def test_other_build_contradicts(tmp_path: Path, name: str) -> None:
    """Another UTS_VERSION under the same release is another build; both are told."""
    with pytest.raises(HeadersMismatch, match="another build") as caught:
        proof(tmp_path, node(), {name: uts("#2 SMP Fri May 10")})
    assert "'#2 SMP Fri May 10'" in str(caught.value)
    assert UTS_VERSION in str(caught.value)


def test_compile_h_without_version(tmp_path: Path) -> None:
    """A compile.h without UTS_VERSION, as since Linux 6.1, says nothing."""
    assert proof(tmp_path, node(), {"compile.h": '#define UTS_MACHINE "x86_64"\n'}).by == "release"


def test_modules_prove(tmp_path: Path) -> None:
    """The CRCs and the vermagic of in-tree modules agree."""
    found = proof(tmp_path, node(module_crcs=SYMBOLS))
    assert found == Proof("modules", "vermagic and 3 CRCs of 1 in-tree modules agree")


@pytest.mark.parametrize(
    ("crcs", "message"),
    [
        (OTHER_CRC, "x.ko of the node needs printk with CRC 0x99999999, headers: 0x22222222"),
        (
            {"vmalloc": 0x44444444},
            "x.ko of the node needs vmalloc with CRC 0x44444444, headers: no such symbol",
        ),
    ],
)
def test_modules_contradict(tmp_path: Path, crcs: dict[str, int], message: str) -> None:
    """An in-tree module that would not load with the headers' symbols shows another build."""
    with pytest.raises(HeadersMismatch, match=re.escape(message)):
        proof(tmp_path, node(module_crcs=crcs))


def test_vermagic_of_modules_contradicts(tmp_path: Path) -> None:
    """An in-tree module of another vermagic shows another build."""
    with pytest.raises(HeadersMismatch, match=re.escape(f"{RELEASE} SMP mod_unload ")):
        proof(tmp_path, node(module_crcs=SYMBOLS, vermagic=f"{RELEASE} SMP mod_unload "))


def test_modules_without_crcs_prove_nothing(tmp_path: Path) -> None:
    """A vermagic is no more than the release: without CRCs the release is all that was compared."""
    assert proof(tmp_path, node(module_crcs={})).by == "release"


@pytest.mark.parametrize("tree", [{}, {"kernel/x.ko": b"junk"}])
def test_only_the_release_is_left(tmp_path: Path, tree: Files) -> None:
    """Where nothing can be compared, the proof says that only the release was."""
    assert proof(tmp_path, tree) == Proof("release", "only the release string could be compared")


def test_absent_module_folder(tmp_path: Path) -> None:
    """The node's module folder may be absent."""
    found = find_headers(write_tree(tmp_path / "h", build_tree()))
    assert prove(found, target_from_headers(found), RUNNING, tmp_path / "no/such").by == "release"


@pytest.mark.parametrize(
    "running",
    [RunningKernel("6.1.0-9-amd64", UTS_VERSION, "x86_64"), RunningKernel(RELEASE, UTS_VERSION, "arm64")],
)
def test_other_kernel_is_refused_first(tmp_path: Path, running: RunningKernel) -> None:
    """Another release or architecture is refused, whatever else would agree."""
    with pytest.raises(HeadersMismatch, match="this node"):
        proof(tmp_path, node(SYMBOLS), running=running)


@pytest.mark.parametrize("place", ["", "usr/lib/modules/{release}/build", "lib/modules/{release}/build"])
@pytest.mark.parametrize("lib", ["lib", "usr/lib"])
def test_a_toolkits_own_modules_prove_nothing(tmp_path: Path, place: str, lib: str) -> None:
    """Inside a toolkit its own module folder says nothing of the node, by whichever path the headers came."""
    files = {**toolkit(RELEASE), **under(f"usr/lib/modules/{RELEASE}", node(SYMBOLS, CONFIG, SYMBOLS))}
    files[f"usr/lib/modules/{RELEASE}/build"] = Link(f"../../../src/kernels/{RELEASE}")
    root = write_tree(tmp_path, files)
    found = find_headers(root / place.format(release=RELEASE))
    tree = root / lib / "modules" / RELEASE
    assert prove(found, target_from_headers(found), RUNNING, tree).by == "release"


def test_a_toolkit_against_the_nodes_modules(tmp_path: Path) -> None:
    """The node's own folder, elsewhere, proves and contradicts a toolkit's headers."""
    root = write_tree(tmp_path / "dtk", toolkit(RELEASE))
    found = find_headers(root)
    target = target_from_headers(found)
    good = write_tree(tmp_path / f"good/lib/modules/{RELEASE}", node(SYMBOLS))
    assert prove(found, target, RUNNING, good).by == "symvers"
    bad = write_tree(tmp_path / f"bad/lib/modules/{RELEASE}", node(OTHER_CRC))
    with pytest.raises(HeadersMismatch):
        prove(found, target, RUNNING, bad)
