"""API objects as `oc get ... -o json` writes them, as small as the tests need."""

from __future__ import annotations

from typing import Any, Dict, Mapping, Optional

V1, V2, V3 = "416.94.202408260940-0", "417.94.202411261220-0", "9.6.20260616-0"
K1, K2 = "5.14.0-427.33.1.el9_4.x86_64", "5.14.0-427.47.1.el9_4.x86_64"
KERNELS = {V1: K1, V2: K2, V3: "5.14.0-570.99.1.el9_6.x86_64"}
NFD = "feature.node.kubernetes.io/"
GPU = {f"{NFD}pci-10de.present": "true"}
Object = Dict[str, Any]


def image(version: str) -> str:
    """The pull spec of a version's toolkit."""
    return f"quay.io/openshift-release-dev/ocp-v4.0-art-dev@sha256:{version.encode().hex():0<64.64}"


def node(
    name: str,
    version: str = V1,
    kernel: Optional[str] = None,
    *,
    arch: str = "amd64",
    os_image: Optional[str] = None,
    labels: Mapping[str, str] = GPU,
    notes: Optional[Mapping[str, str]] = None,
) -> Object:
    """A node that is up."""
    told = {
        "kernelVersion": KERNELS.get(version, K1) if kernel is None else kernel,
        "osImage": f"Red Hat Enterprise Linux CoreOS {version} (Plow)" if os_image is None else os_image,
        "architecture": arch,
        "bootID": f"boot-of-{name}",
    }
    return {
        "kind": "Node",
        "metadata": {"name": name, "labels": dict(labels), "annotations": dict(notes or {})},
        "spec": {},
        "status": {"nodeInfo": told, "conditions": [{"type": "Ready", "status": "True"}]},
    }


def tag(name: str, pull_spec: Optional[str] = None) -> Object:
    """A tag of the ImageStream."""
    return {"name": name, "from": {"kind": "DockerImage", "name": pull_spec or image(name)}}


def imagestream(*versions: str, latest: Optional[str] = None, more: Any = ()) -> Object:
    """The ImageStream with a tag for each version; `latest` is of the last one unless it is told."""
    newest = latest or (versions[-1] if versions else None)
    tags = [*map(tag, versions), *([tag("latest", image(newest))] if newest else []), *more]
    return {"kind": "ImageStream", "metadata": {"name": "driver-toolkit"}, "spec": {"tags": tags}}


def imagestreamtag(version: str, kernel: Optional[str] = None, rt: str = "", arch: str = "amd64") -> Object:
    """What tells of a tag's image."""
    labels = {"kernel-version": KERNELS[version] if kernel is None else kernel, "kernel-rt-version": rt}
    metadata = {"Architecture": arch, "Config": {"Labels": labels}}
    name = f"driver-toolkit:{version}"
    return {
        "kind": "ImageStreamTag",
        "metadata": {"name": name},
        "image": {"dockerImageMetadata": metadata},
    }


def pool(name: str, *, paused: bool = False, role: Optional[str] = None) -> Object:
    """A MachineConfigPool of the nodes with that role."""
    selector = {"matchLabels": {f"node-role.kubernetes.io/{role or name}": ""}}
    return {
        "kind": "MachineConfigPool",
        "metadata": {"name": name},
        "spec": {"paused": paused, "nodeSelector": selector},
    }


def daemonset(version: str, name: str, pods: Optional[int] = 0, ours: bool = True) -> Object:
    """A driver's DaemonSet with so many pods; None for a status that is not of its present form."""
    seen = 1 if pods is None else 2
    return {
        "kind": "DaemonSet",
        "metadata": {
            "name": name,
            "namespace": "nvdriver-build" if ours else "nvidia-gpu-operator",
            "generation": 2,
            "labels": {
                "app.kubernetes.io/component": "nvidia-driver",
                **({"app.kubernetes.io/managed-by": "nvdriver-build"} if ours else {}),
            },
            "annotations": {"nvdriver-build/os-version": version},
        },
        "status": {
            "observedGeneration": seen,
            "currentNumberScheduled": pods or 0,
            "numberMisscheduled": 0,
            "desiredNumberScheduled": pods or 0,
            "numberReady": 0,
        },
    }


def job(key: str, state: str = "active", name: str = "prebuild-1", message: str = "") -> Object:
    """A prebuild Job of ours: active, done or failed."""
    kinds = {"done": "Complete", "failed": "Failed"}
    conditions = [{"type": kinds[state], "status": "True", "message": message}] if state in kinds else []
    labels = {"app.kubernetes.io/managed-by": "nvdriver-build", "app.kubernetes.io/component": "prebuild"}
    return {
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": "nvdriver-build",
            "labels": labels,
            "annotations": {"nvdriver-build/prebuild": key},
        },
        "status": {"conditions": conditions},
    }
