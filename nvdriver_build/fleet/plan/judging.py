"""The state of a group, and why: what is there to serve its nodes with."""

from __future__ import annotations

from typing import Optional

from attrs import frozen

from nvdriver_build.fleet.facts import Job
from nvdriver_build.fleet.plan.groups import Kind
from nvdriver_build.fleet.plan.toolkits import Found
from nvdriver_build.fleet.plan.values import (
    BROKEN_TOOLKIT,
    CAN_BUILD,
    NO_TOOLKIT,
    PREBUILD_FAILED,
    PREBUILD_WANTED,
    PREBUILDING,
    PREBUILT,
    SET,
    UNSUPPORTED,
)
from nvdriver_build.fleet.reasons import Reason

_STORE = "only what a node's own store has can serve; nothing falls back to packages or entitlements"
_WANTED = Reason("PrebuildWanted", "no set of it is known yet")
_PUBLISH = "put a signed set into the registry (prebuild, store push), or mend the toolkit"


@frozen
class Verdict:
    """A state, and the reasons for it."""

    state: str
    reasons: tuple[Reason, ...] = ()


def judge(
    kind: Kind, nodes: bool, found: Found, there: Optional[bool], job: Optional[Job], prebuild: bool
) -> Verdict:
    """The state of nodes of this kind, or of those that are coming to it where there are no `nodes` yet.

    `there` is whether a set is in the registry, `job` the prebuild of this very kind, `prebuild` whether
    one is possible.
    """
    if not kind.served:
        return _unsupported(kind)
    built = job is not None and job.state == "done" and there is not False
    if there or built:
        what = f"the Job {job.name} has built it" if job and built else "a set is in the registry"
        return Verdict(SET if nodes else PREBUILT, (Reason("SetThere", what),))
    if not found.usable:
        state = BROKEN_TOOLKIT if found.broken else NO_TOOLKIT
        known = "no set is in the registry" if there is False else "no set is known to be in the registry"
        return Verdict(state, (Reason("NothingToServe", f"{known}: {_STORE}", _PUBLISH),))
    if job is not None:
        return _by_job(job)
    return _here(prebuild and there is False) if nodes else _ahead(kind, prebuild)


def _unsupported(kind: Kind) -> Verdict:
    if kind.version is None:
        return Verdict(
            UNSUPPORTED, (Reason("NoVersion", "no RHCOS version, so that no DaemonSet can be for it"),)
        )
    message = f"the architecture is {kind.arch or 'not known'}"
    return Verdict(UNSUPPORTED, (Reason("Architecture", message, "x86_64 and arm64 are served"),))


def _by_job(job: Job) -> Verdict:
    again = f"delete it to try again: oc -n {job.namespace} delete job {job.name}"
    if job.state == "failed":
        message = f"the Job {job.name} failed: {job.message or 'no reason given'}"
        return Verdict(PREBUILD_FAILED, (Reason("PrebuildFailed", message, f"its logs say why; {again}"),))
    if job.state == "done":
        message = f"the Job {job.name} has built it, and the registry does not have it"
        return Verdict(PREBUILD_WANTED, (Reason("PrebuildGone", message, f"where that lasts, {again}"),))
    return Verdict(PREBUILDING, (Reason("Prebuilding", f"the Job {job.name} is building"),))


def _here(lacking: bool) -> Verdict:
    """Nodes have no key: where the registry lacks their set a Job builds it, since under Secure Boot nothing
    else can serve them.
    """
    if lacking:
        return Verdict(PREBUILD_WANTED, (_WANTED,))
    message = "each node builds once, and keeps it; under Secure Boot it takes a key there"
    return Verdict(CAN_BUILD, (Reason("BuildsOnNode", message),))


def _ahead(kind: Kind, prebuild: bool) -> Verdict:
    if not prebuild:
        message = "a prebuilt set takes a registry, a key that signs it and a certificate that nodes trust"
        hint = "give registry, sign_secret and trust"
        return Verdict(CAN_BUILD, (Reason("NoPrebuild", message, hint),))
    if kind.kernel is None and kind.flavour != "standard":
        message = f"the toolkit does not say which {kind.flavour} kernel it holds: the first node builds"
        return Verdict(CAN_BUILD, (Reason("KernelUnknown", message),))
    return Verdict(PREBUILD_WANTED, (_WANTED,))
