"""Who leads, where several controllers run: the one that holds the Lease and renews it.

As client-go's leaderelection: a Lease counts as lost by the clock of who looks at it, from when it was last
seen to change; nobody's clock is compared with another's. Who could not renew in time stops writing before
another may begin.
"""

from __future__ import annotations

import datetime
import time
from typing import Any, Callable, Optional

from attrs import define

from nvdriver_build.errors import ClusterError
from nvdriver_build.fleet.controller.api import Api, ApiError, Conflict, Document, Missing
from nvdriver_build.fleet.controller.kinds import LEASE
from nvdriver_build.fleet.objects import number, part, text

DURATION, RENEWED_WITHIN, EVERY = 15, 10.0, 2.0
"""Seconds: a Lease lives; a leader stops that could not renew; between two tries."""


class Deposed(ApiError):
    """Another one leads, or may."""


def utc() -> datetime.datetime:
    """Now, as the API's timestamps have it."""
    return datetime.datetime.now(datetime.timezone.utc)


@define
class Election:
    """One candidate. `step` is called every `EVERY` seconds by one thread; `leads` by any."""

    api: Api
    namespace: str
    name: str
    identity: str
    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], datetime.datetime] = utc
    _renewed: Optional[float] = None
    _seen: tuple[object, float] = (None, 0.0)

    @property
    def leads(self) -> bool:
        """Whether we may write."""
        renewed = self._renewed
        return renewed is not None and self.clock() - renewed < RENEWED_WITHIN

    def guard(self) -> None:
        """Raises `Deposed` where we may not write."""
        if not self.leads:
            hint = "nothing has to be done: the other one goes on"
            raise Deposed(f"the Lease {self.namespace}/{self.name} is not ours any more", hint=hint)

    def step(self) -> bool:
        """Take the Lease or renew it, if we may. Raises what the API raises."""
        asked = self.clock()
        try:
            held = self.api.get(LEASE, self.name, self.namespace)
        except Missing:
            held = None
        if held is None:
            return self._took(asked, self.api.create, self._lease(None))
        if text(held, "spec", "holderIdentity") not in (None, self.identity) and not self._lapsed(held):
            self._renewed = None
            return False
        return self._took(asked, self.api.replace, self._lease(held))

    def release(self) -> None:
        """Let another one begin at once. Never fails: the Lease lapses anyway."""
        if not self.leads:
            return
        self._renewed = None
        try:
            held = dict(self.api.get(LEASE, self.name, self.namespace))
            if text(held, "spec", "holderIdentity") == self.identity:
                spec = {**part(held, "spec"), "holderIdentity": None, "leaseDurationSeconds": 1}
                self.api.replace(LEASE, {**held, "spec": spec})
        except ClusterError:
            return

    def _took(self, asked: float, write: Callable[[Any, Document], Document], lease: Document) -> bool:
        try:
            write(LEASE, lease)
        except Conflict:  # another one was faster
            self._renewed = None
            return False
        self._renewed = asked
        return True

    def _lapsed(self, held: Document) -> bool:
        spec = part(held, "spec")
        record = (spec.get("holderIdentity"), spec.get("renewTime"), spec.get("leaseTransitions"))
        if record != self._seen[0]:
            self._seen = (record, self.clock())
        return self.clock() - self._seen[1] > (number(held, "spec", "leaseDurationSeconds") or DURATION)

    def _lease(self, held: Optional[Document]) -> Document:
        now = self.wall().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = part(held, "spec")
        same = spec.get("holderIdentity") == self.identity
        changes = (number(held, "spec", "leaseTransitions") or 0) + (0 if same or held is None else 1)
        return {
            "apiVersion": LEASE.api_version,
            "kind": LEASE.name,
            "metadata": part(held, "metadata") or {"name": self.name, "namespace": self.namespace},
            "spec": {
                "holderIdentity": self.identity,
                "leaseDurationSeconds": DURATION,
                "acquireTime": spec.get("acquireTime") if same else now,
                "renewTime": now,
                "leaseTransitions": changes,
            },
        }
