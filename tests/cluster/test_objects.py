"""What `fleet render` writes is what a Kubernetes API takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List

import pytest
from cluster_rendered import apply_all, rendered, rights, whole_driver
from cluster_rig import SCC, Cluster

from nvdriver_build.fleet.controller.api import Missing
from nvdriver_build.fleet.controller.client import HttpApi, cluster_config
from nvdriver_build.fleet.controller.kinds import LEASE, Kind

REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


def test_rendered_objects(cluster: Cluster, tmp_path: Path) -> None:
    """Each rendered object is taken, keeps all that was said of it, and applied again stays as it is."""
    objects = rendered(cluster, whole_driver(cluster), tmp_path)
    first = apply_all(cluster, objects)
    lost = [loss for wanted, there in zip(objects, first) for loss in losses(wanted, there, wanted["kind"])]
    assert lost == []
    assert {"DaemonSet", "Deployment", "Job", "NetworkPolicy", SCC.name} <= {each["kind"] for each in objects}
    again = apply_all(cluster, objects)
    assert [each["kind"] for each, now in zip(first, again) if mark(each) != mark(now)] == []


def mark(document: Any) -> Any:
    """What changes with a write; where controllers write a status into it, with a write of ours."""
    controlled = document["kind"] in ("DaemonSet", "Deployment", "Job", "Namespace", "PodDisruptionBudget")
    return document["metadata"].get("generation" if controlled else "resourceVersion")


def losses(wanted: Any, there: Any, path: str) -> List[str]:
    """Where an answer lacks what was applied; what is empty counts as not said."""
    if isinstance(wanted, dict):
        found = there if isinstance(there, dict) else {}
        return [
            loss
            for key, value in wanted.items()
            if value not in ([], {}, None)
            for loss in losses(value, found.get(key), f"{path}.{key}")
        ]
    if isinstance(wanted, list) and isinstance(there, list) and len(wanted) == len(there):
        pairs = enumerate(zip(wanted, there))
        return [loss for at, (one, other) in pairs for loss in losses(one, other, f"{path}[{at}]")]
    if isinstance(wanted, bool) and not wanted and there is None:
        return []
    return [] if wanted == there else [f"{path}: {wanted!r} became {there!r}"]


def test_rights(real: Cluster, tmp_path: Path) -> None:
    """The accounts may do what they are for and nothing else."""
    driver = whole_driver(real)
    rights(real, tmp_path, driver)
    here, name = real.space, driver.name
    allowed = {
        f"{name}-fleet": {
            "patch nodes": "", "list nodes": "", "create pods/eviction": here, "create daemonsets.apps": here,
            "patch jobs.batch": here, "update leases.coordination.k8s.io": here, "create events": here,
            "list machineconfigpools.machineconfiguration.openshift.io": "",
            "watch imagestreams.image.openshift.io": "openshift", "get secrets/settings": here,
            "get secrets/login": here,
        },
        f"{name}-driver": {
            "create leases.coordination.k8s.io": here, "update leases.coordination.k8s.io": here,
            f"use securitycontextconstraints.security.openshift.io/{name}-driver": here,
        },
        f"{name}-prebuild": {},
    }  # fmt: skip
    forbidden = {
        "delete nodes": "", "patch nodes.status": "", "list secrets": here, "get secrets/signing": here,
        "create pods": here, "create daemonsets.apps": "default", "patch configmaps": "openshift",
        "create clusterroles.rbac.authorization.k8s.io": "", "delete namespaces": "",
        "use securitycontextconstraints.security.openshift.io/privileged": here,
        "impersonate serviceaccounts": here,
    }  # fmt: skip
    for account, may in allowed.items():
        api = HttpApi(cluster_config(real.as_account(account, tmp_path)))
        try:
            assert {what: review(api, what, space) for what, space in may.items()} == dict.fromkeys(may, True)
            denied = {what: review(api, what, space) for what, space in forbidden.items()}
            assert denied == dict.fromkeys(forbidden, False), account
            with pytest.raises(Missing, match="there are no noes here"):
                list(api.pages(Kind("nowhere.example.com", "v1", "No", "noes"), here))
        finally:
            api.close()


def review(api: HttpApi, what: str, namespace: str) -> bool:
    """`create pods/eviction`, `list jobs.batch`, `get secrets/NAME` in a namespace."""
    verb, _, words = what.partition(" ")
    resource, _, name = words.partition("/")
    plural, _, group = resource.partition(".")
    asked: Dict[str, str] = {"verb": verb, "resource": plural, "group": group, "namespace": namespace}
    if group == "status" or name == "eviction":
        asked.update(group="", subresource=group or name)
    elif name:
        asked["name"] = name
    body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview"}
    found = api._ask("test", LEASE, "POST", REVIEWS, {}, {**body, "spec": {"resourceAttributes": asked}})
    return bool(found["status"]["allowed"])
