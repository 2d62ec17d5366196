"""API objects to facts: pure, and total. Whatever an object looks like, it becomes a fact or a reason."""

from __future__ import annotations

from typing import Iterable, Mapping, Optional

from attrs import evolve

from nvdriver_build.fleet.facts import Cluster, Node, Pool
from nvdriver_build.fleet.inventory.nodes import labels_of, matches, node_facts
from nvdriver_build.fleet.inventory.toolkits import imagestream_facts
from nvdriver_build.fleet.inventory.workloads import (
    cluster_version_facts,
    daemonset_facts,
    job_facts,
    pool_facts,
    pool_selector,
)
from nvdriver_build.fleet.names import LABEL
from nvdriver_build.fleet.reasons import Reason

__all__ = [
    "cluster_facts",
    "cluster_version_facts",
    "daemonset_facts",
    "imagestream_facts",
    "job_facts",
    "node_facts",
    "nodes_facts",
    "pool_facts",
]
_RANKS = {"master": 0, "worker": 2}
"""Of those pools that a node is in: `master`, a custom one, `worker` (machine-config-operator,
docs/custom-pools.md).
"""


def cluster_facts(
    nodes: Iterable[object],
    imagestream: Optional[object] = None,
    *,
    tags: Iterable[object] = (),
    cluster_version: Optional[object] = None,
    pools: Iterable[object] = (),
    daemonsets: Iterable[object] = (),
    jobs: Iterable[object] = (),
    manager: str = "nvdriver-build",
) -> Cluster:
    """Everything at once. `nodes` may be a generator: each node is reduced to its facts as it comes."""
    all_pools = list(pools)
    found, nameless = nodes_facts(nodes, all_pools)
    return Cluster(
        nodes=found,
        imagestream=None if imagestream is None else imagestream_facts(imagestream, tags),
        cluster_version=None if cluster_version is None else cluster_version_facts(cluster_version),
        pools=tuple(sorted(filter(None, map(pool_facts, all_pools)), key=lambda pool: pool.name)),
        daemonsets=tuple(filter(None, (daemonset_facts(each, manager) for each in daemonsets))),
        jobs=tuple(filter(None, (job_facts(each, manager) for each in jobs))),
        reasons=nameless,
    )


def nodes_facts(
    nodes: Iterable[object], pools: Iterable[object] = (), label: str = LABEL
) -> tuple[tuple[Node, ...], tuple[Reason, ...]]:
    """Nodes with the names of their pools, and what could not be read."""
    selectors = _selectors(pools)
    found, nameless = list[Node](), 0
    for each in nodes:
        node = node_facts(each, label)
        if node is None:
            nameless += 1
        else:
            pool = _pool(labels_of(each), selectors) if selectors else None
            found.append(evolve(node, pool=pool) if pool else node)
    message = f"{nameless} of the objects given as nodes have no usable name: passed over"
    return tuple(found), (Reason("NodeWithoutName", message),) if nameless else ()


def _selectors(pools: Iterable[object]) -> list[tuple[Pool, Mapping[str, object]]]:
    known = [(pool_facts(each), pool_selector(each)) for each in pools]
    named = [(pool, selector) for pool, selector in known if pool is not None]
    return sorted(named, key=lambda each: (_rank(each[0].name), each[0].name))


def _rank(name: str) -> int:
    return _RANKS.get(name, 1)


def _pool(labels: Mapping[str, str], selectors: list[tuple[Pool, Mapping[str, object]]]) -> Optional[str]:
    return next((pool.name for pool, selector in selectors if matches(selector, labels)), None)
