"""What Prometheus is told."""

from __future__ import annotations

from typing import Optional

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from nvdriver_build.fleet.controller.kinds import Kind
from nvdriver_build.fleet.controller.rounds import Outcome
from nvdriver_build.fleet.plan.values import BROKEN_TOOLKIT, NO_TOOLKIT

_PREFIX = "nvdriver_fleet_"


class Metrics:
    """Counted in a registry of its own, so that tests stand beside each other."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            f"{_PREFIX}api_requests",
            "Requests to the API.",
            ("verb", "kind", "status"),
            registry=self.registry,
        )
        self._rounds = Counter(f"{_PREFIX}rounds", "Rounds made.", ("result",), registry=self.registry)
        self._seconds = Histogram(
            f"{_PREFIX}round_seconds", "How long a round takes.", registry=self.registry
        )
        self._lists = Counter(
            f"{_PREFIX}lists", "Times that a kind was listed whole.", ("kind",), registry=self.registry
        )
        self._nodes = Gauge(
            f"{_PREFIX}nodes",
            "GPU nodes by RHCOS version and state.",
            ("version", "state"),
            registry=self.registry,
        )
        self._blocked = Gauge(
            f"{_PREFIX}blocked_groups", "Groups that need a person.", registry=self.registry
        )
        self._toolkits = Gauge(
            f"{_PREFIX}groups_without_toolkit",
            "Groups whose toolkit is missing or broken.",
            registry=self.registry,
        )
        self._upgrade = Gauge(
            f"{_PREFIX}upgrade_nodes",
            "Nodes by what a new driver on its way is for them.",
            ("state",),
            registry=self.registry,
        )
        self._leader = Gauge(f"{_PREFIX}leader", "1 where this one leads.", registry=self.registry)
        self._last = Gauge(
            f"{_PREFIX}last_round_timestamp_seconds",
            "When the last good round ended.",
            registry=self.registry,
        )

    def request(self, verb: str, kind: Kind, status: int) -> None:
        """One request to the API; status 0 is no answer."""
        self._requests.labels(verb, kind.plural, str(status)).inc()

    def listed(self, kind: Kind) -> None:
        """A kind was read whole."""
        self._lists.labels(kind.plural).inc()

    def leads(self, leads: bool) -> None:
        """Whether this one leads."""
        self._leader.set(int(leads))

    def round(self, outcome: Optional[Outcome], seconds: float) -> None:
        """A round ended; None where it did not come to its end."""
        good = outcome is not None and not outcome.failed
        self._rounds.labels("good" if good else "failed").inc()
        self._seconds.observe(seconds)
        if outcome is None:
            return
        if good:
            self._last.set_to_current_time()
        self._nodes.clear()
        for group in outcome.plan.groups:
            self._nodes.labels(group.version or "", group.state).inc(len(group.nodes))
        told = outcome.upgrade
        self._upgrade.labels("waiting").set(told.waiting if told else 0)
        self._upgrade.labels("in_progress").set(len(told.in_progress) if told else 0)
        self._upgrade.labels("failed").set(len(told.failed) if told else 0)
        states = [group.state for group in outcome.plan.groups]
        self._blocked.set(sum(group.blocked for group in outcome.plan.groups))
        self._toolkits.set(states.count(BROKEN_TOOLKIT) + states.count(NO_TOOLKIT))

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)
