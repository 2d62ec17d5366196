"""Files where anybody may write: what is no plain file is not opened, what has no end is not read on."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Callable

import pytest
from pytest_mock import MockerFixture

from nvdriver_build.files import copy_plain, read_plain, same_plain

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
