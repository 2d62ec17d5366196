"""The status ConfigMap: the last plan as JSON, and conditions as Kubernetes has them.

Written when it says something else than before, and read by `fleet status` and by people.
"""

from __future__ import annotations

import datetime
import json
from typing import Any, Callable, Optional

from attrs import define

from nvdriver_build.fleet.controller.api import Api, Missing
from nvdriver_build.fleet.controller.kinds import CONFIG_MAP
from nvdriver_build.fleet.controller.rounds import Outcome
from nvdriver_build.fleet.manifests.common import made
from nvdriver_build.fleet.manifests.driver import Driver
from nvdriver_build.fleet.names import FLEET
from nvdriver_build.fleet.objects import texts
from nvdriver_build.fleet.plan import Plan, plan_document
from nvdriver_build.fleet.plan.values import CAN_BUILD, PREBUILT
from nvdriver_build.fleet.reasons import some
from nvdriver_build.fleet.upgrade import rollout_document

_MOST = 900_000
"""Bytes: a ConfigMap may have a MiB."""


def status_name(driver: Driver) -> str:
    """Of the ConfigMap."""
    return f"{driver.name}-status"


@define
class Reporter:
    """Keeps the status ConfigMap."""

    api: Api
    driver: Driver
    wall: Callable[[], datetime.datetime]
    _before: Optional[list[dict[str, Any]]] = None
    _written: Optional[dict[str, str]] = None

    def report(self, outcome: Outcome) -> None:
        """Write what is new. Raises what the API raises."""
        conditions = self._since(_conditions(outcome))
        plan = json.dumps({"schema": 1, **plan_document(outcome.plan)}, indent=1)
        data = {"conditions": json.dumps(conditions, indent=1), "plan": plan if len(plan) < _MOST else "{}"}
        data["upgrade"] = json.dumps(rollout_document(outcome.upgrade), indent=1)
        if data != self._written:
            document = made("v1", "ConfigMap", self.driver, status_name(self.driver), FLEET)
            self.api.apply(CONFIG_MAP, {**document, "data": data}, force=True)
            self._before, self._written = conditions, data

    def _since(self, now: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """With the time of the last change of each status, also of those from before a restart."""
        if self._before is None:
            self._before = self._read()
        before = {each.get("type"): each for each in self._before if isinstance(each, dict)}
        stamp = self.wall().strftime("%Y-%m-%dT%H:%M:%SZ")
        for each in now:
            old = before.get(each["type"], {})
            same = old.get("status") == each["status"] and isinstance(old.get("lastTransitionTime"), str)
            each["lastTransitionTime"] = old["lastTransitionTime"] if same else stamp
        return now

    def _read(self) -> list[dict[str, Any]]:
        try:
            found = self.api.get(CONFIG_MAP, status_name(self.driver), self.driver.namespace)
            conditions = json.loads(texts(found, "data").get("conditions", "[]"))
        except (Missing, ValueError):
            return []
        return conditions if isinstance(conditions, list) else []


def _conditions(outcome: Outcome) -> list[dict[str, Any]]:
    plan = outcome.plan
    blocked = [group for group in plan.groups if group.blocked]
    served = [group for group in plan.groups if not group.coming]
    return [
        _condition("Blocked", str(bool(blocked)), *_why_blocked(blocked, len(plan.groups))),
        _condition("Prebuilt", *_prebuilt(plan)),
        _condition(
            "Applied",
            str(not outcome.failed),
            "WritesFailed" if outcome.failed else "AsPlanned",
            some(f"{each.kind.name} {each.name}: {each.error.message}" for each in outcome.failed)
            or f"{len(plan.daemonsets)} DaemonSets for {sum(len(each.nodes) for each in served)} nodes",
        ),
    ]


def _why_blocked(blocked: list[Any], count: int) -> tuple[str, str]:
    if not blocked:
        return "Served", f"{count} groups of nodes have what they need"
    return "NeedsAPerson", some(f"{each.version or 'no version'}: {each.state}" for each in blocked)


def _prebuilt(plan: Plan) -> tuple[str, str, str]:
    """True says that nodes may come: not while nothing is known to be coming, which a script that has just
    begun an upgrade would take for it, and not where each node has to build.
    """
    coming = [group for group in plan.groups if group.coming]
    lacking = [group for group in coming if group.state != PREBUILT]
    if not coming:
        return "Unknown", "NothingComing", "no other RHCOS version is known to be coming"
    if not lacking:
        return "True", "Ready", some(f"{each.version}: {each.state}" for each in coming)
    reason = "CannotPrebuild" if all(each.state == CAN_BUILD for each in lacking) else "Waiting"
    return "False", reason, some(f"{each.version}: {each.state}" for each in lacking)


def _condition(kind: str, status: str, reason: str, message: str) -> dict[str, Any]:
    return {"type": kind, "status": status, "reason": reason, "message": message[:1024]}
