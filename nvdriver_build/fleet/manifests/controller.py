"""What runs `fleet watch` in the cluster: a Deployment with its settings, a Service for its metrics.

Two pods, of which one leads: during an upgrade of OpenShift every node is drained, the controller's, too, and
just then a node's label must not wait for a new pod to be scheduled, pulled and to have read the cluster. The
other one has read it, and takes the Lease that the first lets go. It costs a second set of watches.
"""

from __future__ import annotations

import json
from typing import Any, Mapping

from attrs import NOTHING, asdict, fields

from nvdriver_build.fleet.manifests.common import (
    NAME,
    Object,
    labels,
    made,
    mount,
    own,
    pull_secrets,
    tolerations,
    variable,
    variables,
)
from nvdriver_build.fleet.manifests.driver import Driver
from nvdriver_build.fleet.names import COMPONENT, CONFIG_NOTE, FLEET
from nvdriver_build.fleet.versions import digest

PORT, METRICS = 8080, "metrics"
_SETTINGS, _FILE = "/etc/nvdriver-build/fleet", "settings.json"
_REPLICAS = 2
_RESOURCES = {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "1Gi"}}
_GRACE = 30
"""Seconds in which it lets its Lease go."""


def settings_document(driver: Driver) -> dict[str, Any]:
    """The settings of which `driver_settings` makes this driver; what is as by default is left out."""
    given = asdict(driver)
    return {
        each.name: own(given[each.name])
        for each in fields(Driver)
        if each.default is NOTHING or given[each.name] != _default(each.default)
    }


def _default(default: Any) -> Any:
    return default.factory() if hasattr(default, "factory") else default


def controller_objects(driver: Driver, overrides: Mapping[str, str]) -> list[Object]:
    """Settings, Deployment and Service; none of them where the settings name no image for it.

    `overrides` are toolkit images by RHCOS version, which become arguments.
    """
    if driver.fleet_image is None:
        return []
    settings = made("v1", "ConfigMap", driver, f"{driver.name}-{FLEET}", FLEET)
    settings["data"] = {_FILE: json.dumps(settings_document(driver), indent=1, sort_keys=True) + "\n"}
    deployment = made("apps/v1", "Deployment", driver, f"{driver.name}-{FLEET}", FLEET)
    chosen = {NAME: driver.name, COMPONENT: FLEET}
    deployment["spec"] = {
        "replicas": _REPLICAS,
        "selector": {"matchLabels": chosen},
        "template": {
            "metadata": {
                "labels": labels(driver, FLEET),
                "annotations": {
                    "kubectl.kubernetes.io/default-container": FLEET,
                    "openshift.io/required-scc": "restricted-v2",
                    CONFIG_NOTE: digest(settings["data"][_FILE]),
                },
            },
            "spec": _pod(driver, overrides, chosen),
        },
    }
    service = made("v1", "Service", driver, f"{driver.name}-{FLEET}", FLEET)
    port = {"name": METRICS, "port": PORT, "targetPort": METRICS, "protocol": "TCP"}
    # headless: one with an address would be in the environment of pods, by names that begin like our settings
    service["spec"] = {"clusterIP": "None", "selector": chosen, "ports": [port]}
    return list(map(own, (settings, deployment, service)))


def _pod(driver: Driver, overrides: Mapping[str, str], chosen: Mapping[str, str]) -> Object:
    term = {"labelSelector": {"matchLabels": chosen}, "topologyKey": "kubernetes.io/hostname"}
    apart = {"weight": 100, "podAffinityTerm": term}
    return {
        "serviceAccountName": f"{driver.name}-{FLEET}",
        "automountServiceAccountToken": True,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": _GRACE,
        "priorityClassName": "system-cluster-critical",
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": tolerations(driver, everywhere=False),
        "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [apart]}},
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        **pull_secrets(driver),
        "containers": [_container(driver, overrides)],
        "volumes": [
            {"name": "settings", "configMap": {"name": f"{driver.name}-{FLEET}"}},
            {"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}},
        ],
    }


def _container(driver: Driver, overrides: Mapping[str, str]) -> Object:
    toolkits = [word for each in sorted(overrides) for word in ("--toolkit", f"{each}={overrides[each]}")]
    return {
        "name": FLEET,
        "image": driver.fleet_image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["nvdriver-build", "fleet", "watch"],
        "args": [
            *("--settings", f"{_SETTINGS}/{_FILE}", "--listen", f":{PORT}", "--log-format", "json"),
            *toolkits,
        ],
        "env": [variable("NVIDIA_VISIBLE_DEVICES", "void"), *_proxies(driver)],
        "ports": [{"name": METRICS, "containerPort": PORT, "protocol": "TCP"}],
        "resources": _RESOURCES,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [mount("settings", _SETTINGS, read_only=True), mount("tmp", "/tmp")],
        "livenessProbe": {**_probe("/healthz"), "periodSeconds": 30, "failureThreshold": 3},
        "readinessProbe": {**_probe("/readyz"), "periodSeconds": 10},
    }


def _probe(path: str) -> Object:
    return {"httpGet": {"path": path, "port": METRICS}, "timeoutSeconds": 5}


def _proxies(driver: Driver) -> list[Object]:
    """The registry may be behind a proxy; the API is not, whose address the kubelet puts in."""
    given = {name: value for name, value in driver.env.items() if name.lower().endswith("_proxy")}
    if not given:
        return []
    bypass = given.pop("NO_PROXY", None) or given.get("no_proxy", "")
    given["NO_PROXY"] = ",".join(filter(None, (bypass, "$(KUBERNETES_SERVICE_HOST)")))
    return variables(given)
