"""Archives: good ones are unpacked, damaged ones are an ArchiveError, the machine's faults are OSError."""

from __future__ import annotations

import errno
import io
import signal
import stat
import tarfile
from pathlib import Path
from typing import List, Optional

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pytest_mock import MockerFixture
from sample_driver.archives import pack
from tars import COMPRESS, FILE, contents, refused, tar_of
from trees import Link, write_tree

from nvdriver_build.commands import SystemCommands
from nvdriver_build.errors import SourceError, Stopped
from nvdriver_build.files.archives import ArchiveError, unpack
from nvdriver_build.source import open_source

TREE = {"driver/Kbuild": "all\n", "driver/nvidia/nv.c": "int x;\n" * 400, "driver/empty": ""}
LINKS = {"driver/nvidia/up": "../Kbuild", "driver/down": "nvidia/nv.c", "driver/nowhere": "gone"}
SUFFIXES = ("tar", "tar.gz", "tar.xz", "tar.zst")


def good_tree(root: Path) -> Path:
    return write_tree(root, {**TREE, **{name: Link(target) for name, target in LINKS.items()}})


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_good_archives_are_unpacked(tmp_path: Path, place: Path, suffix: str) -> None:
    """Each compression gives the same files, folders and links."""
    good_tree(tmp_path / "driver")
    unpack(pack(tmp_path / "driver", tmp_path / f"archive.{suffix}"), place)
    assert contents(place / "driver") == contents(tmp_path / "driver")


def test_zstd_where_nobody_reads_it(tmp_path: Path, mocker: MockerFixture) -> None:
    """The package is compiled, so that images have none: what to do is said, and it is no bug."""
    archive = pack(good_tree(tmp_path / "driver"), tmp_path / "archive.tar.zst")
    mocker.patch.dict("sys.modules", zstandard=None)
    with pytest.raises(SourceError, match="compressed by zstd, and this Python has no") as raised:
        open_source(archive, "open", tmp_path / "work", SystemCommands())
    assert raised.value.hint == "unpack it first: zstd -d"


@pytest.mark.parametrize("kind", sorted(COMPRESS))
def test_streams_in_a_row_are_one(tmp_path: Path, place: Path, kind: str) -> None:
    """Parallel compressors write several streams one after the other: all of them count."""
    data = tar_of([("one", tarfile.REGTYPE, "", b"1" * 5000), ("two", tarfile.REGTYPE, "", b"2" * 5000)])
    (tmp_path / "archive").write_bytes(COMPRESS[kind](data[:3000]) + COMPRESS[kind](data[3000:]))
    unpack(tmp_path / "archive", place)
    assert contents(place) == {"one": "1" * 5000, "two": "2" * 5000}


def test_modes_times_and_owners_are_dropped(tmp_path: Path, place: Path) -> None:
    """Only the owner's x bit is kept: no setuid, no foreign owner, no time that no clock can have."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, mode in (("script", 0o6755), ("secret", 0o200), ("open", 0o666)):
            info = tarfile.TarInfo(name)
            info.mode, info.uid, info.mtime = mode, 1234, 1e300
            tar.addfile(info)
    (tmp_path / "archive").write_bytes(buffer.getvalue())
    unpack(tmp_path / "archive", place)
    found = {path.name: (stat.S_IMODE(path.stat().st_mode), path.stat().st_uid) for path in place.iterdir()}
    owner = place.stat().st_uid
    assert found == {"script": (0o755, owner), "secret": (0o644, owner), "open": (0o644, owner)}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_cut_archives_are_refused(tmp_path: Path, place: Path, suffix: str) -> None:
    """Wherever an archive ends too early, even between two members, it is refused."""
    good_tree(tmp_path / "driver")
    data = pack(tmp_path / "driver", tmp_path / f"a.{suffix}").read_bytes()
    end = len(data.rstrip(b"\0")) // 512 * 512 + 512 if suffix == "tar" else len(data)
    step = 512 if suffix == "tar" else 7
    for length in {*range(0, end, step), end - 1}:
        refused(data[:length], _empty(place))


def _empty(place: Path) -> Path:
    fresh = place.parent.parent / f"{len(list(place.parent.parent.iterdir()))}" / "place"
    fresh.mkdir(parents=True)
    return fresh


@pytest.mark.parametrize(
    "data", [b"", b"x", b"<html>" * 500, b"\x1f\x8b", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", bytes(100)]
)
def test_what_is_no_archive_is_refused(place: Path, data: bytes) -> None:
    """An empty file, a page of a proxy, a magic number alone."""
    assert "archive: " in refused(data, place)


@pytest.mark.parametrize("kind", sorted(COMPRESS))
def test_garbage_at_the_end_is_refused(place: Path, kind: str) -> None:
    """What follows the compressed archive has to be one more stream."""
    refused(COMPRESS[kind](tar_of([("a", FILE, "", b"1")])) + b"garbage", place)


def test_a_damaged_header_is_not_the_end(place: Path) -> None:
    """A flipped bit in a later header is damage; tarfile alone would stop there and call it whole."""
    data = bytearray(tar_of([("a", FILE, "", b"1"), ("b", FILE, "", b"2")]))
    data[1024] ^= 1
    assert "bad checksum" in refused(bytes(data), place)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
@pytest.mark.parametrize("kind", sorted(COMPRESS))
def test_flipped_bits_never_change_content(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    """Each compression's checksums are read: a flipped bit is refused, or it changed nothing."""
    root = tmp_path_factory.mktemp("flip")
    good = bytearray(COMPRESS[kind](tar_of([("a", FILE, "", bytes(range(256)) * 8), ("b", FILE, "", b"2")])))
    good[data.draw(st.integers(0, len(good) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (root / "archive").write_bytes(good)
    (root / "place").mkdir()
    try:
        unpack(root / "archive", root / "place")
    except ArchiveError:
        return
    assert (root / "place" / "a").read_bytes() == bytes(range(256)) * 8
    assert (root / "place" / "b").read_bytes() == b"2"


def test_no_space_is_not_the_archives_fault(tmp_path: Path, small_disk: Path) -> None:
    """A full disk is an OSError, so that nobody is told to fetch the archive again."""
    (tmp_path / "archive").write_bytes(tar_of([("a", FILE, "", bytes(1_000_000))]))
    with pytest.raises(OSError, match="No space left") as caught:
        unpack(tmp_path / "archive", small_disk)
    assert caught.value.errno == errno.ENOSPC


def test_a_read_only_place_is_not_the_archives_fault(tmp_path: Path, read_only_disk: Path) -> None:
    """Nor is a place that cannot be written to, nor an archive that is not there."""
    (tmp_path / "archive").write_bytes(tar_of([("a", FILE, "", b"1")]))
    with pytest.raises(OSError, match="Read-only"):
        unpack(tmp_path / "archive", read_only_disk)
    with pytest.raises(FileNotFoundError):
        unpack(tmp_path / "nothing", tmp_path)


@pytest.mark.parametrize("after", [0, 1, 5])
def test_a_signal_ends_it(tmp_path: Path, place: Path, after: int) -> None:
    """`check` is called for each member and within long ones; what it raises comes through."""
    calls: List[Optional[int]] = []

    def check() -> None:
        calls.append(None)
        if len(calls) > after:
            raise Stopped(signal.SIGTERM)

    (tmp_path / "archive").write_bytes(tar_of([("a", FILE, "", b"1"), ("b", FILE, "", bytes(1_000_000))]))
    with pytest.raises(Stopped):
        unpack(tmp_path / "archive", place, check)
    assert not (place / "b").exists() or (place / "b").stat().st_size < 1_000_000
