"""The driver's pod: what NVIDIA's operator makes for a node (gpu-operator,
assets/state-driver/0500_daemonset.yaml and what controllers/object_controls.go adds on OpenShift), as far
as our image reads it.
"""

from __future__ import annotations

import json
from typing import Mapping

from nvdriver_build.fleet.manifests.common import (
    Object,
    certificates,
    config_volume,
    host_path,
    labels,
    mount,
    pull_secrets,
    registry_variables,
    registry_volumes,
    tolerations,
    variable,
    variables,
)
from nvdriver_build.fleet.manifests.driver import Driver
from nvdriver_build.fleet.names import (
    COMPONENT,
    CONFIG_NOTE,
    DRIVER,
    DRIVER_CONTAINER,
    LABEL,
    NFD_VERSION,
    PARAMETERS,
)
from nvdriver_build.fleet.plan import DaemonSetWanted
from nvdriver_build.fleet.versions import digest, label_value

_SHARED = "/mnt/shared-nvidia-driver-toolkit"
_STORE = "/var/lib/nvdriver-build"
_VALIDATIONS = "/run/nvidia/validations"
_GRACE = 120
"""Seconds for unloading, which waits for daemons to end."""
_WAIT = (
    f"until [ -f {_SHARED}/dir_prepared ]; do sleep 1; done; "
    f"exec {_SHARED}/ocp_dtk_entrypoint dtk-build-driver"
)
_PRIVILEGED = {"privileged": True, "seLinuxOptions": {"level": "s0"}}
_BUILDER = {
    "privileged": False,
    "allowPrivilegeEscalation": False,
    "runAsUser": 0,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
    "seLinuxOptions": {"level": "s0"},
}
"""A compiler needs no rights: the operator's container has them for NVIDIA's installer, which loads
modules.
"""
_HOST = (
    ("run-nvidia", "/run/nvidia", "DirectoryOrCreate", "Bidirectional"),
    ("run-nvidia-fabricmanager", "/run/nvidia-fabricmanager", "DirectoryOrCreate", None),
    ("run-nvidia-topologyd", "/run/nvidia-topologyd", "DirectoryOrCreate", None),
    ("var-log", "/var/log", None, None),
    ("dev-log", "/dev/log", None, None),
    ("run-mellanox-drivers", "/run/mellanox/drivers", "DirectoryOrCreate", "HostToContainer"),
    ("sys-devices-system", "/sys/devices/system", None, None),
    ("firmware-search-path", "/sys/module/firmware_class/parameters/path", None, None),
    ("store", _STORE, "DirectoryOrCreate", None),
)
"""What the driver sees of the node at the same place: name, path, type, propagation."""
_PEERMEM = ("run-nvidia", "var-log", "dev-log", "run-mellanox-drivers")


def pod_template(wanted: DaemonSetWanted, driver: Driver, contents: Mapping[str, str]) -> Object:
    """The template of a DaemonSet's pods. `contents` has a digest for each Secret that they read."""
    return {
        "metadata": {
            "labels": labels(driver, DRIVER, **{LABEL: label_value(wanted.version)}),
            "annotations": {
                "kubectl.kubernetes.io/default-container": DRIVER_CONTAINER,
                "openshift.io/required-scc": f"{driver.name}-driver",
                CONFIG_NOTE: _config_digest(driver, contents),
            },
        },
        "spec": {
            "serviceAccountName": f"{driver.name}-driver",
            # for the Lease by which nodes agree on who builds
            "automountServiceAccountToken": driver.registry is not None,
            # or a Service named nvdriver-... would be in the environment, as settings that nobody knows
            "enableServiceLinks": False,
            "hostPID": True,
            "priorityClassName": "system-node-critical",
            "terminationGracePeriodSeconds": _GRACE,
            "nodeSelector": _node_selector(wanted.version, driver),
            "tolerations": tolerations(driver),
            "affinity": {"podAntiAffinity": _alone()},
            **pull_secrets(driver),
            "containers": [
                _driver(wanted, driver),
                *([_toolkit(wanted.toolkit, driver)] if wanted.toolkit else []),
                *([_peermem(driver)] if driver.rdma else []),
            ],
            "volumes": _volumes(wanted, driver),
        },
    }


def _config_digest(driver: Driver, contents: Mapping[str, str]) -> str:
    data = certificates(driver)
    told = [f"{name}={data[name]}" for name in sorted(data)]
    return digest("\n".join((*told, *(f"{name}={contents.get(name, '')}" for name in driver.secrets))))


def parameter_map(driver: Driver) -> str:
    """Which ConfigMap has the parameters: others have another name, so that a driver that runs keeps its own
    until it is replaced, also where its container starts again.
    """
    return f"{PARAMETERS}-{digest(json.dumps(dict(driver.parameters), sort_keys=True))}"


