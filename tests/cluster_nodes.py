"""Nodes of a real API without machines: what kubelets, and where there is none a scheduler, would say."""

from __future__ import annotations

import datetime
import threading
import time
from typing import Any, Dict, List, Optional

from cluster_objects import KERNELS
from cluster_rig import MERGE, Cluster

from nvdriver_build.fleet.controller.api import Document, Missing, Refused, Unreachable
from nvdriver_build.fleet.controller.kinds import NODE, POD
from nvdriver_build.fleet.names import GPU_LABEL
from nvdriver_build.fleet.objects import entries, flag, part, text

BEAT = 8.0
"""Seconds between two signs of life: a node that gives none for 40 s is given up."""
_CONSTANT = ("machineID", "systemUUID", "containerRuntimeVersion", "kubeletVersion", "kubeProxyVersion")


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


class Kubelets:
    """Nodes of a test, which a thread keeps alive: it starts their pods and ends those that are deleted.

    A pod of a Job is done as soon as it is there. `errors` is what went wrong in the thread.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.running: Dict[str, str] = {}
        self.errors: List[BaseException] = []
        self._boots, self._beat = 0, 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True)

    def __enter__(self) -> Kubelets:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        assert not self.errors, self.errors

    def add(self, name: str, version: str, **labels: str) -> str:
        """A node with a GPU that runs this RHCOS."""
        more = {GPU_LABEL: "true", "kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux"}
        node = self.cluster.node(name, self._status(version), **more, **labels)
        self.running[node] = version
        return node

    def reboot(self, node: str, version: str) -> None:
        """It comes back with this RHCOS; its pods have been started again."""
        self.running[node] = version
        self.cluster.told(node, self._status(version))

    def pods(self) -> List[Document]:
        """The pods of the namespace that are on these nodes, by node."""
        found = [each for page in self.cluster.api.pages(POD, self.cluster.space) for each in page.items]
        return [each for each in found if text(each, "spec", "nodeName") in self.running]

    def _status(self, version: str) -> Dict[str, Any]:
        self._boots += 1
        info = {
            **dict.fromkeys(_CONSTANT, "test"),
            "operatingSystem": "linux",
            "architecture": "amd64",
            "kernelVersion": KERNELS[version],
            "osImage": f"Red Hat Enterprise Linux CoreOS {version} (Plow)",
            "bootID": f"boot-{self._boots}",
        }
        amount = {"cpu": "64", "memory": "256Gi", "pods": "250", "ephemeral-storage": "1Ti"}
        return {"nodeInfo": info, "capacity": amount, "allocatable": amount, "conditions": [_ready()]}

    def _live(self) -> None:
        while not self._end.wait(0.2):
            try:
                self._step()
            except (Missing, Unreachable):
                continue
            except BaseException as error:
                self.errors.append(error)
                return

    def _step(self) -> None:
        if time.monotonic() - self._beat > BEAT:
            self._beat = time.monotonic()
            for node in list(self.running):
                self.cluster.told(node, {"conditions": [_ready()]})
        for page in self.cluster.api.pages(POD, self.cluster.space):
            for pod in page.items:
                self._care(pod)

    def _care(self, pod: Document) -> None:
        """One step of a pod's life."""
        name, node = str(text(pod, "metadata", "name")), text(pod, "spec", "nodeName")
        if node is None:
            wanted = _wanted(pod) or self._free()
            if wanted in self.running:
                self._bind(name, wanted)
        elif node not in self.running:
            return
        elif text(pod, "metadata", "deletionTimestamp"):
            path = POD.path(self.cluster.space, name)
            self.cluster.call("DELETE", path, {"kind": "DeleteOptions", "gracePeriodSeconds": 0})
        elif text(pod, "status", "phase") == "Pending":
            self._tell(name, pod)

    def _free(self) -> Optional[str]:
        """A node that takes pods."""
        nodes = ((each, self.cluster.api.get(NODE, each)) for each in self.running)
        return next((each for each, node in nodes if not flag(node, "spec", "unschedulable")), None)

    def _bind(self, name: str, node: Optional[str]) -> None:
        target = {"apiVersion": "v1", "kind": "Node", "name": node}
        head = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": target}
        try:
            self.cluster.call("POST", POD.path(self.cluster.space, name, "binding"), head)
        except Refused as refused:
            if refused.status not in (404, 409):  # a scheduler was faster
                raise

    def _tell(self, name: str, pod: Document) -> None:
        finite = part(pod, "spec").get("restartPolicy") == "Never"
        conditions = [{"type": "Ready", "status": str(not finite), "lastTransitionTime": now()}]
        phase = "Succeeded" if finite else "Running"
        status: Dict[str, Any] = {"phase": phase, "startTime": now(), "conditions": conditions}
        if not finite:
            status["containerStatuses"] = [_runs(each) for each in entries(pod, "spec", "containers")]
        self.cluster.call("PATCH", POD.path(self.cluster.space, name, "status"), {"status": status}, MERGE)


def _runs(container: Document) -> Dict[str, Any]:
    told = {"name": container["name"], "image": container["image"], "imageID": "", "restartCount": 0}
    return {**told, "ready": True, "started": True, "state": {"running": {"startedAt": now()}}}


def _ready() -> Dict[str, str]:
    return {
        "type": "Ready",
        "status": "True",
        "reason": "KubeletReady",
        "message": "a node of a test",
        "lastHeartbeatTime": now(),
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }


def _wanted(pod: Document) -> Optional[str]:
    """The node that a DaemonSet's pod is for."""
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    terms = entries(part(pod, "spec", "affinity", "nodeAffinity", required), "nodeSelectorTerms")
    for term in terms:
        for field in entries(term, "matchFields"):
            values = field.get("values")
            return str(values[0]) if isinstance(values, list) and values else None
    return None
