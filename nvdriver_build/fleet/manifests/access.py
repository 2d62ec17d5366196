"""Who may do what: service accounts, roles, the SCC of driver pods, what they may talk to. The least that
works.
"""

from __future__ import annotations

from typing import Iterable, Optional
from urllib.parse import urlsplit

from nvdriver_build.fleet.manifests.common import NAME, Object, made, own
from nvdriver_build.fleet.manifests.controller import METRICS
from nvdriver_build.fleet.manifests.driver import Driver
from nvdriver_build.fleet.names import COMPONENT, DRIVER, FLEET, PREBUILD

_RBAC = "rbac.authorization.k8s.io"
_READ = ["get", "list", "watch"]
_WRITE = [*_READ, "create", "patch", "delete"]
_DNS = (53, 5353)
"""The second is that of OpenShift's DNS pods, which a NetworkPolicy sees after the address is translated."""
_API = (443, 6443)
_PORTS = {"http": 80, "https": 443}


def access_objects(driver: Driver) -> list[Object]:
    """The objects that somebody with the right to do so applies once."""
    namespace = made("v1", "Namespace", driver, driver.namespace, FLEET, namespaced=False)
    namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] = "privileged"
    namespace["metadata"]["annotations"] = {"openshift.io/node-selector": ""}  # not the cluster's default one
    accounts = [made("v1", "ServiceAccount", driver, f"{driver.name}-{each}", each) for each in _accounts()]
    rights = [*_driver_rights(driver), *_fleet_rights(driver)]
    return list(map(own, [namespace, *accounts, _scc(driver), *rights, _priority(driver)]))


def network_policies(driver: Driver) -> list[Object]:
    """Nobody calls the pods; they call a registry, and the API server for a Lease, if there is a registry
    at all. The controller calls the API server, and is asked for its metrics.
    """
    return [
        _policy(driver, "driver", DRIVER, _API if driver.registry else ()),
        _policy(driver, PREBUILD, PREBUILD, (443,) if driver.registry else ()),
        *([_policy(driver, FLEET, FLEET, _API, ingress=METRICS)] if driver.fleet_image else []),
    ]


def _accounts() -> tuple[str, ...]:
    return ("driver", PREBUILD, FLEET)


def _scc(driver: Driver) -> Object:
    """As the operator's `nvidia-driver`, without what our pod does not ask for."""
    scc = made(
        "security.openshift.io/v1",
        "SecurityContextConstraints",
        driver,
        f"{driver.name}-driver",
        namespaced=False,
    )
    anyone = {"type": "RunAsAny"}
    return {
        **scc,
        "allowHostDirVolumePlugin": True,
        "allowHostIPC": False,
        "allowHostNetwork": False,
        "allowHostPID": True,
        "allowHostPorts": False,
        "allowPrivilegeEscalation": True,
        "allowPrivilegedContainer": True,
        "allowedCapabilities": [],
        "defaultAddCapabilities": [],
        "requiredDropCapabilities": [],
        "readOnlyRootFilesystem": False,
        "fsGroup": anyone,
        "runAsUser": anyone,
        "seLinuxContext": anyone,
        "supplementalGroups": anyone,
        "seccompProfiles": ["*"],
        "volumes": ["configMap", "emptyDir", "hostPath", "projected", "secret"],
        "users": [],
        "groups": [],
    }


def _driver_rights(driver: Driver) -> list[Object]:
    use = _rule("security.openshift.io", ["securitycontextconstraints"], ["use"], [f"{driver.name}-driver"])
    leases = _rule("coordination.k8s.io", ["leases"], ["get", "create", "update", "delete"])
    return _role(driver, "driver", [use, *([leases] if driver.registry else [])], driver.namespace)


