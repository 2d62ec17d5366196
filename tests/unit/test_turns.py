"""Turns: one builds, the others wait for it with a bound, whatever becomes of the one."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any, Iterator, List, Optional, Tuple

import pytest
from lease_server import Leases, lease_server
from oci_registry import OciRegistry, oci_registry

from nvdriver_build.errors import Stopped
from nvdriver_build.registry.turns import (
    Board,
    Cluster,
    Either,
    LeaseBoard,
    MarkerBoard,
    NoBoard,
    Turns,
    Waits,
    in_cluster,
)

KEY = "ab" * 32
QUICK = Waits(dead=2.5, beat=0.2, first=0.05, last=0.2, most=20.0)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OciRegistry]:
    with oci_registry(tmp_path_factory.mktemp("registry")) as found:
        yield found


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Tuple[Cluster, Leases]]:
    with lease_server(tmp_path) as found:
        yield found


def marker(registry: OciRegistry, name: str) -> MarkerBoard:
    return MarkerBoard(registry.open(f"turns/{name}").content, spread=0.05, settle=0.2)


@pytest.fixture(params=["lease", "marker"])
def board(request: pytest.FixtureRequest, registry: OciRegistry, tmp_path: Path) -> Iterator[Any]:
    """Makes the board of one more node."""
    name = f"t{abs(hash(request.node.name))}"
    if request.param == "marker":
        yield lambda: marker(registry, name)
        return
    with lease_server(tmp_path) as (cluster, _):
        yield lambda: LeaseBoard(cluster)


def absent() -> Optional[str]:
    return None


def test_others_wait_for_the_one_who_builds(board: Any) -> None:
    """Ten nodes want a set at once: one builds, nine take what it has made."""
    built: List[int] = []
    taken: List[int] = []

    def node(number: int) -> None:
        turns = Turns(board(), f"node{number}", QUICK)
        with turns.turn(KEY, lambda: built[0] if built else None) as found:
            if found is None:
                time.sleep(0.5)
                built.append(number)
            else:
                taken.append(found)

    threads = [threading.Thread(target=node, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert taken == built * 9


def test_a_turn_is_given_back(board: Any) -> None:
    """Once a turn is over, the next who finds no set has it at once."""
    for name in ("one", "two", "three"):
        started = time.monotonic()
        with Turns(board(), name, QUICK).turn(KEY, absent) as found:
            assert found is None
            sight = board().look(KEY)
            assert sight is not None
            assert sight.holder.startswith(f"{name}-")
        assert time.monotonic() - started < QUICK.most / 4


def test_a_turn_is_given_back_where_the_build_fails(board: Any) -> None:
    """A build that fails gives its turn back, too."""
    with pytest.raises(RuntimeError), Turns(board(), "one", QUICK).turn(KEY, absent):
        raise RuntimeError("the build failed")
    sight = board().look(KEY)
    assert sight is not None
    assert sight.holder == ""


def test_a_dead_holder_is_succeeded(board: Any) -> None:
    """Whoever was killed during its turn is taken for dead once it gives no sign of life, by our clock."""
    assert board().claim(KEY, "killed", board().look(KEY))
    started = time.monotonic()
    with Turns(board(), "next", QUICK).turn(KEY, absent) as found:
        assert found is None
        sight = board().look(KEY)
        assert sight is not None
        assert sight.holder.startswith("next-")
    assert time.monotonic() - started >= QUICK.dead


@pytest.mark.once
def test_a_living_holder_is_waited_for(board: Any) -> None:
    """Signs of life keep a turn for longer than the time after which one is dead."""
    with Turns(board(), "one", QUICK).turn(KEY, absent):
        time.sleep(1.5 * QUICK.dead)
        assert not board().claim(KEY, "thief", None)
        waits = Waits(QUICK.dead, QUICK.beat, QUICK.first, QUICK.last, most=1.5 * QUICK.dead)
        started = time.monotonic()
        with Turns(board(), "two", waits).turn(KEY, absent) as found:
            assert found is None  # the wait has a bound, then one helps oneself
            assert time.monotonic() - started >= QUICK.dead
            sight = board().look(KEY)
            assert sight is not None
            assert sight.holder.startswith("one-")


def test_who_builds_for_nobody_takes_no_turn(board: Any) -> None:
    """A node that cannot push waits for those who can, and stands at no board itself."""
    with Turns(board(), "reader", QUICK).turn(KEY, absent, builds=False) as found:
        assert found is None
        assert board().look(KEY) is None
    made = threading.Event()

    def maker() -> None:
        with Turns(board(), "maker", QUICK).turn(KEY, absent):
            time.sleep(0.5)
            made.set()

    thread = threading.Thread(target=maker)
    thread.start()
    until = time.monotonic() + 10
    while board().look(KEY) is None and time.monotonic() < until:
        time.sleep(0.01)
    with Turns(board(), "reader", QUICK).turn(
        KEY, lambda: "set" if made.is_set() else None, builds=False
    ) as got:
        assert got == "set"
    thread.join()


def test_failing_builders_are_not_waited_for_without_end(board: Any) -> None:
    """Where some have had their turn and left no set, the next one builds without a turn."""
    stop = threading.Event()

    def failing() -> None:
        own = board()
        for number in range(20):
            if stop.is_set() or not own.claim(KEY, f"failing{number}", own.look(KEY)):
                return
            time.sleep(0.3)

    thread = threading.Thread(target=failing)
    thread.start()
    time.sleep(0.4)
    waits = Waits(dead=30, beat=10, first=0.05, last=0.1, most=60)
    started = time.monotonic()
    with Turns(board(), "patient", waits).turn(KEY, absent) as found:
        assert found is None
    stop.set()
    assert time.monotonic() - started < waits.dead / 2
    thread.join()


def test_a_signal_ends_the_wait(board: Any) -> None:
    """What `check` raises ends the wait at once."""
    assert board().claim(KEY, "other", None)

    def check() -> None:
        raise Stopped(15)

    started = time.monotonic()
    with pytest.raises(Stopped), Turns(board(), "me", QUICK, check).turn(KEY, absent):
        pass
    assert time.monotonic() - started < QUICK.dead


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_no_lease_no_matter(status: int, registry: OciRegistry, tmp_path: Path) -> None:
    """Where Leases may not be had, the marker in the registry does, for every call."""
    with lease_server(tmp_path, Leases(refuse=status)) as (cluster, leases):
        own = marker(registry, f"refused{status}")
        with Turns(Either(LeaseBoard(cluster), own), "me", QUICK).turn(KEY, absent) as found:
            assert found is None
            assert str(own.look(KEY)).count("me-") == 1
        assert sum(leases.calls.values()) <= 2


def test_no_board_no_matter(registry: OciRegistry, tmp_path: Path) -> None:
    """Where nobody can be asked, everyone builds, at once."""
    gone = Cluster("http://127.0.0.1:1", "gpu", tmp_path / "token", None)
    (tmp_path / "token").write_text("x")
    lost = registry.open("turns/lost", auth=None)
    boards: List[Board] = [
        LeaseBoard(gone),
        MarkerBoard(lost.content),
        Either(LeaseBoard(gone), MarkerBoard(lost.content)),
    ]
    for each in boards:
        with Turns(each, "me", QUICK).turn(KEY, absent) as found:
            assert found is None


def test_two_at_once_have_one_lease(cluster: Tuple[Cluster, Leases]) -> None:
    """Of many who claim a Lease that is free, or whose holder is dead, one has it."""
    for seen_holder in (None, "dead"):
        boards = [LeaseBoard(cluster[0]) for _ in range(8)]
        if seen_holder:
            assert LeaseBoard(cluster[0]).look(KEY) is not None
        seen = [board.look(KEY) for board in boards]
        won = [board.claim(KEY, f"n{i}", sight) for i, (board, sight) in enumerate(zip(boards, seen))]
        assert won.count(True) == 1


def test_what_a_lease_says_of_time_is_not_believed(cluster: Tuple[Cluster, Leases]) -> None:
    """A renewTime of years ago does not make a holder dead who still changes it."""
    one = LeaseBoard(cluster[0])
    assert one.claim(KEY, "one", one.look(KEY))
    for lease in cluster[1].there.values():
        lease["spec"]["renewTime"] = "2001-01-01T00:00:00.000000Z"
    waits = Waits(dead=1.0, beat=0.2, first=0.05, last=0.1, most=0.5)
    with Turns(LeaseBoard(cluster[0]), "two", waits).turn(KEY, absent):
        assert next(iter(cluster[1].there.values()))["spec"]["holderIdentity"] == "one"


@pytest.mark.parametrize(
    "lease", [{}, {"metadata": {}}, {"metadata": {"resourceVersion": 1}}, {"metadata": []}, [], None]
)
def test_an_api_server_that_talks_nonsense(lease: Any, cluster: Tuple[Cluster, Leases]) -> None:
    """Nonsense in place of a Lease is no board, not a crash."""
    cluster[1].there[f"nvdriver-build-{KEY}"] = lease
    with pytest.raises(NoBoard):
        LeaseBoard(cluster[0]).look(KEY)


def test_in_cluster(tmp_path: Path) -> None:
    """A pod is one where the service account is mounted and the API server's address is given."""
    assert in_cluster("10.0.0.1", "443", tmp_path) is None
    (tmp_path / "namespace").write_text("gpu\n")
    assert in_cluster(None, None, tmp_path) is None
    assert in_cluster("10.0.0.1", "6443", tmp_path) == Cluster(
        "https://10.0.0.1:6443", "gpu", tmp_path / "token", tmp_path / "ca.crt"
    )
    found = in_cluster("fd00::1", None, tmp_path)
    assert found is not None
    assert found.url == "https://[fd00::1]:443"
