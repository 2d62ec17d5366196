"""How far a new driver has come: which nodes may be begun now, and what people are told."""

from __future__ import annotations

from typing import Any, Collection, Optional

from attrs import asdict, frozen

from nvdriver_build.fleet.reasons import Reason, some
from nvdriver_build.fleet.upgrade.choosing import Survey
from nvdriver_build.fleet.upgrade.node import NodeNow
from nvdriver_build.fleet.upgrade.settings import Settings
from nvdriver_build.fleet.upgrade.state import FAILED, stamp


@frozen
class Progress:
    """A node that is being changed, or has failed. `why` is what is in the way."""

    node: str
    stage: str
    since: str
    why: str


@frozen
class Rollout:
    """A new driver on its way. `begin` are nodes to begin with now, in order, of which `room` at most; `mend`
    and `mend_room` are the same of those whose older driver is not ready: no other becomes unavailable.
    """

    nodes: int
    done: int
    waiting: int
    in_progress: tuple[Progress, ...] = ()
    failed: tuple[Progress, ...] = ()
    reasons: tuple[Reason, ...] = ()
    begin: tuple[str, ...] = ()
    room: int = 0
    mend: tuple[str, ...] = ()
    mend_room: int = 0


def rollout(found: Survey, marked: Collection[NodeNow], settings: Settings) -> Optional[Rollout]:
    """None where every driver is as wanted. `marked` are the nodes with our mark, as the API has them now."""
    states = {each.node.name: each.state for each in marked if each.state is not None}
    if not found.waiting and not marked:
        return None
    shown = [Progress(name, each.stage, stamp(each.since), each.why) for name, each in sorted(states.items())]
    taken = {name for name, each in states.items() if each.down}
    limit = settings.limit(len(found.goals))
    failed = [
        name
        for name, each in states.items()
        if each.stage == FAILED and name in found.goals and found.goals[name].driver == each.driver
    ]
    stop = _stopped(limit, failed, settings)
    begin = [name for name in found.ready if name not in states]
    mend = [name for name in begin if name in found.down]
    room = 0 if stop else max(0, limit - len(taken | found.down))
    mend_room = 0 if stop else max(0, limit - len(taken | (found.down - set(mend))))
    more = [stop] if stop else _full(mend_room if mend else room, limit, found.down - set(mend), taken)
    return Rollout(
        nodes=len(found.goals),
        done=found.done,
        waiting=found.waiting,
        in_progress=tuple(each for each in shown if each.stage != FAILED),
        failed=tuple(each for each in shown if each.stage == FAILED),
        reasons=(*(more if found.waiting else ()), *found.reasons),
        begin=tuple(name for name in begin if name not in mend),
        room=room,
        mend=tuple(mend),
        mend_room=mend_room,
    )


def _stopped(limit: int, failed: list[str], settings: Settings) -> Optional[Reason]:
    if limit == 0:
        message = "drivers stay as they are: upgrade.max_unavailable is 0"
        return Reason("UpgradeOff", message, "a pod of the new driver comes where the old one is deleted")
    if len(failed) < settings.max_failures:
        return None
    message = f"no other node is begun: {len(failed)} have failed ({some(failed)})"
    hint = (
        "see why with 'fleet status'; other settings (or the old ones) go on at once, and so does taking the "
        "annotation nvdriver-build/upgrade from a node"
    )
    return Reason("UpgradeStopped", message, hint)


def _full(room: int, limit: int, down: Collection[str], taken: Collection[str]) -> list[Reason]:
    """Told only where nodes that we did not take are in the way."""
    others = set(down) - set(taken)
    if room or not others:
        return []
    message = f"{limit} nodes may be without their driver at once, and {some(others)} are already"
    return [Reason("UpgradeWaits", message, "mend these, or raise upgrade.max_unavailable")]


def rollout_document(found: Optional[Rollout]) -> Optional[dict[str, Any]]:
    """As the status keeps it."""
    if found is None:
        return None
    return {
        "nodes": found.nodes,
        "done": found.done,
        "waiting": found.waiting,
        "in_progress": [asdict(each) for each in found.in_progress],
        "failed": [asdict(each) for each in found.failed],
        "reasons": [reason.document() for reason in found.reasons],
    }
