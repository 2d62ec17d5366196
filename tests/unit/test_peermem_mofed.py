"""Where MOFED is found, what of it is refused, and whether nvidia-peermem fits it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Mapping, Optional

import pytest
from facts import driver, export, kernel, symbol
from kernel_trees import Files
from trees import Link, write_tree

from nvdriver_build.elf import ModuleFacts
from nvdriver_build.errors import HeadersError, HeadersMismatch
from nvdriver_build.mofed import Mofed, Peers, find_mofed, parse_mofed, symvers_rows, with_mofed

RELEASE = "5.14.0-427.13.1.el9_4.x86_64"
OFA = "usr/src/ofa_kernel"
REGISTER, UNREGISTER = "ib_register_peer_memory_client", "ib_unregister_peer_memory_client"
CORE = "/build/drivers/infiniband/core/ib_core"


def symvers(crc: int = 0x11) -> str:
    """MOFED's Module.symvers, with a symbol that the in-tree module exports too."""
    rows = {REGISTER: crc, UNREGISTER: 0x22, "ib_alloc_device": 0x33}
    return "".join(f"{crc:#010x}\t{name}\t{CORE}\tEXPORT_SYMBOL\t\n" for name, crc in rows.items())


def mofed(crc: int = 0x11) -> Mofed:
    return parse_mofed(symvers(crc), "MOFED/Module.symvers")


def find(root: Path, files: Files, arch: str = "x86_64") -> Optional[Mofed]:
    return find_mofed(write_tree(root, files), arch, RELEASE)


@pytest.mark.parametrize(
    ("arch", "name"),
    [
        ("x86_64", f"x86_64/{RELEASE}"),
        ("x86_64", RELEASE),
        ("x86_64", "default"),
        ("arm64", f"aarch64/{RELEASE}"),
        ("arm64", f"arm64/{RELEASE}"),
    ],
)
def test_places(tmp_path: Path, arch: str, name: str) -> None:
    """MOFED is found wherever NVIDIA's Kbuild looks, under MOFED's name of the architecture."""
    found = find(tmp_path, {f"{OFA}/{name}/Module.symvers": symvers()}, arch)
    assert found == Mofed(str(tmp_path / OFA / name / "Module.symvers"), symvers(), mofed().symbols)
    assert found.sha256 == mofed().sha256 != mofed(0x12).sha256


def test_order(tmp_path: Path) -> None:
    """The folder of this architecture and release counts before the others."""
    names = (f"x86_64/{RELEASE}", RELEASE, "default")
    files: Files = {f"{OFA}/{name}/Module.symvers": symvers(crc) for crc, name in enumerate(names, 1)}
    found = find(tmp_path, files)
    assert found is not None
    assert found.symbols[REGISTER].crc == 1


def test_no_mofed(tmp_path: Path) -> None:
    """No folder, an empty one, and one that is being filled are no MOFED yet."""
    assert find_mofed(tmp_path / "none", "x86_64", RELEASE) is None
    assert find(tmp_path / "empty", {f"{OFA}/note": ""}) is None
    assert find(tmp_path / "filling", {f"{OFA}/x86_64/{RELEASE}/include/rdma/peer_mem.h": ""}) is None


def test_links_stay_inside(tmp_path: Path) -> None:
    """MOFED's own absolute links are followed below its root, and never lead to this machine's files."""
    links: Files = {
        f"{OFA}/default": Link("/etc/alternatives/ofa"),
        "etc/alternatives/ofa": Link(f"/{OFA}/x86_64/{RELEASE}"),
    }
    outside = write_tree(tmp_path / "outside", {"Module.symvers": symvers(0xE)})
    here: Files = {**links, f"{OFA}/x86_64/{RELEASE}/Module.symvers": symvers()}
    found = find(tmp_path / "here", here)
    assert found is not None
    assert found.origin == str(tmp_path / "here" / OFA / "x86_64" / RELEASE / "Module.symvers")
    assert find(tmp_path / "dangling", links) is None
    assert find(tmp_path / "folder", {f"{OFA}/default": Link(str(outside))}) is None
    assert find(tmp_path / "up", {f"{OFA}/default": Link("../../../../outside")}) is None
    file: Files = {f"{OFA}/default/Module.symvers": Link(str(outside / "Module.symvers"))}
    assert find(tmp_path / "file", file) is None


@pytest.mark.parametrize(
    "more",
    [
        {f"{OFA}/default/configure.mk.kernel": "CWD=/x\nKVERSION=5.14.0-362.el9\nARCH=x86_64\n"},
        {f"{OFA}/default/config.mk": "KVERSION := 5.14.0-362.el9\n"},
    ],
)
def test_mofed_of_another_kernel(tmp_path: Path, more: Mapping[str, str]) -> None:
    """A MOFED that says that it was built for another kernel is refused, with both releases."""
    with pytest.raises(
        HeadersMismatch, match=rf"built for kernel 5\.14\.0-362\.el9, not {RELEASE}"
    ) as caught:
        find(tmp_path, {f"{OFA}/default/Module.symvers": symvers(), **more})
    assert "restart the MOFED pod" in str(caught.value.hint)


