"""Whoever answers each time just in time is not waited for without end: bounds hold in sum."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
from attrs import evolve
from clusters import NEXT, Cluster
from hostile_registry import QUICK, Handler, Hostile
from structlog.testing import capture_logs

from nvdriver_build.errors import Stopped, StoreError
from nvdriver_build.obtain import ways
from nvdriver_build.registry import hints
from nvdriver_build.registry.artifacts import note
from nvdriver_build.registry.turns import MarkerBoard, Turns, Waits, marker
from nvdriver_build.store import SharedStore

KEY = "ab" * 32


def drip(handler: Handler) -> bool:
    """Each answer comes in time."""
    time.sleep(0.4)
    return False


def test_a_node_builds_however_slowly_others_answer(
    hostile: Hostile, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 64 sets that are named it asks for those that there is time for, and builds."""
    wish = cluster.wish(cluster.target(NEXT, more=7))
    tag = hints.wanted_tag(wish.recipe(), wish.target)
    assert tag is not None
    keys = ",".join(f"{number:064x}" for number in range(64))
    hostile.documents[tag], hostile.hook = note(hints._FIT, {hints._KEYS: keys}), drip
    monkeypatch.setattr(ways, "_WAIT_OUTSIDE", 1.0)
    with capture_logs() as logs:
        found = cluster.node("node", target=wish.target, headers=True, remote=hostile.open())
    assert found.origin == "built"
    assert len(hostile.seen) <= 3
    assert "does not serve" in str([log["event"] for log in logs])


def test_a_module_that_drips_is_cut_off(hostile: Hostile, cluster: Cluster, tmp_path: Path) -> None:
    """A transfer that has begun ends when the time is over, too."""
    hostile.hold(cluster.built, tmp_path / "held")

    def drip_bytes(handler: Handler) -> bool:
        data = hostile.blobs[handler.path.rpartition("/")[2]]
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        for byte in data:
            handler.wfile.write(bytes((byte,)))
            time.sleep(0.05)
        return True

    offer = hostile.open().before(time.monotonic() + 0.5).offer(cluster.built.key)
    assert offer is not None
    hostile.hook = drip_bytes
    started = time.monotonic()
    with pytest.raises(StoreError, match="not done after"):
        offer.fetch(tmp_path / "taken")
    with pytest.raises(StoreError, match="all the time that it gets is over"):
        offer.fetch(tmp_path / "again")
    assert time.monotonic() - started < QUICK.answer


def test_a_turn_ends_with_the_time_for_all(hostile: Hostile) -> None:
    """However long one could wait for others, and however long it takes to claim a turn."""

    def keep(handler: Handler) -> bool:
        drip(handler)
        if handler.command != "PUT":
            return False
        data = handler.rfile.read(int(handler.headers["Content-Length"]))
        hostile.documents[handler.path.rpartition("/")[2]] = data
        handler.reply(201, b"")
        return True

    hostile.hook = keep
    board = MarkerBoard(hostile.open().content, spread=0.0, settle=60.0)
    for said in (None, {marker._HOLDER: "other", marker._BEAT: "1"}):
        hostile.documents = {f"turn-{KEY}": note(marker._TURN, said)} if said else {}
        started = time.monotonic()
        with capture_logs(), Turns(board, "me", Waits()).turn(KEY, lambda: None, until=started + 2) as found:
            assert found is None
        assert time.monotonic() - started < 6


def test_a_note_that_nobody_keeps(hostile: Hostile) -> None:
    """A set that is given is soon given: the node that has built it has still to load it."""

    def forget(handler: Handler) -> bool:
        handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        drip(handler)
        handler.reply(201 if handler.command == "PUT" else 404, b"")
        return True

    hostile.hook, started = forget, time.monotonic()
    with pytest.raises(StoreError):
        hints.add(hostile.open(limits=evolve(QUICK, answer=0.6)).content, ("fit-x", "kernel-x"), KEY)
    assert time.monotonic() - started < 4


@pytest.mark.parametrize("how", ["signal", "time"])
def test_an_index_that_names_nothing_that_fits(how: str, cluster: Cluster) -> None:
    """A search among many entries of a shared folder ends at a signal, and when the time is over."""
    wish = cluster.wish(cluster.target(NEXT, more=7))
    (entry,) = (cluster.shared.root / "index").glob("*/*")
    rubbish = entry.read_bytes() + b"00000000 nothing_like_it\n"
    entry.unlink()
    for number in range(300):
        entry.with_name(f"{number:064x}").write_bytes(rubbish)
    looked = 0

    def check() -> None:
        nonlocal looked
        looked += 1
        if how == "signal" and looked == 5:
            raise Stopped(15)

    store = SharedStore(cluster.shared.root, check)
    assert list(evolve(store, check=lambda: None).candidates(wish.recipe(), wish.target)) == []
    until = time.monotonic() + (60 if how == "signal" else 0)
    with pytest.raises(Stopped if how == "signal" else StoreError):
        list(store.before(until).candidates(wish.recipe(), wish.target))
    assert looked == (5 if how == "signal" else 1)


def test_a_shared_folder_of_a_thousand_sets(cluster: Cluster) -> None:
    """Each of them is found that might fit."""
    wish = cluster.wish(cluster.target(NEXT, more=7))
    (entry,) = (cluster.shared.root / "index").glob("*/*")
    keys = {f"{number:064x}" for number in range(1000)}
    for key in keys:
        shutil.copyfile(entry, entry.with_name(key))
    found = set(cluster.shared.candidates(wish.recipe(), wish.target))
    assert found == keys | {cluster.built.key}
