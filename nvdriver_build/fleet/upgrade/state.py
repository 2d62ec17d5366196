"""What stands on a node whose driver is being changed: an annotation, and a label by which it is found.

    nvdriver-build/upgrade: {"stage": "draining", "driver": "0123abcd", "since": "2026-11-26T05:00:00Z",
                             "cordoned": true, "why": ""}

Both, and the node's cordon, are written by one patch: no crash can lose who cordoned it.
"""

from __future__ import annotations

import datetime
import json
from typing import Optional

from attrs import frozen

from nvdriver_build.fleet.objects import flag, text

DRAINING, REPLACING, FAILED = "draining", "replacing", "failed"
"""Pods leave the node; its driver's pod is replaced; it took too long."""
_STAGES = (DRAINING, REPLACING, FAILED)
_FORM = "%Y-%m-%dT%H:%M:%SZ"
_WHY = 400


@frozen
class State:
    """`driver` is the digest of what the node goes to (`DRIVER_NOTE`), `since` when the stage began.

    `cordoned` is whether the cordon is ours, to be taken away again. `why` is what is in the way, or why it
    failed.
    """

    stage: str
    driver: str
    since: datetime.datetime
    cordoned: bool = True
    why: str = ""

    @property
    def down(self) -> bool:
        """Whether the node is taken from its users by us."""
        return self.stage != FAILED or self.cordoned

    def age(self, now: datetime.datetime) -> float:
        """Seconds; a clock that went back gives none."""
        return max(0.0, (now - self.since).total_seconds())

    def text(self) -> str:
        """As in the annotation."""
        fields = {"stage": self.stage, "driver": self.driver, "since": stamp(self.since)}
        return json.dumps({**fields, "cordoned": self.cordoned, "why": self.why[:_WHY]})


def stamp(when: datetime.datetime) -> str:
    """RFC 3339, to the second."""
    return when.astimezone(datetime.timezone.utc).strftime(_FORM)


def read_state(note: Optional[str]) -> Optional[State]:
    """What the annotation says; None for none, and for what is none of ours."""
    try:
        found = json.loads(note or "null")
        since = datetime.datetime.strptime(text(found, "since") or "", _FORM)
    except (ValueError, RecursionError):
        return None
    stage, driver = text(found, "stage"), text(found, "driver")
    if stage not in _STAGES or driver is None:
        return None
    when = since.replace(tzinfo=datetime.timezone.utc)
    return State(stage, driver, when, flag(found, "cordoned"), text(found, "why") or "")