def _node_selector(version: str, driver: Driver) -> Object:
    return {NFD_VERSION if driver.nfd_label else LABEL: label_value(version)}


def _alone() -> Object:
    """One driver on a node, also where the other is the operator's."""
    there = {"key": COMPONENT, "operator": "In", "values": [DRIVER]}
    term = {"labelSelector": {"matchExpressions": [there]}, "topologyKey": "kubernetes.io/hostname"}
    return {"requiredDuringSchedulingIgnoredDuringExecution": [{**term, "namespaceSelector": {}}]}


def _driver(wanted: DaemonSetWanted, driver: Driver) -> Object:
    missing = [] if wanted.toolkit else [variable("RHCOS_IMAGE_MISSING", "true")]
    rdma = [variable("GPU_DIRECT_RDMA_ENABLED", "true")] if driver.rdma else []
    mounts = [mount(name, path, propagation=how) for name, path, _, how in _HOST]
    return {
        "name": DRIVER_CONTAINER,
        "image": driver.image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["ocp_dtk_entrypoint"],
        "args": ["nv-ctr-run-with-dtk"],
        "env": [
            {"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
            variable("NVIDIA_VISIBLE_DEVICES", "void"),
            *([] if driver.nfd_label else [variable("RHCOS_VERSION", wanted.version)]),  # NFD's may be stale
            *missing,
            *rdma,
            *registry_variables(driver),
            *variables(driver.env),
        ],
        **({"envFrom": [{"secretRef": {"name": driver.env_secret}}]} if driver.env_secret else {}),
        **({"resources": dict(driver.resources)} if driver.resources else {}),
        "securityContext": _PRIVILEGED,
        "volumeMounts": [
            *mounts,
            mount("nv-firmware", "/lib/firmware"),
            mount("host-os-release", "/host-etc/os-release", read_only=True),
            mount("shared-nvidia-driver-toolkit", _SHARED),
            *([mount("parameters", "/drivers", read_only=True)] if driver.parameters else []),
            *registry_volumes(driver)[1],
        ],
        "startupProbe": {**_probe("startup", 10, 60), "failureThreshold": 120},
        "livenessProbe": {**_probe("liveness", 30, 10), "failureThreshold": 3},
        "readinessProbe": _probe("readiness", 5, 5),
        "lifecycle": {"preStop": {"exec": {"command": ["/bin/sh", "-c", _withdraw()]}}},
    }


def _probe(what: str, period: int, timeout: int) -> Object:
    command = ["nvdriver-build", "probe", what]
    return {"exec": {"command": command}, "periodSeconds": period, "timeoutSeconds": timeout}


def _withdraw() -> str:
    return f"rm -f {_VALIDATIONS}/.driver-ctr-ready {_VALIDATIONS}/.driver-daemons-status"


def _toolkit(image: str, driver: Driver) -> Object:
    return {
        "name": "openshift-driver-toolkit-ctr",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["bash", "-c", _WAIT],
        "env": [variable("NVIDIA_VISIBLE_DEVICES", "void"), *variables(_logging(driver))],
        **({"resources": dict(driver.resources)} if driver.resources else {}),
        "securityContext": _BUILDER,
        "volumeMounts": [mount("shared-nvidia-driver-toolkit", _SHARED)],
    }


def _logging(driver: Driver) -> Mapping[str, str]:
    return {name: value for name, value in driver.env.items() if name == "NVDRIVER_LOG_FORMAT"}


def _peermem(driver: Driver) -> Object:
    probe: Object = {"exec": {"command": ["nvidia-driver", "probe_nvidia_peermem"]}, "timeoutSeconds": 10}
    mounts = [mount(name, path, propagation=how) for name, path, _, how in _HOST if name in _PEERMEM]
    return {
        "name": "nvidia-peermem-ctr",
        "image": driver.image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["nvidia-driver"],
        "args": ["reload_nvidia_peermem"],
        "env": [variable("GPU_DIRECT_RDMA_ENABLED", "true"), *variables(driver.env)],
        "securityContext": _PRIVILEGED,
        "volumeMounts": mounts,
        "startupProbe": {**probe, "periodSeconds": 10, "failureThreshold": 120},
        "livenessProbe": {**probe, "periodSeconds": 30, "failureThreshold": 1},
    }


def _volumes(wanted: DaemonSetWanted, driver: Driver) -> list[Object]:
    parameters = config_volume("parameters", driver, parameter_map(driver), driver.parameters)
    return [
        *(host_path(name, path, kind) for name, path, kind, _ in _HOST),
        host_path("nv-firmware", "/run/nvidia/driver/lib/firmware"),
        host_path("host-os-release", "/etc/os-release", None),
        {"name": "shared-nvidia-driver-toolkit", "emptyDir": {}},
        *([parameters] if driver.parameters else []),
        *registry_volumes(driver)[0],
    ]
