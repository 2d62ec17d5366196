"""What uses the driver in a `World`: pods with a budget, and a component of the GPU Operator."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Tuple

from api_store import Doc, Refusal
from attrs import define, field

if TYPE_CHECKING:
    from upgrade_world import World

SPACE = "ml"
NODES, PODS, BUDGETS = "v1/nodes", "v1/pods", "policy/v1/poddisruptionbudgets"
PLUGIN = "nvidia.com/gpu.deploy.device-plugin"
LEAVES = 2
"""Ticks that a pod takes to end."""


@define
class Works:
    """`wanted` pods that use a GPU run where they can; `plugin` is whether nodes have the component."""

    world: World
    wanted: int = 0
    plugin: bool = False
    pods: Dict[str, str] = field(factory=dict)
    """The node of each."""
    ending: Dict[str, int] = field(factory=dict)
    serial: int = 0

    def add(self, name: str) -> None:
        """A node is new."""
        if self.plugin:
            self.world.store.merge(NODES, "", name, {"metadata": {"labels": {PLUGIN: "true"}}})

    def budget(self, allowed: int) -> None:
        """How many pods may be evicted."""
        spec = {"selector": {"matchLabels": {"app": "train"}}}
        metadata = {"name": "train", "namespace": SPACE}
        document = {"metadata": metadata, "spec": spec, "status": {"disruptionsAllowed": allowed}}
        self.world.store.put(BUDGETS, document)

    def on(self, node: str) -> List[str]:
        """What uses this node's driver."""
        return [name for name, where in self.pods.items() if where == node]

    def evict(self, name: str, uid: object) -> None:
        """As its budget allows."""
        self.world.store.may_evict(SPACE, name, None if uid is None else str(uid))
        self._end(name)

    def bare(self, node: str) -> None:
        """A pod without a controller, which nothing moves."""
        if node in self.world.machines and self._up(node):
            self._create("bare", node, [])

    def free(self) -> None:
        """A person takes such pods away."""
        for name in [each for each in self.pods if each.startswith("bare")]:
            self._end(name)

    def tick(self) -> None:
        for name, node in list(self.pods.items()):
            machine = self.world.machines.get(node)
            left = self.ending.get(name, LEAVES)
            there = (SPACE, name) in self.world.store.objects.get(PODS, {})
            if machine is None or machine.down or left <= 0 or not there:
                self._gone(name)
            elif name in self.ending:
                self.ending[name] = left - 1
        for node, on in self._nodes():
            plugins = [name for name in self.on(node) if name.startswith("plugin")]
            if on and not plugins and self._up(node):
                self._create("plugin", node, [{"kind": "DaemonSet", "controller": True}])
            elif not on:
                for name in plugins:
                    self._end(name)
        self._schedule()

    def _schedule(self) -> None:
        live = [each for each in self.pods if each.startswith("train") and each not in self.ending]
        free = [node for node, on in self._nodes() if self._takes(node) and (on or not self.plugin)]
        for number in range(self.wanted - len(live) if free else 0):
            self._create("train", free[(self.serial + number) % len(free)], [_OWNER])

    def _nodes(self) -> Iterator[Tuple[str, bool]]:
        for (_, name), node in list(self.world.store.objects.get(NODES, {}).items()):
            yield name, node["metadata"]["labels"].get(PLUGIN) == "true"

    def _up(self, node: str) -> bool:
        machine = self.world.machines.get(node)
        return machine is not None and not machine.down and self.world.driver_ready(node)

    def _takes(self, node: str) -> bool:
        return self._up(node) and not self.world.store.get(NODES, "", node)["spec"].get("unschedulable")

    def _create(self, kind: str, node: str, owners: List[Doc]) -> None:
        self.serial += 1
        name = f"{kind}-{self.serial}"
        chosen = {"nodeSelector": {PLUGIN: "true"}} if kind == "plugin" else {}
        asks: List[Any] = [{"resources": {"limits": {"nvidia.com/gpu": "1"}}}]
        document = {
            "metadata": {
                "name": name, "namespace": SPACE, "labels": {"app": kind}, "ownerReferences": owners,
            },
            "spec": {"nodeName": node, "containers": asks, **chosen},
            "status": {"phase": "Running"},
        }  # fmt: skip
        self.world.store.create(PODS, SPACE, document)
        self.pods[name] = node

    def _end(self, name: str) -> None:
        if name not in self.ending:
            self.ending[name] = LEAVES
            document = self.world.store.get(PODS, SPACE, name)
            stamp = {**document["metadata"], "deletionTimestamp": str(self.world.now)}
            self.world.store.put(PODS, {**document, "metadata": stamp})

    def _gone(self, name: str) -> None:
        del self.pods[name]
        self.ending.pop(name, None)
        with contextlib.suppress(Refusal):
            self.world.store.delete(PODS, SPACE, name)


_OWNER: Doc = {"kind": "ReplicaSet", "controller": True}
