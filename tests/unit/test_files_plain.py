"""Files where anybody may write: what is no plain file is not opened, what has no end is not read on."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import Callable

import pytest
from pytest_mock import MockerFixture

from nvdriver_build.files import copy_plain, put_plain, read_plain, same_plain

NO_DRIVER = os.makedev(4000, 0)


def device(path: Path) -> None:
    """A device that nobody drives: to open it fails, as to open another one may do anything."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, NO_DRIVER)
    except PermissionError:
        pytest.skip("no device can be made here")


def link(path: Path) -> None:
    path.with_name("elsewhere").write_text("content")
    path.symlink_to("elsewhere")


@pytest.mark.parametrize(
    "make", [device, link, os.mkfifo, Path.mkdir], ids=["device", "link", "pipe", "folder"]
)
def test_what_is_no_plain_file(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """It is refused by its kind, and not opened for that."""
    path, ours = tmp_path / "path", tmp_path / "ours"
    ours.write_text("content")
    make(path)
    for act in (
        lambda: read_plain(path, 10),
        lambda: copy_plain(path, tmp_path / "copy", 10),
        lambda: same_plain(path, ours),
    ):
        with pytest.raises(OSError, match=f"no plain file: '{path}'") as caught:
            act()
        assert caught.value.errno == errno.EINVAL


def test_without_proc(tmp_path: Path, mocker: MockerFixture) -> None:
    """A file that is there is not taken for one that is not: `foreign` says that a set is of others."""
    (tmp_path / "path").write_text("content")
    mocker.patch("nvdriver_build.files.plain._FDS", str(tmp_path / "proc"))
    with pytest.raises(OSError, match="cannot be read without /proc") as caught:
        read_plain(tmp_path / "path", 10)
    assert caught.value.errno == errno.EIO


def test_copies_are_whole_or_refused(tmp_path: Path) -> None:
    """A file of the most bytes that it may have is copied, one byte more is too many."""
    path, data = tmp_path / "path", os.urandom(2_500_000)
    path.write_bytes(data)
    copy_plain(path, tmp_path / "copy", len(data))
    assert (tmp_path / "copy").read_bytes() == data
    with pytest.raises(OSError, match="more than 2499999 bytes"):
        copy_plain(path, tmp_path / "other", len(data) - 1)
    assert (tmp_path / "other").stat().st_size == 0


def test_a_copy_is_written_through_no_link(tmp_path: Path) -> None:
    """Where something is in its place, a link say, nothing is written."""
    (tmp_path / "path").write_text("new")
    (tmp_path / "victim").write_text("old")
    (tmp_path / "copy").symlink_to("victim")
    with pytest.raises(FileExistsError):
        copy_plain(tmp_path / "path", tmp_path / "copy", 10)
    assert (tmp_path / "victim").read_text() == "old"


@pytest.mark.parametrize("size", [0, 1, 1024 * 1024, 2_500_000])
def test_the_same_bytes(tmp_path: Path, size: int) -> None:
    """Another byte, one less or one more is another file."""
    ours, path, data = tmp_path / "ours", tmp_path / "path", os.urandom(size)
    ours.write_bytes(data)
    path.write_bytes(data)
    assert same_plain(path, ours)
    for other in (data + b"x", data[:-1], data[:-1] + bytes([data[-1] ^ 1]) if data else b"x"):
        path.write_bytes(other)
        assert same_plain(path, ours) == (other == data)


def test_a_file_is_put_with_its_folders(tmp_path: Path) -> None:
    """Folders that lack are made; where they lead is told by names alone, so that the root may be a link."""
    root, ours = tmp_path / "root", tmp_path / "ours"
    ours.write_bytes(b"new" * 1_000_000)
    (tmp_path / "real").mkdir()
    root.symlink_to("real")
    for place in (root / "file", root / "a/b/file", root / "a/b/other"):
        put_plain(ours, root, place)
        assert place.read_bytes() == ours.read_bytes()
        assert stat.S_IMODE(place.stat().st_mode) == 0o644


@pytest.mark.parametrize("linked", ["a", "a/b", "a/b/file"])
def test_a_file_is_put_through_no_link(tmp_path: Path, linked: str) -> None:
    """A folder, or the file, that somebody makes a link leads nobody to write elsewhere."""
    root, ours, victim = tmp_path / "root", tmp_path / "ours", tmp_path / "victim"
    ours.write_text("new")
    (victim / "b").mkdir(parents=True)
    (victim / "file").write_text("old")
    (root / linked).parent.mkdir(parents=True)
    (root / linked).symlink_to(victim / "file" if linked.endswith("file") else victim)
    before = sorted(victim.rglob("*"))
    with pytest.raises(OSError, match=r"Not a directory|File exists|Too many levels"):
        put_plain(ours, root, root / "a/b/file")
    assert sorted(victim.rglob("*")) == before
    assert (victim / "file").read_text() == "old"


def test_what_is_there_is_not_written_to(tmp_path: Path) -> None:
    """A file that is there, a pipe, whatever, is left alone."""
    (tmp_path / "ours").write_text("new")
    for make in (os.mkfifo, lambda path: path.write_text("old"), Path.mkdir):
        place = tmp_path / make.__name__
        make(place)
        kind = place.lstat().st_mode
        with pytest.raises(FileExistsError):
            put_plain(tmp_path / "ours", tmp_path, place)
        assert place.lstat().st_mode == kind


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    """Neither where a file was put, nor where it was refused."""
    (tmp_path / "ours").write_text("new")
    before = list(Path("/proc/self/fd").iterdir())
    put_plain(tmp_path / "ours", tmp_path, tmp_path / "a/b/file")
    for place in ("a/b/file", "a/b/file/below", "a/missing/ours"):
        with contextlib.suppress(OSError):
            put_plain(tmp_path / "ours", tmp_path, tmp_path / place)
    with pytest.raises(FileNotFoundError):
        put_plain(tmp_path / "none", tmp_path, tmp_path / "c")
    assert len(list(Path("/proc/self/fd").iterdir())) == len(before)
