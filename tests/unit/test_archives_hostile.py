"""Archives that mean harm are an ArchiveError, and harm nothing."""

from __future__ import annotations

import contextlib
import lzma
import resource
import stat
import tarfile
from pathlib import Path
from typing import Callable, Iterator, List, Tuple

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_driver.archives import ESCAPES, pack_escaping
from tars import COMPRESS, DIR, FIFO, FILE, HARD, SYM, Member, refused, tar_of

from nvdriver_build.files import archives
from nvdriver_build.files.archives import ArchiveError, unpack


@pytest.mark.parametrize("suffix", ["tar", "tar.zst"])
@pytest.mark.parametrize("way", sorted(ESCAPES))
def test_escapes_are_refused(tmp_path: Path, way: str, suffix: str) -> None:
    """No way out of the folder works, and what lies beside it stays as it was."""
    place = tmp_path / "place"
    place.mkdir()
    (tmp_path / "escaped").write_text("good")
    with pytest.raises(ArchiveError, match=r"evil.tar.*: member '"):
        unpack(pack_escaping(tmp_path / f"evil.{suffix}", way), place)
    assert (tmp_path / "escaped").read_text() == "good"
    assert not (place / "driver" / "mem").exists()


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ([("/etc/x", FILE, "", b"")], "leads out"),
        ([("a/../../x", FILE, "", b"")], "leads out"),
        ([("..", DIR, "", b"")], "leads out"),
        ([("a\0" + "b" * 100, FILE, "", b"")], "leads out"),
        ([("a", SYM, "/etc", b"")], "links to '/etc'"),
        ([("a", SYM, "..", b"")], "links to '..'"),
        ([("b/a", SYM, "../..", b"")], "links to"),
        ([("b/a", SYM, "../c/../../d", b"")], "links to"),
        ([("a", SYM, "b", b""), ("a/x", FILE, "", b"")], "through a link"),
        ([("a", SYM, "b", b""), ("a", FILE, "", b"")], "through a link"),
        ([("a", SYM, "b", b""), ("a", SYM, "c", b"")], "through a link"),
        ([("a", SYM, "b", b""), ("./a/d", DIR, "", b"")], "through a link"),
        ([("a", SYM, "", b"")], "links to ''"),
        ([("a", SYM, "b" * 256, b"")], "links to 'bbb"),
        ([("a", SYM, "b/" * 2500, b"")], "cannot be unpacked"),
        ([("a", FILE, "", b""), ("b", HARD, "a", b"")], "neither file, folder nor"),
        ([("a", FIFO, "", b"")], "neither file, folder nor"),
        ([("a", FILE, "", b""), ("a", FILE, "", b"")], "cannot be unpacked"),
        ([("a", FILE, "", b""), ("a/b/c", FILE, "", b"")], "cannot be unpacked"),
        ([("a", FILE, "", b""), ("a", DIR, "", b"")], "cannot be unpacked"),
        ([("a/b", FILE, "", b""), ("a", FILE, "", b"")], "cannot be unpacked"),
        ([(".", FILE, "", b"x")], "cannot be unpacked"),
        ([("x" * 300, FILE, "", b"")], "cannot be unpacked"),
        ([("a/" * 65 + "x", FILE, "", b"")], "64 folders deep"),
    ],
)
def test_odd_members_are_refused(place: Path, members: List[Member], why: str) -> None:
    """Names and links that lead out, that collide or that cannot be are told by their cause."""
    assert why in refused(tar_of(members), place)


def test_loops_of_links_lead_nowhere(tmp_path: Path, place: Path) -> None:
    """A link to itself with slashes behind, which Path.resolve() takes for one to the root, is made plain."""
    (tmp_path / "archive").write_bytes(tar_of([("a", SYM, "a//", b""), ("b", SYM, "./c//d/", b"")]))
    unpack(tmp_path / "archive", place)
    assert [str((place / name).readlink()) for name in "ab"] == ["a", "c/d"]


def test_sparse_files_are_refused(place: Path) -> None:
    """A sparse member is larger than its bytes: no source has one."""
    info = tarfile.TarInfo("a")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 512
    data = bytearray(info.tobuf(tarfile.GNU_FORMAT)) + bytes(2048)
    assert "neither file" in refused(bytes(data), place)


PARTS = st.sampled_from(["..", ".", "", "a", "b", "c", "a/b", "/", "\udcff", "x" * 260, "é"])
PATHS = st.lists(PARTS, max_size=4).map("/".join)
KINDS = st.sampled_from([FILE, FILE, DIR, SYM, SYM, HARD, FIFO, tarfile.AREGTYPE, tarfile.CONTTYPE, b"Z"])


