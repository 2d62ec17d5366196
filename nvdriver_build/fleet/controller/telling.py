"""Kubernetes Events: what was done, what failed, and which group of nodes is blocked or not any more.

An Event's name is made of what it says, so that a restarted controller, which says the same, writes none
twice. None is written about a node, which is in another namespace: what is done to one whose driver is
replaced is told of the status.
"""

from __future__ import annotations

import datetime
from typing import Callable, Iterable

import structlog
from attrs import define, field, frozen

from nvdriver_build.errors import ClusterError
from nvdriver_build.fleet.controller.acting import Done, Failed
from nvdriver_build.fleet.controller.api import Api, Conflict
from nvdriver_build.fleet.controller.kinds import CONFIG_MAP, EVENT, NODE, Kind
from nvdriver_build.fleet.controller.rounds import Outcome
from nvdriver_build.fleet.plan import Group
from nvdriver_build.fleet.reasons import Reason
from nvdriver_build.fleet.versions import digest

COMPONENT = "nvdriver-build"
LABELLED = "NodeLabelled"
"""Not told by an Event: there is one for each node."""
_BAD = ("UpgradeFailed",)
_MOST = 1024
_log = structlog.get_logger()


@frozen
class Said:
    """One Event, less its time."""

    type: str
    reason: str
    message: str
    kind: Kind
    name: str


@define
class Teller:
    """Writes Events about what is new. `about` is the name of the status ConfigMap: groups are no objects."""

    api: Api
    namespace: str
    about: str
    wall: Callable[[], datetime.datetime]
    said: set[Said] = field(factory=set)

    def tell(self, outcome: Outcome) -> None:
        """Never fails: an Event that is lost is also in log and status."""
        states = {self._group(group) for group in outcome.plan.groups}
        failures = {self._failure(each) for each in outcome.failed}
        upgrade = outcome.upgrade.reasons if outcome.upgrade else ()
        stops = {self._reason(each) for each in upgrade if each.hint}
        acts = [self._act(each) for each in outcome.done if each.code != LABELLED]
        for said in (*acts, *sorted((states | failures | stops) - self.said, key=repr)):
            self._write(said)
        self.said = states | failures | stops

    def _act(self, done: Done) -> Said:
        """What was done to a node is told of our status: a node has no namespace."""
        kind, name = (CONFIG_MAP, self.about) if done.kind is NODE else (done.kind, done.name)
        return Said("Warning" if done.code in _BAD else "Normal", done.code, done.message, kind, name)

    def _reason(self, reason: Reason) -> Said:
        told = f"{reason.message}. {reason.hint}"
        return Said("Warning", reason.code, told, CONFIG_MAP, self.about)

    def _group(self, group: Group) -> Said:
        who = f"{group.version or 'no version'}, {group.kernel or 'kernel not known'}, {group.arch}"
        what = f"{who}: {group.state}"
        told = f"{what}. {_last(group)}" if group.blocked else what
        kind = "Warning" if group.blocked else "Normal"
        return Said(kind, _camel(group.state), told, CONFIG_MAP, self.about)

    def _failure(self, failed: Failed) -> Said:
        kind, name = (CONFIG_MAP, self.about) if failed.kind is NODE else (failed.kind, failed.name)
        message = f"{failed.kind.name} {failed.name}: {failed.error.message}"
        return Said("Warning", "WriteFailed", message, kind, name)

    def _write(self, said: Said) -> None:
        now = self.wall()
        stamp, hour = now.strftime("%Y-%m-%dT%H:%M:%SZ"), now.strftime("%Y%m%d%H")
        name = f"{said.name[:180]}.{digest(repr((said.reason, said.message, hour)))}"
        whole, space = said.kind.api_version, self.namespace
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": space},
            "involvedObject": {
                "apiVersion": whole,
                "kind": said.kind.name,
                "name": said.name,
                "namespace": space,
            },
            "reason": said.reason,
            "message": said.message[:_MOST],
            "type": said.type,
            "source": {"component": COMPONENT},
            "reportingComponent": COMPONENT,
            "firstTimestamp": stamp,
            "lastTimestamp": stamp,
            "count": 1,
        }
        try:
            self.api.create(EVENT, event)
        except Conflict:
            return  # said before
        except ClusterError as error:
            _log.info("an Event is lost", reason=said.reason, error=error.message)


def _camel(state: str) -> str:
    return "".join(word.title() for word in state.split())


def _last(group: Group) -> str:
    told: Iterable[str] = (part for part in (group.reasons[-1].message, group.reasons[-1].hint) if part)
    return "; ".join(told) if group.reasons else ""
