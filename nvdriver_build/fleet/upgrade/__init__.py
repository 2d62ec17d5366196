"""A new driver, node by node: pure. Facts, settings and the time in; steps and reasons out.

`survey` looks at all nodes as the view has them, `decide` at one that is being changed, as the API has just
told it. What is under way stands on the nodes themselves (`state`), so that a controller may end anywhere.
"""

from nvdriver_build.fleet.upgrade.choosing import Survey, survey
from nvdriver_build.fleet.upgrade.deciding import Decision, Delete, Evict, Goal, Patch, Wait, begin, decide
from nvdriver_build.fleet.upgrade.node import NodeNow, Workload, in_use, node_now, with_pods
from nvdriver_build.fleet.upgrade.rollout import Progress, Rollout, rollout, rollout_document
from nvdriver_build.fleet.upgrade.settings import Settings, upgrade_settings
from nvdriver_build.fleet.upgrade.state import DRAINING, FAILED, REPLACING, State, read_state

__all__ = [
    "DRAINING",
    "FAILED",
    "REPLACING",
    "Decision",
    "Delete",
    "Evict",
    "Goal",
    "NodeNow",
    "Patch",
    "Progress",
    "Rollout",
    "Settings",
    "State",
    "Survey",
    "Wait",
    "Workload",
    "begin",
    "decide",
    "in_use",
    "node_now",
    "read_state",
    "rollout",
    "rollout_document",
    "survey",
    "upgrade_settings",
    "with_pods",
]