@settings(max_examples=400, deadline=None)
@given(members=st.lists(st.tuples(PATHS, KINDS, PATHS, st.binary(max_size=3)), max_size=6))
def test_no_members_reach_out(tmp_path_factory: pytest.TempPathFactory, members: List[Member]) -> None:
    """Whatever an archive's members are, all that is made lies, and leads, inside of the folder."""
    _unpacks_inside(tmp_path_factory.mktemp("members"), tar_of(members))


@settings(max_examples=400, deadline=None)
@given(
    base=st.lists(st.tuples(PATHS, KINDS, PATHS, st.binary(max_size=3)), min_size=1, max_size=4),
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=6),
    mend=st.booleans(),
)
def test_mutated_archives_reach_nothing(
    tmp_path_factory: pytest.TempPathFactory,
    base: List[Member],
    changes: List[Tuple[float, int]],
    mend: bool,
) -> None:
    """Changed bytes, with the headers' checksums mended or not, are refused or stay inside."""
    data = bytearray(tar_of(base))
    used = len(data.rstrip(b"\0")) + 512
    for where, value in changes:
        data[int(where * used)] = value
    _unpacks_inside(tmp_path_factory.mktemp("mutated"), bytes(_mended(data) if mend else data))


def _mended(data: bytearray) -> bytearray:
    for start in range(0, len(data), 512):
        block = data[start : start + 512]
        block[148:156] = b" " * 8
        data[start + 148 : start + 156] = f"{sum(block):06o}\0 ".encode()
    return data


def _unpacks_inside(root: Path, data: bytes) -> None:
    (root / "archive").write_bytes(data)
    place = root / "around" / "place"
    place.mkdir(parents=True)
    with contextlib.suppress(ArchiveError):
        unpack(root / "archive", place)
    assert sorted(path.name for path in root.iterdir()) == ["archive", "around"]
    assert [path.name for path in place.parent.iterdir()] == ["place"]
    for path in place.rglob("*"):
        assert stat.S_IFMT(path.lstat().st_mode) in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)
        assert _leads_inside(path, place)


def _leads_inside(path: Path, place: Path) -> bool:
    try:
        return place.resolve() in (path.resolve(), *path.resolve().parents)
    except RuntimeError:  # a loop
        return True


def test_bombs_are_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive may say, or hold, only so many bytes and members; no more is written."""
    monkeypatch.setattr(archives, "MAX_UNPACKED", 1_000_000)
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    zeros = bytes(600_000)
    many = [("one", FILE, "", zeros), ("two", FILE, "", zeros)]
    assert "1000000 bytes" in refused(COMPRESS["xz"](tar_of(many)), place)
    assert sum(path.stat().st_size for path in place.iterdir()) == 600_000
    assert "3 members" in refused(tar_of([(f"n{n}", DIR, "", b"") for n in range(4)]), place)


def _pax_header(size: int) -> Iterator[bytes]:
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, size
    yield info.tobuf()
    yield from (bytes(1024 * 1024) for _ in range(size // 1024**2))


def _trailing_zeros(size: int) -> Iterator[bytes]:
    yield tar_of([("a", FILE, "", b"1")])
    yield from (bytes(1024 * 1024) for _ in range(size // 1024**2))


@pytest.mark.parametrize("blocks", [_pax_header, _trailing_zeros])
@pytest.mark.parametrize("kind", ["xz", "zst"])
def test_bombs_outside_of_files_are_refused(
    place: Path, kind: str, blocks: Callable[[int], Iterator[bytes]]
) -> None:
    """A header of 256 MiB, or as much after the end, is refused before it takes memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    compressor = lzma.LZMACompressor(preset=0) if kind == "xz" else zstandard.ZstdCompressor().compressobj()
    data = b"".join(compressor.compress(block) for block in blocks(256 * 1024**2)) + compressor.flush()
    assert "more bytes than its members say" in refused(data, place)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_endless_headers_are_refused(place: Path) -> None:
    """Long-name headers in a row make tarfile recurse: that is refused like other damage."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2
    refused((info.tobuf() + b"a\0".ljust(512, b"\0")) * 3000, place)


def test_a_huge_dictionary_is_refused(place: Path) -> None:
    """An xz that asks for more memory than any source needs is refused."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1024**3, "nice_len": 32}]
    small = lzma.compress(tar_of([("a", FILE, "", b"1")]), format=lzma.FORMAT_XZ, filters=filters)
    assert "emory" in refused(small, place)
