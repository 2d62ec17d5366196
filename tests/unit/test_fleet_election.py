"""Who leads, of several controllers, by clocks that tests set."""

from __future__ import annotations

import datetime
from typing import List, Optional

import pytest
from api_store import Store
from memory_api import MemoryApi

from nvdriver_build.fleet.controller.api import Conflict, Refused, refusal
from nvdriver_build.fleet.controller.election import DURATION, RENEWED_WITHIN, Deposed, Election
from nvdriver_build.fleet.controller.patience import Patience

WALL = datetime.datetime(2026, 11, 26, tzinfo=datetime.timezone.utc)
LEASES = "coordination.k8s.io/v1/leases"


class Candidate:
    """An election with a clock of its own, which is nobody else's."""

    def __init__(self, store: Store, name: str, now: float) -> None:
        self.now = now
        self.api = MemoryApi(store)
        self.election = Election(
            self.api,
            "gpu",
            "lease",
            name,
            lambda: self.now,
            lambda: WALL + datetime.timedelta(seconds=self.now),
        )

    def step(self, seconds: float = 0.0) -> bool:
        self.now += seconds
        return self.election.step()


@pytest.fixture
def store() -> Store:
    return Store()


def test_the_first_leads(store: Store) -> None:
    """Who comes first leads, and goes on as long as it renews."""
    one, two = Candidate(store, "one", 1000.0), Candidate(store, "two", 5.0)
    assert one.step()
    for _ in range(20):
        assert one.step(2.0)
        assert not two.step(2.0)
        assert one.election.leads
        assert not two.election.leads
    assert store.get(LEASES, "gpu", "lease")["spec"]["leaseTransitions"] == 0


def test_a_dead_leader_is_followed(store: Store) -> None:
    """The Lease is taken once it was seen unchanged for its duration, by the clock of who looks."""
    one, two = Candidate(store, "one", 1000.0), Candidate(store, "two", 5.0)
    assert one.step()
    assert not two.step()
    assert not two.step(DURATION - 1.0)
    assert two.step(2.0)
    spec = store.get(LEASES, "gpu", "lease")["spec"]
    assert (spec["holderIdentity"], spec["leaseTransitions"]) == ("two", 1)


def test_never_two_at_once(store: Store) -> None:
    """Who cannot renew stops writing before another one may begin."""
    one, two = Candidate(store, "one", 0.0), Candidate(store, "two", 0.0)
    assert one.step()
    one.api.fault = lambda verb, plural: refusal("a test", 500, "down")
    assert not two.step()
    for _ in range(10):
        one.now += 2.0
        with pytest.raises(Refused):
            one.step()
        two.step(2.0)
        assert not (one.election.leads and two.election.leads)
    assert two.election.leads
    with pytest.raises(Deposed):
        one.election.guard()


def test_released(store: Store) -> None:
    """Who ends lets the next one begin at once."""
    one, two = Candidate(store, "one", 0.0), Candidate(store, "two", 0.0)
    assert one.step()
    one.election.release()
    assert not one.election.leads
    assert two.step()


def test_a_race_has_one_winner(store: Store) -> None:
    """A stale write of the Lease is a conflict, and its writer does not lead."""
    one, two = Candidate(store, "one", 0.0), Candidate(store, "two", 0.0)
    steps: List[Optional[bool]] = []

    def between(verb: str, plural: str) -> None:
        if verb == "create" and not steps:
            steps.append(two.step())

    one.api.fault = between
    assert not one.step()
    assert steps == [True]
    assert two.election.leads


def test_renewal_is_from_when_it_was_asked(store: Store) -> None:
    """A slow answer does not make the Lease longer."""
    one = Candidate(store, "one", 0.0)

    def slow(verb: str, plural: str) -> None:
        one.now += 3.0

    one.api.fault = slow
    assert one.step()
    one.now = RENEWED_WITHIN - 0.1
    assert one.election.leads
    one.now = RENEWED_WITHIN + 0.1
    assert not one.election.leads


def test_patience_grows_and_listens() -> None:
    """Waits grow up to a bound, never all at once; Retry-After is a least one; success begins anew."""
    patience = Patience(1.0, 60.0, lambda: 0.5)
    assert [patience.after() for _ in range(8)] == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    patience.forget()
    assert patience.after(Conflict("x", status=409)) == 1.0
    assert patience.after(Refused("x", status=429, retry_after=30.0)) == 30.0
