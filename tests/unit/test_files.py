"""Files and folders that appear whole, and digests."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import multiprocessing
import os
import resource
import stat
import subprocess
from pathlib import Path
from typing import Any, Callable, List

import pytest
from trees import nested, write_tree

from nvdriver_build.files import (
    publish,
    publish_folder,
    remove,
    sha256_file,
    sha256_tree,
)


def names(folder: Path) -> List[str]:
    return sorted(path.name for path in folder.iterdir())


def test_publish_writes_and_replaces(tmp_path: Path) -> None:
    """A file is made with its folders and its mode, then replaced; nothing else is left beside it."""
    path = tmp_path / "new" / "folder" / "file"
    publish(path, "one")
    publish(path, b"two\xff", mode=0o600)
    assert path.read_bytes() == b"two\xff"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert names(path.parent) == ["file"]


def test_publish_ignores_the_umask(tmp_path: Path) -> None:
    """The mode is the one asked for, whatever the umask: other containers have to read these files."""
    old = os.umask(0o077)
    try:
        publish(tmp_path / "file", "content")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


def test_publish_replaces_a_link_not_its_target(tmp_path: Path) -> None:
    """A symbolic link in the place of the file is replaced; what it leads to stays as it was."""
    (tmp_path / "victim").write_text("good")
    (tmp_path / "file").symlink_to("victim")
    publish(tmp_path / "file", "new")
    assert ((tmp_path / "victim").read_text(), (tmp_path / "file").is_symlink()) == ("good", False)


def test_publish_reader_never_sees_a_part(tmp_path: Path) -> None:
    """A reader beside a writer sees whole contents only."""
    path, size = tmp_path / "file", 200_000
    publish(path, "a" * size)
    writer = multiprocessing.Process(target=_write_in_turn, args=(path, size, 100))
    writer.start()
    seen = {content for _ in range(400) if (content := path.read_text())}
    writer.join()
    assert seen <= {"a" * size, "b" * size}


def _write_in_turn(path: Path, size: int, times: int) -> None:
    for turn in range(times):
        publish(path, "ab"[turn % 2] * size)


def test_failed_publish_leaves_the_old_file(small_disk: Path) -> None:
    """Where no space is left, the old content stays and no temporary file does."""
    publish(small_disk / "file", "old")
    with pytest.raises(OSError, match="No space left") as caught:
        publish(small_disk / "file", b"x" * 1_000_000)
    assert caught.value.errno == errno.ENOSPC
    assert ((small_disk / "file").read_text(), names(small_disk)) == ("old", ["file"])


def test_publish_on_a_read_only_disk(read_only_disk: Path) -> None:
    """Nothing can be published there, in no new folder either, and OSError says why."""
    for name in ("file", "folder/file"):
        with pytest.raises(OSError, match="Read-only file system"):
            publish(read_only_disk / name, "content")


def test_publish_onto_a_folder(tmp_path: Path) -> None:
    """A folder in the file's place is an OSError and stays, and so is a file in the folder's place."""
    write_tree(tmp_path, {"folder/inside": "", "file": ""})
    for place in (tmp_path / "folder", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=r"directory|exists"):
            publish(place, "content")
    assert names(tmp_path) == ["file", "folder"]


def test_publish_sweeps_what_died_before(tmp_path: Path) -> None:
    """The temporary file of a publisher killed a while ago goes; a fresh one, and other files' stay."""
    write_tree(tmp_path, {".a[1].tmp-old": "", ".a[1].tmp-new": "", ".a1.tmp-old": "", ".b.tmp-old": ""})
    for name in (".a[1].tmp-old", ".a1.tmp-old", ".b.tmp-old"):
        os.utime(tmp_path / name, (0, 0))
    publish(tmp_path / "a[1]", "content")
    assert names(tmp_path) == [".a1.tmp-old", ".a[1].tmp-new", ".b.tmp-old", "a[1]"]


def test_publish_folder_moves_it_whole(tmp_path: Path) -> None:
    """A folder with folders and links in it is moved to a place whose parents are made."""
    private = write_tree(tmp_path / "private", {"sub/file": "content"})
    (private / "dangling").symlink_to("nowhere")
    assert publish_folder(private, tmp_path / "sets" / "place")
    assert (tmp_path / "sets" / "place" / "sub" / "file").read_text() == "content"
    assert names(tmp_path) == ["sets"]


