"""Nodes, as `oc get nodes -o json` writes them, to facts.

The kubelet's own word (status.nodeInfo) counts; labels of Node Feature Discovery only where it says
nothing. After an OS update they are stale for a while (gpu-operator 990).
"""

from __future__ import annotations

from typing import Any, Mapping, Optional

from nvdriver_build.fleet.facts import Node
from nvdriver_build.fleet.names import GPU_LABEL, LABEL, NFD, NFD_KERNEL, NFD_VERSION, UPGRADE
from nvdriver_build.fleet.objects import entries, flag, holds, part, text, texts
from nvdriver_build.fleet.reasons import Reason
from nvdriver_build.fleet.versions import (
    ARCHITECTURES,
    flavour_of,
    is_coreos,
    is_kernel,
    is_version,
    kernel_of_label,
    os_version,
)

GPU_LABELS = tuple(f"{NFD}pci-{name}.present" for name in ("10de", "0300_10de", "0302_10de"))
_DERIVED = "nvidia.com/gpu.present"
_PRESENT = (_DERIVED, *GPU_LABELS, GPU_LABEL)
_DEPLOY, _WORKLOAD = "nvidia.com/gpu.deploy.driver", "nvidia.com/gpu.workload.config"
_OPERATORS_NOTE = "nvidia.com/gpu-driver-upgrade-enabled"
_OPERATORS_STATE = "nvidia.com/gpu-driver-upgrade-state"
_SKIP = "nvidia.com/gpu-driver-upgrade.skip"
_MACHINE_CONFIG = "machineconfiguration.openshift.io/"


def node_facts(document: object, label: str = LABEL) -> Optional[Node]:
    """What is known of a node; None for what has no name. `label` is our node label."""
    name = text(document, "metadata", "name")
    if name is None:
        return None
    labels, reasons = texts(document, "metadata", "labels"), list[Reason]()
    version = _version(document, labels, reasons)
    kernel = _kernel(document, labels, reasons)
    machine = text(document, "status", "nodeInfo", "architecture") or labels.get("kubernetes.io/arch")
    gpu, excluded = _gpu(labels, label, reasons)
    return Node(
        name=name,
        version=version,
        kernel=kernel,
        arch=ARCHITECTURES.get(machine or "", machine),
        flavour=flavour_of(kernel) if kernel else "standard",
        gpu=gpu,
        excluded=excluded,
        ready=holds(document, "Ready"),
        schedulable=not flag(document, "spec", "unschedulable"),
        boot_id=text(document, "status", "nodeInfo", "bootID"),
        label=labels.get(label),
        updating=_updating(document),
        upgrade=texts(document, "metadata", "annotations").get(UPGRADE, "" if UPGRADE in labels else None),
        kept_out=_kept_out(document, labels),
        reasons=tuple(reasons),
    )


def _version(document: object, labels: Mapping[str, str], reasons: list[Reason]) -> Optional[str]:
    image = text(document, "status", "nodeInfo", "osImage")
    told = labels.get(NFD_VERSION, "").strip().strip("'\"").strip()
    believed = os_version(image) if image else None
    if believed is not None:
        if told and told != believed:
            reasons.append(_stale("OSTREE_VERSION", told, believed))
        return believed
    if image is not None and not is_coreos(image):
        reasons.append(
            Reason(
                "NotCoreOS",
                f"its operating system is {image[:80]}",
                "DaemonSets are for CoreOS; elsewhere run the driver container by hand, or on the host",
            )
        )
        return None
    if is_version(told):
        what = f"nodeInfo.osImage is {image[:80]!r}" if image else "there is no nodeInfo.osImage"
        reasons.append(Reason("VersionFromLabel", f"{what}: NFD's label OSTREE_VERSION is taken, {told}"))
        return told
    what = f"nodeInfo.osImage is {(image or '')[:80]!r}, which has no version"
    reasons.append(
        Reason("NoVersion", what, f"is the kubelet of the node up? oc get node shows {NFD_VERSION}")
    )
    return None


