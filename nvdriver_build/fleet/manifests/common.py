"""What all objects have: names, labels, and parts of pods."""

from __future__ import annotations

from typing import Any, Mapping, Optional

from nvdriver_build.fleet.manifests.driver import Driver
from nvdriver_build.fleet.names import COMPONENT, DRIVER, MANAGED_BY

Object = dict[str, Any]
NAME = "app.kubernetes.io/name"
CERTIFICATES = "/etc/nvdriver-build/certificates"
CERTIFICATE_MAP = "certificates"
LOGIN = "/etc/nvdriver-build/registry"
_TRUST, _CA = "trust.pem", "registry-ca.pem"


def labels(driver: Driver, component: str, **more: str) -> dict[str, str]:
    """By which objects of ours are found. None is the GPU Operator's, which deletes what it takes for its
    own.
    """
    return {NAME: driver.name, COMPONENT: component, MANAGED_BY: driver.name, **more}


def made(
    version: str, kind: str, driver: Driver, name: str, component: str = DRIVER, *, namespaced: bool = True
) -> Object:
    """The beginning of an object."""
    metadata: Object = {"name": name, "labels": labels(driver, component)}
    if namespaced:
        metadata["namespace"] = driver.namespace
    return {"apiVersion": version, "kind": kind, "metadata": metadata}


def own(value: Any) -> Any:
    """A copy that shares no part with another object: constants stay as they are, YAML needs no anchors."""
    if isinstance(value, Mapping):
        return {name: own(each) for name, each in value.items()}
    return [own(each) for each in value] if isinstance(value, (list, tuple)) else value


def variable(name: str, value: str) -> Object:
    """A variable with a value."""
    return {"name": name, "value": value}


def variables(given: Mapping[str, str]) -> list[Object]:
    """Variables in a fixed order."""
    return [variable(name, given[name]) for name in sorted(given)]


def host_path(name: str, path: str, kind: Optional[str] = "DirectoryOrCreate") -> Object:
    """A volume of the node's."""
    return {"name": name, "hostPath": {"path": path, **({"type": kind} if kind else {})}}


def mount(name: str, path: str, *, propagation: Optional[str] = None, read_only: bool = False) -> Object:
    """A place for a volume in a container."""
    found: Object = {"name": name, "mountPath": path}
    if propagation:
        found["mountPropagation"] = propagation
    return {**found, "readOnly": True} if read_only else found


def certificates(driver: Driver) -> dict[str, str]:
    """The files at `CERTIFICATES`."""
    given = {_CA: driver.registry_ca, _TRUST: driver.trust}
    return {name: text for name, text in given.items() if text}


def config_volume(volume: str, driver: Driver, name: str, data: Mapping[str, str]) -> Object:
    """A volume with these files of a ConfigMap of ours."""
    items = [{"key": key, "path": key} for key in sorted(data)]
    return {"name": volume, "configMap": {"name": f"{driver.name}-{name}", "items": items}}


def registry_variables(driver: Driver) -> list[Object]:
    """How to reach the registry, and whom to trust."""
    given = {"NVDRIVER_REGISTRY": driver.registry}
    given["NVDRIVER_REGISTRY_CA"] = f"{CERTIFICATES}/{_CA}" if driver.registry_ca else None
    given["NVDRIVER_REGISTRY_AUTH"] = f"{LOGIN}/.dockerconfigjson" if driver.registry_auth_secret else None
    given["NVDRIVER_TRUST"] = f"{CERTIFICATES}/{_TRUST}" if driver.trust else None
    return variables({name: value for name, value in given.items() if value})


def registry_volumes(driver: Driver) -> tuple[list[Object], list[Object]]:
    """Volumes and their mounts for what the registry's variables name."""
    volumes, mounts = list[Object](), list[Object]()
    if certificates(driver):
        volumes.append(config_volume("certificates", driver, CERTIFICATE_MAP, certificates(driver)))
        mounts.append(mount("certificates", CERTIFICATES, read_only=True))
    if driver.registry_auth_secret:
        volumes.append({"name": "registry-login", "secret": {"secretName": driver.registry_auth_secret}})
        mounts.append(mount("registry-login", LOGIN, read_only=True))
    return volumes, mounts


def tolerations(driver: Driver, everywhere: bool = True) -> list[Object]:
    """Of a driver's pods, which have to be `everywhere`; of others those without what would bring or keep
    them on a node that is down or drained. A Job may have only GPU nodes of its architecture.
    """
    gpu = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    given = [dict(each) for each in driver.tolerations]
    return [gpu, *(each for each in given if everywhere or not _of_nodes(each))]


def _of_nodes(toleration: Object) -> bool:
    """Without a key it is of all taints."""
    return not toleration.get("key") or str(toleration["key"]).startswith("node.kubernetes.io/")


def pull_secrets(driver: Driver) -> Object:
    """Part of a pod's spec."""
    return (
        {"imagePullSecrets": [{"name": name} for name in driver.pull_secrets]} if driver.pull_secrets else {}
    )