def test_publish_folder_syncs_before_it_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files and folders reach the disk before the rename does, the place's parent after it."""
    private = write_tree(tmp_path / "private", {"a": "1", "sub/b": "2"})
    place = tmp_path / "place"
    order: List[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().relative_to(tmp_path).as_posix()
        order.append(f"{name} {'after' if place.exists() else 'before'}")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    publish_folder(private, place)
    wanted = {f"{name} before" for name in ("private", "private/a", "private/sub", "private/sub/b")}
    assert (set(order[:-1]), order[-1]) == (wanted, ". after")


def test_publish_folder_loses_the_race(tmp_path: Path) -> None:
    """Where somebody was there first, theirs stays and ours too."""
    write_tree(tmp_path, {"private/file": "ours", "place/file": "theirs"})
    assert not publish_folder(tmp_path / "private", tmp_path / "place")
    assert (tmp_path / "place" / "file").read_text() == "theirs"
    assert (tmp_path / "private" / "file").read_text() == "ours"


def test_publish_folder_tells_what_is_in_the_way(tmp_path: Path) -> None:
    """A file in the place is no lost race, but an error."""
    write_tree(tmp_path, {"private/file": "ours", "place": "a file"})
    with pytest.raises(NotADirectoryError):
        publish_folder(tmp_path / "private", tmp_path / "place")


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY])
def test_publish_folder_believes_the_place_not_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """A network disk may report an error of a rename that was done before: the place tells."""
    write_tree(tmp_path, {"private/file": "ours", "place/file": "theirs"})

    def rename(self: Path, target: Path) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "rename", rename)
    assert not publish_folder(tmp_path / "private", tmp_path / "place")
    with pytest.raises(OSError, match=os.strerror(code)):
        publish_folder(tmp_path / "private", tmp_path / "other")


def test_remove_takes_anything(tmp_path: Path) -> None:
    """A file, a folder and a link go, what a link leads to stays, and nothing there is fine."""
    write_tree(tmp_path, {"file": "", "folder/sub/file": "", "kept/file": ""})
    (tmp_path / "link").symlink_to("kept")
    for name in ("file", "folder", "link", "nothing"):
        remove(tmp_path / name)
    assert (names(tmp_path), names(tmp_path / "kept")) == (["kept"], ["file"])


def test_remove_takes_any_depth(tmp_path: Path) -> None:
    """A folder that is deeper than Python's stack, the descriptors of a process and the length of a path."""
    nested(tmp_path / "folder", 1200)
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, descriptors[0]), descriptors[1]))
    try:
        remove(tmp_path / "folder")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, descriptors)
    assert names(tmp_path) == []


def test_remove_leaves_what_has_to_stay(tmp_path: Path, read_only_disk: Path) -> None:
    """A place that cannot be removed ends nothing: what lies beside it goes, and so does the rest."""
    write_tree(tmp_path / "folder", {"a/file": "", "b/mount/file": "", "c/file": ""})
    mount = tmp_path / "folder" / "b" / "mount"
    subprocess.run(("mount", "--bind", read_only_disk, mount), check=True)
    try:
        remove(tmp_path / "folder")
        assert (names(tmp_path / "folder"), names(mount.parent)) == (["b"], ["mount"])
    finally:
        subprocess.run(("umount", "-l", mount), check=True)


def meanwhile(monkeypatch: pytest.MonkeyPatch, listing: int, act: Callable[[], object]) -> None:
    """Do that once the folder which is listed as the `listing`th one has been listed."""
    real, done = os.scandir, []

    def scandir(folder: int) -> Any:
        with real(folder) as found:
            entries = list(found)
        done.append(folder)
        if len(done) == listing:
            act()
        return contextlib.nullcontext(entries)

    monkeypatch.setattr(os, "scandir", scandir)


def test_remove_follows_no_link_that_comes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that becomes a link once it was seen leads nowhere."""
    write_tree(tmp_path, {"folder/sub/file": "", "kept/file": ""})
    sub = tmp_path / "folder" / "sub"

    def swap() -> None:
        sub.rename(tmp_path / "away")
        sub.symlink_to(tmp_path / "kept")

    meanwhile(monkeypatch, 1, swap)
    remove(tmp_path / "folder")
    monkeypatch.undo()
    assert (names(tmp_path / "kept"), names(tmp_path / "away")) == (["file"], ["file"])


def test_remove_follows_no_folder_that_goes_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that is moved away while it is emptied leads to none of its new neighbours."""
    files = [
        f"{place}/{name}/{file}" for place in ("folder", "kept") for name in "ab" for file in ("f", "sub/f")
    ]
    write_tree(tmp_path, dict.fromkeys(files, ""))

    def move() -> None:
        (begun,) = [path for path in (tmp_path / "folder").iterdir() if not (path / "f").exists()]
        begun.rename(tmp_path / "kept" / "moved")

    meanwhile(monkeypatch, 3, move)
    remove(tmp_path / "folder")
    monkeypatch.undo()
    assert names(tmp_path / "kept") == ["a", "b", "moved"]
    assert names(tmp_path / "kept/a") == names(tmp_path / "kept/b") == ["f", "sub"]


def test_digest_of_a_file(tmp_path: Path) -> None:
    """It is sha256, over more than one chunk as well."""
    data = os.urandom(1024 * 1024 + 17)
    (tmp_path / "file").write_bytes(data)
    assert sha256_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_digest_of_a_tree(tmp_path: Path) -> None:
    """It depends on names and bytes, not on the order; a moved byte or a name of another coding counts."""
    odd = os.fsdecode(b"odd-\xff")
    one = write_tree(tmp_path / "one", {"a": "1", "b": "23", odd: ""})
    two = write_tree(tmp_path / "two", {"a": "12", "b": "3", odd: ""})
    digest = sha256_tree(one, ["a", "b", odd])
    assert digest == sha256_tree(one, [odd, "b", "a"])
    assert len({digest, sha256_tree(two, ["a", "b", odd]), sha256_tree(one, ["a", "b"])}) == 3
