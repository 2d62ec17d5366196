"""Private folders that die with their owner, and locks."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import List

import pytest
from trees import write_tree

from nvdriver_build.errors import Stopped
from nvdriver_build.files import (
    LockedError,
    lock,
    private_folder,
    sweep,
)

DEAD_OWNER = """
import os, sys
from pathlib import Path
from nvdriver_build.files import private_folder
with private_folder(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("done")
    os.kill(os.getpid(), 9)
"""


def names(folder: Path) -> List[str]:
    return sorted(path.name for path in folder.iterdir())


def leave_dead_folder(parent: Path) -> None:
    """Let a process die in its private folder."""
    done = subprocess.run((sys.executable, "-c", DEAD_OWNER, parent), check=False)
    assert done.returncode == -signal.SIGKILL


def test_private_folder_goes_with_its_block(tmp_path: Path) -> None:
    """It is empty, its owner's alone, on the place's file system, and gone afterwards, after an error too."""
    with private_folder(tmp_path / "work") as folder:
        assert (list(folder.iterdir()), stat.S_IMODE(folder.parent.stat().st_mode)) == ([], 0o700)
        (folder / "file").write_text("")
    with pytest.raises(ValueError), private_folder(tmp_path / "work") as folder:
        raise ValueError
    assert names(tmp_path / "work") == []


def test_private_folder_can_be_moved_away(tmp_path: Path) -> None:
    """The folder itself may be renamed to its place; nothing but what was put into it is there."""
    with private_folder(tmp_path) as folder:
        (folder / "file").write_text("")
        folder.rename(tmp_path / "place")
    assert (names(tmp_path), names(tmp_path / "place")) == (["place"], ["file"])


def test_sweep_takes_the_dead_only(tmp_path: Path) -> None:
    """What a killed owner left goes at the next use; living owners' folders, and other people's, stay."""
    foreign = [".nvdriver-build-mine", ".nvdriver-build-0123456789abcdefg", ".tmp-0123456789abcdef"]
    write_tree(tmp_path, {f"{name}/file": "" for name in foreign})
    leave_dead_folder(tmp_path)
    assert len(names(tmp_path)) == 4
    with private_folder(tmp_path) as living:
        sweep(tmp_path)
        assert living.is_dir()
        assert len(names(tmp_path)) == 4
    assert names(tmp_path) == sorted(foreign)


def test_sweep_takes_a_folder_without_a_lock(tmp_path: Path) -> None:
    """An owner killed before it could lock, and a sweeper killed half-way, leave nothing that stays."""
    write_tree(tmp_path, {".nvdriver-build-0123456789abcdef/work/file": ""})
    (tmp_path / ".nvdriver-build-fedcba9876543210").mkdir()
    sweep(tmp_path)
    assert names(tmp_path) == []


def test_sweep_follows_no_link(tmp_path: Path) -> None:
    """A link with a private folder's name, which anybody can put into /tmp, leads a sweep nowhere."""
    write_tree(tmp_path, {"victim/file": ""})
    (tmp_path / ".nvdriver-build-0123456789abcdef").symlink_to("victim")
    sweep(tmp_path)
    assert names(tmp_path / "victim") == ["file"]


def test_sweep_comes_again_where_it_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that cannot be removed now, since a stray compiler writes to it, is removed later."""
    leave_dead_folder(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.ENOTEMPTY, "")))
        sweep(tmp_path)
    assert len(names(tmp_path)) == 1
    sweep(tmp_path)
    assert names(tmp_path) == []


def test_sweep_bears_what_it_cannot_take(read_only_disk: Path) -> None:
    """Sweeping where nothing can be written is no error; neither is a file with a private folder's name."""
    sweep(read_only_disk)
    subprocess.run(("mount", "-o", "remount,rw", read_only_disk), check=True)
    write_tree(read_only_disk, {".nvdriver-build-0123456789abcdef": "a file"})
    (read_only_disk / ".nvdriver-build-fedcba9876543210").mkdir()
    subprocess.run(("mount", "-o", "remount,ro", read_only_disk), check=True)
    sweep(read_only_disk)
    assert len(names(read_only_disk)) == 2


def test_sweepers_and_owners_at_once(tmp_path: Path) -> None:
    """Many processes that make, use and sweep private folders at once never lose one, and leave none."""
    workers = [multiprocessing.Process(target=_own_and_sweep, args=(tmp_path, 150)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert names(tmp_path) == []


def _own_and_sweep(parent: Path, times: int) -> None:
    for turn in range(times):
        with private_folder(parent) as folder:
            (folder / "file").write_text(str(turn))
            sweep(parent)
            assert (folder / "file").read_text() == str(turn)


def test_lock_is_exclusive(tmp_path: Path) -> None:
    """Who holds it keeps others out for the time they wait, and afterwards it is free."""
    path = tmp_path / "locks" / "key"
    with lock(path, 0):
        started = time.monotonic()
        with pytest.raises(LockedError, match="key is locked"), lock(path, 0.3):
            pass
        assert 0.3 <= time.monotonic() - started < 20
    with lock(path, 0):
        pass


def test_lock_of_a_dead_process_is_free(tmp_path: Path) -> None:
    """A killed holder leaves the file, but not the lock."""
    code = "import os,sys; from pathlib import Path; from nvdriver_build.files import lock\n"
    code += "with lock(Path(sys.argv[1]), 0): os.kill(os.getpid(), 9)"
    subprocess.run((sys.executable, "-c", code, tmp_path / "key"), check=False)
    assert (tmp_path / "key").exists()
    with lock(tmp_path / "key", 0):
        pass


def test_lock_wait_can_be_ended(tmp_path: Path) -> None:
    """What `check` raises, since a signal came, ends the wait."""

    def check() -> None:
        raise Stopped(signal.SIGTERM)

    with lock(tmp_path / "key", 0), pytest.raises(Stopped), lock(tmp_path / "key", 3600, check):
        pass


def test_lock_passes_errors_of_its_block_on(tmp_path: Path) -> None:
    """An error inside is not taken for one of the lock, not even a LockedError of another one."""
    key, other = tmp_path / "key", tmp_path / "other"
    with lock(other, 0), pytest.raises(LockedError, match="other is locked"), lock(key, 0), lock(other, 0):
        pass
    with lock(tmp_path / "key", 0):
        pass


def test_lock_does_not_follow_links(tmp_path: Path) -> None:
    """A link in the place of a lock file is refused: it could lead anywhere."""
    (tmp_path / "key").symlink_to("victim")
    with pytest.raises(OSError, match="symbolic links"), lock(tmp_path / "key", 0):
        pass
    assert names(tmp_path) == ["key"]


def test_private_folder_sweeps_at_its_end(tmp_path: Path) -> None:
    """What a dead process's children wrote into its swept folder meanwhile goes at the end."""
    with private_folder(tmp_path):
        (tmp_path / ".nvdriver-build-0123456789abcdef" / "work").mkdir(parents=True)
    assert names(tmp_path) == []
