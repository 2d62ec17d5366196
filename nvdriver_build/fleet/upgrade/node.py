"""A node and the pods on it, as the API has just told them: what a step on it is decided by.

Which pods use a GPU, and which of them may be evicted, is what `kubectl drain` and NVIDIA's driver manager
go by; how the GPU Operator's components are told to leave is the driver manager's way, too
(NVIDIA/k8s-driver-manager, cmd/driver-manager): it waits for pods whose DaemonSet selects by such a label.
"""

from __future__ import annotations

from typing import Iterable, Mapping, Optional, Protocol, Sequence

from attrs import evolve, field, frozen

from nvdriver_build.fleet.facts import Node
from nvdriver_build.fleet.inventory import node_facts
from nvdriver_build.fleet.objects import entries, part, text, texts
from nvdriver_build.fleet.upgrade.state import State, read_state

PAUSED = "paused-for-driver-upgrade"
_DEPLOY = "nvidia.com/gpu.deploy."
_FIRST = (
    "operator-validator",
    "container-toolkit",
    "device-plugin",
    "gpu-feature-discovery",
    "dcgm",
    "dcgm-exporter",
    "mig-manager",
    "nvsm",
    "client",
    "sandbox-device-plugin",
    "sandbox-validator",
    "vgpu-device-manager",
    "dra-validator",
    "dcgm-dra",
    "dcgm-exporter-dra",
)
COMPONENTS = (tuple(f"{_DEPLOY}{name}" for name in _FIRST), (f"{_DEPLOY}dra-driver",))
"""Labels of components that hold the driver, in the order in which they go: that of DRA gives back what
the others hold. `nvidia.com/gpu.deploy.driver` is none of them.
"""
_RESOURCES = "nvidia.com/"
_MIRROR = "kubernetes.io/config.mirror"


class DriverPod(Protocol):
    """A driver's pod of ours: for which version, by which driver."""

    @property
    def name(self) -> str:
        """Of the pod."""

    @property
    def version(self) -> Optional[str]:
        """The value of our label."""

    @property
    def driver(self) -> Optional[str]:
        """The digest of its driver."""

    @property
    def ready(self) -> bool:
        """Whether its driver is, whatever its other containers do."""

    @property
    def up(self) -> bool:
        """Whether its driver has come up, ready or not."""

    @property
    def ending(self) -> bool:
        """Whether it is being deleted."""


@frozen
class Workload:
    """A pod that uses a GPU. `stays` is why it is never evicted."""

    name: str
    namespace: str
    uid: str
    ending: bool = False
    stays: Optional[str] = None

    @property
    def words(self) -> str:
        """For people."""
        why = "is ending" if self.ending else self.stays
        return f"{self.namespace}/{self.name}" + (f" ({why})" if why else "")


@frozen
class NodeNow:
    """`components` are the labels of the GPU Operator's components, `operands` names of their pods by label.
    `drivers` are ours.
    """

    node: Node
    state: Optional[State] = None
    resource_version: str = ""
    components: Mapping[str, str] = field(factory=dict)
    operands: Mapping[str, Sequence[str]] = field(factory=dict)
    workloads: tuple[Workload, ...] = ()
    drivers: tuple[DriverPod, ...] = ()

    @property
    def paused(self) -> dict[str, str]:
        """What takes back that components were paused."""
        return {label: "true" for label, value in self.components.items() if value == PAUSED}

    def to_pause(self, labels: Iterable[str]) -> dict[str, str]:
        """What pauses those that are on; one that somebody has switched off stays as it is."""
        return {label: PAUSED for label in labels if self.components.get(label) == "true"}

    def left(self, labels: Iterable[str]) -> list[str]:
        """Pods of these components that are still there."""
        return sorted(name for label in labels for name in self.operands.get(label, ()))


def node_now(document: object, drivers: Iterable[DriverPod] = ()) -> Optional[NodeNow]:
    """Of a node alone; None for what is no node."""
    node, labels = node_facts(document), texts(document, "metadata", "labels")
    if node is None:
        return None
    return NodeNow(
        node=node,
        state=read_state(node.upgrade),
        resource_version=text(document, "metadata", "resourceVersion") or "",
        components={label: labels[label] for group in COMPONENTS for label in group if label in labels},
        drivers=tuple(sorted(drivers, key=lambda each: each.name)),
    )


def with_pods(node: NodeNow, pods: Iterable[object], drivers: Iterable[DriverPod]) -> NodeNow:
    """With all pods that the API has on it; `drivers` are those of ours among them."""
    operands, workloads = dict[str, list[str]](), []
    for pod in pods:
        component = _component(pod)
        if component is not None:
            operands.setdefault(component, []).append(text(pod, "metadata", "name") or "")
        elif _uses_gpu(pod):
            workloads.append(_workload(pod))
    return evolve(
        node,
        operands=operands,
        workloads=tuple(sorted(workloads, key=lambda each: (each.namespace, each.name))),
        drivers=tuple(sorted(drivers, key=lambda each: each.name)),
    )


def in_use(pods: Iterable[object]) -> bool:
    """Whether one of these pods runs that may hold a driver. A component whose init containers wait for the
    driver does not.
    """
    for pod in pods:
        runs = text(pod, "status", "phase") != "Pending"
        if _component(pod) is not None and runs:
            return True
        begun = any(
            part(each, "state", "running") for each in entries(pod, "status", "initContainerStatuses")
        )
        if _component(pod) is None and _uses_gpu(pod) and (runs or begun):
            return True
    return False


def _component(pod: object) -> Optional[str]:
    """The label by which this pod's DaemonSet was put here, where it is a component's."""
    chosen = texts(pod, "spec", "nodeSelector")
    known = (label for group in COMPONENTS for label in group if label in chosen)
    return next(known, None) if _controller(pod) == "DaemonSet" else None


def _uses_gpu(pod: object) -> bool:
    """One that has ended holds nothing. Whose devices a ResourceClaim is for is not asked."""
    if text(pod, "status", "phase") in ("Succeeded", "Failed"):
        return False
    if any(entries(pod, "spec", "resourceClaims")):
        return True
    containers = (each for kind in ("containers", "initContainers") for each in entries(pod, "spec", kind))
    asked = (part(each, "resources", kind) for each in containers for kind in ("limits", "requests"))
    return any(str(name).startswith(_RESOURCES) for names in asked for name in names)


def _workload(pod: object) -> Workload:
    return Workload(
        name=text(pod, "metadata", "name") or "",
        namespace=text(pod, "metadata", "namespace") or "",
        uid=text(pod, "metadata", "uid") or "",
        ending=text(pod, "metadata", "deletionTimestamp") is not None,
        stays=_stays(pod),
    )


def _stays(pod: object) -> Optional[str]:
    """What an eviction would not move, or would lose."""
    if _MIRROR in part(pod, "metadata", "annotations"):
        return "a static pod"
    controller = _controller(pod)
    if controller is None:
        return "no controller would start it anew"
    return "of a DaemonSet" if controller == "DaemonSet" else None


def _controller(pod: object) -> Optional[str]:
    owners = entries(pod, "metadata", "ownerReferences")
    return next((text(each, "kind") for each in owners if each.get("controller") is True), None)
