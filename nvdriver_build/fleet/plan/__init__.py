"""Facts in, plan out: which toolkit, DaemonSet, prebuild and node label there has to be, and why."""

from nvdriver_build.fleet.plan.document import plan_document
from nvdriver_build.fleet.plan.making import make_plan, prebuild_key
from nvdriver_build.fleet.plan.values import (
    DaemonSetWanted,
    Group,
    NodeLabel,
    Options,
    Plan,
    PrebuildWanted,
    Sets,
    Toolkit,
    UnknownSets,
)

__all__ = [
    "DaemonSetWanted",
    "Group",
    "NodeLabel",
    "Options",
    "Plan",
    "PrebuildWanted",
    "Sets",
    "Toolkit",
    "UnknownSets",
    "make_plan",
    "plan_document",
    "prebuild_key",
]
