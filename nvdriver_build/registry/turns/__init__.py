"""Whose turn it is to build a set: one builds, the others wait, with a bound, and then help themselves.

A `Board` is where a name stands beside a key: a Kubernetes Lease (`lease`), which one alone can take, or a
tag in the registry (`marker`), which has no compare-and-swap, so that now and then two believe to have it.
Nothing breaks then: a set that is built twice is the same set. A board that fails costs its turns, never the
set.
"""

from nvdriver_build.registry.turns.board import Board, Either, NoBoard, Sight
from nvdriver_build.registry.turns.lease import Cluster, LeaseBoard, in_cluster
from nvdriver_build.registry.turns.marker import MarkerBoard
from nvdriver_build.registry.turns.waiting import Turns, Waits

__all__ = [
    "Board",
    "Cluster",
    "Either",
    "LeaseBoard",
    "MarkerBoard",
    "NoBoard",
    "Sight",
    "Turns",
    "Waits",
    "in_cluster",
]
