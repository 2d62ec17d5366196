"""One round: look at what is, plan, and bring the cluster there."""

from __future__ import annotations

import datetime
from typing import Callable, Mapping, Optional

from attrs import define, field, frozen

from nvdriver_build.fleet.controller.acting import Acting, Applied, Done, Failed, Guard
from nvdriver_build.fleet.controller.api import Api
from nvdriver_build.fleet.controller.election import utc
from nvdriver_build.fleet.controller.upgrading import Upgrading
from nvdriver_build.fleet.controller.view import View
from nvdriver_build.fleet.manifests import Driver, Object, daemonset, plan_objects, plan_options
from nvdriver_build.fleet.plan import DaemonSetWanted, Plan, Sets, make_plan
from nvdriver_build.fleet.upgrade import Rollout, upgrade_settings


@frozen
class Outcome:
    """What a round planned, wrote, and could not write."""

    plan: Plan
    done: tuple[Done, ...]
    failed: tuple[Failed, ...]
    upgrade: Optional[Rollout] = None
    """A new driver on its way."""
    again: bool = False
    """Whether something is under way that no watch tells of."""


@define
class Rounds:
    """Makes rounds. What it remembers only spares work: a new one does the same."""

    api: Api
    view: View
    driver: Driver
    overrides: Mapping[str, str] = field(factory=dict)
    sets: Optional[Sets] = None
    contents: Mapping[str, str] = field(factory=dict)
    applied: Applied = field(factory=Applied)
    guard: Guard = lambda: None
    wall: Callable[[], datetime.datetime] = utc
    upgrades: bool = True
    _looked: dict[str, None] = field(factory=dict)
    _made: dict[DaemonSetWanted, Object] = field(factory=dict)
    _made_with: Mapping[str, str] = field(factory=dict)

    def plan(self) -> Plan:
        """What the cluster needs now."""
        return make_plan(self.view.cluster(), plan_options(self.driver, self.overrides), self.sets)

    def objects(self, plan: Plan) -> list[Object]:
        """The objects of the plan; DaemonSets that were made before are not made again."""
        if self._made_with != self.contents:
            self._made, self._made_with = {}, dict(self.contents)
        return plan_objects(plan, self.driver, self._daemonset)

    def _daemonset(self, wanted: DaemonSetWanted) -> Object:
        if wanted not in self._made:
            self._made[wanted] = daemonset(wanted, self.driver, self.contents)
        return self._made[wanted]

    def run(self) -> Outcome:
        """Plan and act. A write that fails is in the outcome; `guard` may raise."""
        plan = self.plan()
        objects, space, now = self.objects(plan), self.driver.namespace, self.wall()
        settings = upgrade_settings(self.driver.upgrade)
        unbuilt = {name for each in plan.groups if each.unbuilt for name in each.nodes}
        more = Upgrading(
            self.api, self.view, space, settings, self.guard, now, self.upgrades, self._looked, unbuilt
        )
        acting = Acting(self.api, self.view, space, self.applied, self.guard, more.failing(objects), unbuilt)
        acting.act(plan, objects)
        told = more.run(objects)
        done, failed = (*acting.done, *more.done), (*acting.failed, *more.failed)
        return Outcome(plan, done, failed, told, more.again)