def test_stale_default(tmp_path: Path) -> None:
    """A `default` that still leads to the last kernel's folder is told by that folder's name."""
    files: Files = {
        f"{OFA}/x86_64/5.14.0-362.el9/Module.symvers": symvers(),
        f"{OFA}/default": Link("x86_64/5.14.0-362.el9"),
    }
    with pytest.raises(HeadersMismatch, match=r"built for kernel 5\.14\.0-362\.el9"):
        find(tmp_path, files)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (symvers()[:-1], "ends within a line"),
        (symvers()[:-20], "line 3"),
        (symvers().replace(f"\t{REGISTER}", REGISTER), "line 1"),
        ("0x00000001\tib_alloc_device\tib_core\tEXPORT_SYMBOL\t\n", f"has no {REGISTER} and no {UNREGISTER}"),
        (symvers().replace(UNREGISTER, "ib_other"), f"has no {UNREGISTER}: nvidia-peermem cannot register"),
    ],
)
def test_damaged_symvers(tmp_path: Path, text: str, message: str) -> None:
    """A Module.symvers that is cut short or lacks peer memory is told, and so is what mends it."""
    with pytest.raises(HeadersError, match=message) as caught:
        find(tmp_path, {f"{OFA}/default/Module.symvers": text})
    assert "MOFED" in str(caught.value.hint)


def test_symvers_that_vanishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that goes between the look and the read is told as that."""
    place = write_tree(tmp_path, {f"{OFA}/default/Module.symvers": symvers()})

    def gone(self: Path) -> bytes:
        raise FileNotFoundError(2, os.strerror(2), str(self))

    monkeypatch.setattr(Path, "read_bytes", gone)
    with pytest.raises(HeadersError, match=r"cannot be read: .*No such file"):
        find_mofed(place, "x86_64", RELEASE)


NVIDIA = driver(
    "nvidia", exports={"nvidia_p2p_get_pages": export(0x44), "nvidia_gpl": export(0x55, gpl=True)}
)


def peermem(register: int = 0x11, get_pages: int = 0x44, license: str = "Dual BSD/GPL") -> ModuleFacts:
    needed = {REGISTER: register, UNREGISTER: 0x22, "nvidia_p2p_get_pages": get_pages}
    return driver("nvidia_peermem", needed, depends=("nvidia", "ib_core"), license=license)


def test_fit() -> None:
    """A real nvidia-peermem fits the kernel beside the nvidia and the MOFED that it was built against."""
    fit = Peers(mofed(), NVIDIA).check(peermem(), kernel())
    assert (fit.fit, fit.findings, fit.crcs_proven) == ("exact", (), 4)
    assert [module.name for module in fit.modules] == ["nvidia_peermem"]


@pytest.mark.parametrize(
    ("module", "found"),
    [
        (peermem(register=0x12), [("crc", REGISTER, "0x00000012", "0x00000011")]),
        (peermem(get_pages=0x45), [("crc", "nvidia_p2p_get_pages", "0x00000045", "0x00000044")]),
    ],
)
def test_crc_of_another_mofed_or_nvidia(module: ModuleFacts, found: list[tuple[str, ...]]) -> None:
    """After an update of MOFED, or beside another nvidia, the symbol and both CRCs are named."""
    fit = Peers(mofed(), NVIDIA).check(module, kernel())
    assert fit.fit == "unfit"
    assert [(f.code, f.symbol, f.wanted, f.found) for _, f in fit.findings] == found


def test_stub_is_unfit() -> None:
    """What the kernel would take and whose init fails does not fit."""
    fit = Peers(mofed(), NVIDIA).check(driver("nvidia_peermem"), kernel())
    assert fit.fit == "unfit"
    assert [(f.code, f.symbol) for _, f in fit.findings] == [
        ("missing-symbol", REGISTER),
        ("missing-symbol", UNREGISTER),
    ]


def test_mofed_takes_the_place_of_in_tree_modules() -> None:
    """What MOFED's modules replace is gone from the target, the kernel's other exports are there."""
    core = "drivers/infiniband/core/ib_core"
    target = kernel(
        {
            "ib_alloc_device": symbol(1, core),
            "ib_gone": symbol(2, core),
            "drm_x": symbol(3, "drivers/gpu/drm/drm"),
            "printk": symbol(4),
        }
    )
    symbols = with_mofed(target, mofed()).symbols
    assert symbols["ib_alloc_device"].crc == 0x33
    assert "ib_gone" not in symbols
    assert (symbols["drm_x"].crc, symbols["printk"].crc) == (3, 4)
    assert symbols[REGISTER].crc == 0x11


def test_what_a_build_is_told() -> None:
    """The text for a build is MOFED's own and a row for each export of nvidia, which reads back equal."""
    assert symvers_rows(NVIDIA) == (
        "0x00000055\tnvidia_gpl\tnvidia\tEXPORT_SYMBOL_GPL\t\n"
        "0x00000044\tnvidia_p2p_get_pages\tnvidia\tEXPORT_SYMBOL\t\n"
    )
    peers = Peers(mofed(), NVIDIA)
    assert peers.symvers == symvers() + symvers_rows(NVIDIA)
    assert parse_mofed(peers.symvers, "both").symbols["nvidia_gpl"] == symbol(0x55, "nvidia", gpl=True)