def _fleet_rights(driver: Driver) -> list[Object]:
    """The controller: reads the cluster, labels and cordons nodes, writes into its own namespace only."""
    cluster = [
        _rule("", ["nodes"], [*_READ, "patch"]),
        _rule("", ["pods"], _READ),
        _rule("", ["pods/eviction"], ["create"]),
        _rule("apps", ["daemonsets"], _READ),  # is there another driver?
        _rule("config.openshift.io", ["clusterversions"], _READ),
        _rule("machineconfiguration.openshift.io", ["machineconfigpools"], _READ),
    ]
    own = [
        _rule("apps", ["daemonsets"], _WRITE),
        _rule("batch", ["jobs"], _WRITE),
        _rule("", ["configmaps"], _WRITE),
        _rule("", ["pods"], ["delete"]),
        _rule("", ["events"], ["create", "patch"]),
        _rule("events.k8s.io", ["events"], ["create", "patch"]),
        _rule("coordination.k8s.io", ["leases"], ["get", "create", "update", "patch"]),
        *([_rule("", ["secrets"], ["get"], list(driver.secrets))] if driver.secrets else []),
    ]
    streams = [_rule("image.openshift.io", ["imagestreams", "imagestreamtags"], _READ)]
    return [
        *_role(driver, FLEET, cluster, None),
        *_role(driver, FLEET, own, driver.namespace),
        *_role(driver, FLEET, streams, "openshift"),
    ]


def _rule(group: str, resources: list[str], verbs: list[str], names: Iterable[str] = ()) -> Object:
    rule: Object = {"apiGroups": [group], "resources": resources, "verbs": verbs}
    return {**rule, "resourceNames": list(names)} if names else rule


def _role(driver: Driver, account: str, rules: list[Object], namespace: Optional[str]) -> list[Object]:
    """A role and its binding, in a namespace or (None) for the cluster."""
    kind, name = ("Role" if namespace else "ClusterRole"), f"{driver.name}-{account}"
    role = made(f"{_RBAC}/v1", kind, driver, name, account, namespaced=False)
    binding = made(f"{_RBAC}/v1", f"{kind}Binding", driver, name, account, namespaced=False)
    for each in (role, binding):
        each["metadata"].update({"namespace": namespace} if namespace else {})
    subject = {"kind": "ServiceAccount", "name": name, "namespace": driver.namespace}
    whose = {"apiGroup": _RBAC, "kind": kind, "name": name}
    return [{**role, "rules": rules}, {**binding, "roleRef": whose, "subjects": [subject]}]


def _priority(driver: Driver) -> Object:
    """A prebuild gives way to everything, and drives nobody out."""
    name = f"{driver.name}-{PREBUILD}"
    made_of = made("scheduling.k8s.io/v1", "PriorityClass", driver, name, PREBUILD, namespaced=False)
    words = "builds kernel modules ahead of an upgrade, where there is room"
    return {
        **made_of,
        "value": -100,
        "preemptionPolicy": "Never",
        "globalDefault": False,
        "description": words,
    }


def _policy(
    driver: Driver, name: str, component: str, ports: Iterable[int], ingress: Optional[str] = None
) -> Object:
    """What pods may call at these ports, at those of registry and proxies, and by which port (its name) they
    are called; without ports nothing at all.
    """
    policy = made("networking.k8s.io/v1", "NetworkPolicy", driver, f"{driver.name}-{name}", component)
    wanted = {*ports}
    # what is empty is not said: the API drops it, and takes the next apply for a change
    called = {"ingress": [{"ports": [{"protocol": "TCP", "port": ingress}]}]} if ingress else {}
    calls = {"egress": _egress(wanted | _ports_of(driver))} if wanted else {}
    chosen = {"matchLabels": {NAME: driver.name, COMPONENT: component}}
    types = ["Ingress", "Egress"]
    policy["spec"] = {"podSelector": chosen, "policyTypes": types, **called, **calls}
    return policy


def _egress(ports: Iterable[int]) -> list[Object]:
    dns = [{"protocol": protocol, "port": port} for port in _DNS for protocol in ("UDP", "TCP")]
    return [{"ports": dns}, {"ports": [{"protocol": "TCP", "port": port} for port in sorted(ports)]}]


def _ports_of(driver: Driver) -> set[int]:
    """Of the registry and of the proxies, each read as it is where it is used."""
    proxies = [value for name, value in driver.env.items() if name.lower() in ("http_proxy", "https_proxy")]
    ports = [_port_of(driver.registry or "", "https"), *(_port_of(each, "http") for each in proxies)]
    return {port for port in ports if port}


def _port_of(address: str, scheme: str) -> Optional[int]:
    """The port that an address names, else that of its scheme, which is `scheme` where it has none; None
    where it is no address.
    """
    try:
        found = urlsplit(address if "://" in address else f"{scheme}://{address}")
        return (found.port or _PORTS.get(found.scheme)) if found.hostname else None
    except ValueError:
        return None
