"""GPU nodes that are alike, and what is known of each kind: the facts of a group before anything is
decided.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Iterable, Mapping, NamedTuple, Optional

from nvdriver_build.fleet.facts import Cluster, Node
from nvdriver_build.fleet.reasons import Reason, some
from nvdriver_build.fleet.versions import PLATFORMS

_MOST = 8
"""Reasons of one kind that a group tells."""


class Kind(NamedTuple):
    """What makes nodes alike."""

    version: Optional[str]
    kernel: Optional[str]
    flavour: str
    arch: Optional[str]

    @property
    def order(self) -> tuple[str, ...]:
        """By which groups are listed."""
        return tuple(part or "" for part in self)

    @property
    def served(self) -> bool:
        """Whether a DaemonSet of ours can serve such nodes at all."""
        return self.version is not None and self.arch in PLATFORMS


def kind_of(node: Node) -> Kind:
    """The kind that a node is of."""
    return Kind(node.version, node.kernel, node.flavour, node.arch)


def gpu_groups(cluster: Cluster) -> Mapping[Kind, list[Node]]:
    """The GPU nodes by kind, in an order that does not depend on that of the facts."""
    found: dict[Kind, list[Node]] = defaultdict(list)
    for node in cluster.nodes:
        if node.gpu:
            found[kind_of(node)].append(node)
    return {kind: sorted(found[kind], key=lambda node: node.name) for kind in sorted(found, key=_order)}


def _order(kind: Kind) -> tuple[str, ...]:
    return kind.order


def reasons_of(nodes: Iterable[Node]) -> list[Reason]:
    """What is odd about these nodes, each said once, with the names of those that it is true of."""
    names: dict[Reason, list[str]] = defaultdict(list)
    for node in nodes:
        for reason in node.reasons:
            names[reason].append(node.name)
    told = [
        Reason(reason.code, f"{some(names[reason])}: {reason.message}", reason.hint)
        for reason in sorted(names)[:_MOST]
    ]
    if len(names) > _MOST:
        told.append(Reason("More", f"and {len(names) - _MOST} more such reasons of single nodes"))
    return told


def excluded(cluster: Cluster) -> list[Reason]:
    """The nodes that have a GPU and get no driver of ours, by what forbids it."""
    names: dict[str, list[str]] = defaultdict(list)
    for node in cluster.nodes:
        if node.excluded is not None:
            names[node.excluded].append(node.name)
    return [
        Reason("NodesExcluded", f"no driver of ours for {some(names[why])}: {why}") for why in sorted(names)
    ]
