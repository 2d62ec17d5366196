"""A set that cannot be read now may be good: it is told, left alone, and serves once it can be read."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import Any, Callable, Dict

import pytest
from cli_runs import cli
from clusters import Cluster
from keys import make_identity
from module_sets import put, recipe
from structlog.testing import capture_logs

from nvdriver_build.errors import CannotRead, HeadersError
from nvdriver_build.sets import FOREIGN, MANIFEST, ModuleSet, folder
from nvdriver_build.store import Rules, Store

PASSING = ["EMFILE", "ENFILE", "ENOMEM", "EIO", "EACCES", "ESTALE"]
PARTS = ["nvidia-uvm.ko", MANIFEST, FOREIGN]
ANCIENT = (1, 1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", lambda found: None)


def fail(monkeypatch: pytest.MonkeyPatch, made: ModuleSet, part: str, code: int) -> None:
    """From now on this very file of the set cannot be read, wherever it is moved."""
    inode = (made.folder / part).stat().st_ino
    place: Any = Path if part == MANIFEST else folder
    name = {MANIFEST: "read_bytes", FOREIGN: "read_plain"}.get(part, "sha256_file")
    read = getattr(place, name)

    def reading(path: Path, *more: Any) -> Any:
        if path.exists() and path.stat().st_ino == inode:
            raise OSError(code, os.strerror(code), str(path))
        return read(path, *more)

    monkeypatch.setattr(place, name, reading)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", PASSING)
def test_what_may_pass_drops_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch, name: str, part: str
) -> None:
    """No memory, no descriptors, a disk or a server that fails: told with the reason, and good afterwards."""
    made = put(store, recipe())
    (made.folder / FOREIGN).write_text("registry\n")
    code = getattr(errno, name)
    fail(monkeypatch, made, part, code)
    with capture_logs() as logs:
        assert store.find(recipe()) is None
    assert [log["event"] for log in logs] == ["a set that cannot be looked at is left alone"]
    assert os.strerror(code) in logs[0]["reason"]
    monkeypatch.undo()
    assert store.find(recipe()) == made


@pytest.mark.parametrize("part", [MANIFEST, "nvidia-uvm.ko"])
def test_it_is_told_by_list_and_verify(store: Store, tmp_path: Path, part: str) -> None:
    """Both say why; it does not count as damaged, and `verify` ends with 17 all the same."""
    made = put(store, recipe())
    (made.folder / part).unlink()
    (made.folder / part).symlink_to("/proc/self/mem")  # a plain file whose first byte is EIO
    [entry] = store.check()
    assert (entry.set, entry.unread) == (None, True)
    with pytest.raises(CannotRead, match="Input/output error"):
        store.get(made.key)
    listed = cli(tmp_path, "store", "list").stdout
    assert ("cannot be read now: its manifest: Input/output error" in listed) == (part == MANIFEST)
    assert "damaged" not in listed
    verified = cli(tmp_path, "store", "verify")
    assert (verified.returncode, "cannot be read now" in verified.stdout) == (17, True)
    assert "1 of 1 sets are damaged or cannot be read" in verified.stderr


@pytest.mark.parametrize("what", ["folder", "pipe", "socket", "link"])
def test_what_says_nothing_of_where_it_came_from_is_damage(
    store: Store, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Where anything but a file stands in the place of `foreign`, the set is not the node's own: dropped."""
    made = put(store, recipe())
    place = made.folder / FOREIGN
    monkeypatch.chdir(made.folder)  # names of sockets are short
    with socket.socket(socket.AF_UNIX) as listening:
        ways: Dict[str, Callable[[], Any]] = {
            "folder": place.mkdir,
            "pipe": lambda: os.mkfifo(place),
            "socket": lambda: listening.bind(FOREIGN),
            "link": lambda: place.symlink_to(MANIFEST),
        }
        ways[what]()
    monkeypatch.undo()
    with capture_logs() as logs:
        assert store.find(recipe()) is None
    assert [log["event"] for log in logs] == ["a damaged set is dropped from the store"]
    assert not made.folder.exists()


def test_prune_leaves_it_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prune cannot tell whether it is loaded, nor what it is: whatever the rules, it stays."""
    made = put(store, recipe())
    os.utime(made.folder, ANCIENT)
    fail(monkeypatch, made, MANIFEST, errno.EIO)
    assert store.prune((), Rules(0, 0, {"another"}, "running")) == ()
    monkeypatch.undo()
    assert store.prune((), Rules(0, 0, {"another"}, "running")) == (made.key,)


def test_prune_that_can_read_no_more_drops_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged set goes only if the damage is still seen just before."""
    made = put(store, recipe())
    text = (made.folder / MANIFEST).read_bytes()
    (made.folder / MANIFEST).write_bytes(b"")
    entries = store.entries()
    (made.folder / MANIFEST).write_bytes(text)
    fail(monkeypatch, made, MANIFEST, errno.EMFILE)
    monkeypatch.setattr(Store, "entries", lambda self: entries)
    assert store.prune((), Rules(0)) == ()
    monkeypatch.undo()
    assert store.find(recipe()) == made


def test_one_that_is_lost_for_good_gives_way(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lasting EIO costs one build, not one at each start: what is built next takes its place."""
    made = put(store, recipe())
    inode = made.folder.stat().st_ino
    fail(monkeypatch, made, "nvidia-uvm.ko", errno.EIO)
    assert store.find(recipe()) is None
    again = put(store, recipe())
    assert again.folder.stat().st_ino != inode
    assert store.find(recipe()) == again


def test_a_node_goes_on_as_if_there_were_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks the registry, whose set takes that place; where nothing serves, the set is there next time."""
    cluster = Cluster(tmp_path, make_identity(tmp_path / "keys", "Build key"))
    taken = cluster.node("node").set
    fail(monkeypatch, taken, taken.paths[0].name, errno.ENOMEM)
    shared = cluster.shared.root
    shared.rename(tmp_path / "down")
    with pytest.raises(HeadersError):
        cluster.node("node")
    monkeypatch.undo()
    assert cluster.node("node").origin == "store"
    fail(monkeypatch, taken, taken.paths[0].name, errno.ENOMEM)
    (tmp_path / "down").rename(shared)
    assert cluster.node("node").origin == "registry"
    assert cluster.node("node").origin == "store"