def _kernel(document: object, labels: Mapping[str, str], reasons: list[Reason]) -> Optional[str]:
    believed = text(document, "status", "nodeInfo", "kernelVersion")
    told = labels.get(NFD_KERNEL, "").strip()
    if believed is not None and is_kernel(believed):
        if told and told != believed.replace("+", "_"):
            reasons.append(_stale("kernel-version.full", told, believed))
        return believed
    if is_kernel(kernel_of_label(told)):
        reasons.append(
            Reason("KernelFromLabel", f"nodeInfo has no kernelVersion: NFD's label is taken, {told[:64]}")
        )
        return kernel_of_label(told)
    reasons.append(
        Reason("NoKernel", "it does not say which kernel it runs", "is the kubelet of the node up?")
    )
    return None


def _stale(what: str, told: str, believed: str) -> Reason:
    message = f"NFD's label {what} is stale: {told[:64]!r}, the node itself says {believed}"
    return Reason(
        "StaleLabel", message, "nothing is lost, the node is believed; does NFD's worker run there?"
    )


def _gpu(labels: Mapping[str, str], label: str, reasons: list[Reason]) -> tuple[bool, Optional[str]]:
    """Whether a driver belongs here, and what forbids it where there is a GPU.

    A node that has our label and of which no label tells of a GPU any more stays: labels of NFD go away while
    it is installed anew, upon which the GPU Operator says `nvidia.com/gpu.present=false`, and its driver must
    not go with them.
    """
    if labels.get(GPU_LABEL) == "false":
        return False, f"{GPU_LABEL}=false"
    told = [labels[name] for name in _PRESENT if name in labels]
    if "true" not in told:
        denied = any(name in labels for name in _PRESENT if name != _DERIVED)
        if denied or label not in labels:
            return False, None
        message = f"no label tells of a GPU any more; it has {label}, and keeps its driver"
        reasons.append(Reason("GpuLabelsGone", message, f"{GPU_LABEL}=false takes the driver away"))
    if labels.get(_DEPLOY) in ("false", "pre-installed"):
        return False, f"{_DEPLOY}={labels[_DEPLOY]}"
    if labels.get(_WORKLOAD, "container").startswith("vm-"):
        return False, f"{_WORKLOAD}={labels[_WORKLOAD]}"
    return True, None


def _updating(document: object) -> bool:
    notes = texts(document, "metadata", "annotations")
    current, desired = (notes.get(f"{_MACHINE_CONFIG}{name}Config") for name in ("current", "desired"))
    return desired is not None and current != desired


def _kept_out(document: object, labels: Mapping[str, str]) -> Optional[str]:
    """What says that the GPU Operator's upgrade controller has this node, or that nobody may have it.

    Where that is switched off (`autoUpgrade: false`) it takes its label and its annotation away. With
    `driver.enabled: false` alone some of its versions leave both, hence the one that is told to mend it.
    """
    enabled = texts(document, "metadata", "annotations").get(_OPERATORS_NOTE)
    if enabled not in (None, "", "false"):
        return f"{_OPERATORS_NOTE}={enabled[:32]}"
    if labels.get(_OPERATORS_STATE):
        return f"{_OPERATORS_STATE}={labels[_OPERATORS_STATE]}"
    return f"{_SKIP}=true" if labels.get(_SKIP) == "true" else None


def matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """A LabelSelector (matchLabels, matchExpressions), as the API defines it; an empty one matches nothing
    here.
    """
    wanted = texts(selector, "matchLabels")
    expressions = list(entries(selector, "matchExpressions"))
    if not wanted and not expressions:
        return False
    return all(labels.get(key) == value for key, value in wanted.items()) and all(
        _holds(each, labels) for each in expressions
    )


def _holds(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    key, operator, values = expression.get("key"), expression.get("operator"), expression.get("values")
    there = isinstance(key, str) and key in labels
    listed = isinstance(values, list) and there and labels[str(key)] in values
    known = {"In": listed, "NotIn": not listed, "Exists": there, "DoesNotExist": not there}
    return known.get(str(operator), False)


def labels_of(document: object) -> Mapping[str, str]:
    """The labels of an object."""
    return texts(part(document, "metadata"), "labels")
