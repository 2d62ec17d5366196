"""A plan to Kubernetes objects: pure, and the same bytes for the same plan.

Objects are plain dicts, as the API takes them. A pod's template holds only what changes the driver.
"""

from __future__ import annotations

import json
from typing import Callable, Mapping, Optional

from attrs import evolve

from nvdriver_build.fleet.manifests.access import access_objects, network_policies
from nvdriver_build.fleet.manifests.common import CERTIFICATE_MAP, NAME, Object, certificates, made, own
from nvdriver_build.fleet.manifests.controller import controller_objects, settings_document
from nvdriver_build.fleet.manifests.driver import Driver, content_digest, driver_settings, is_image
from nvdriver_build.fleet.manifests.pod import parameter_map, pod_template
from nvdriver_build.fleet.manifests.prebuild import prebuild_job
from nvdriver_build.fleet.names import COMPONENT, DRIVER, DRIVER_NOTE, LABEL, TEMPLATE_NOTE
from nvdriver_build.fleet.plan import DaemonSetWanted, Options, Plan
from nvdriver_build.fleet.versions import digest, label_value

__all__ = [
    "Driver",
    "Object",
    "access_objects",
    "content_digest",
    "controller_objects",
    "daemonset",
    "driver_settings",
    "is_image",
    "network_policies",
    "plan_objects",
    "plan_options",
    "prebuild_job",
    "render",
    "settings_document",
]


def plan_options(driver: Driver, overrides: Optional[Mapping[str, str]] = None) -> Options:
    """How to plan for this driver; `overrides` give a toolkit image by RHCOS version."""
    return Options(
        name=driver.name,
        driver=driver.identity,
        prebuild=driver.prebuilds,
        overrides=dict(overrides or {}),
        nfd_label=driver.nfd_label,
    )


def render(
    plan: Plan,
    driver: Driver,
    contents: Optional[Mapping[str, str]] = None,
    overrides: Optional[Mapping[str, str]] = None,
) -> list[Object]:
    """Everything, in an order in which it can be applied. `contents` has `content_digest` for each Secret of
    `driver.secrets` by name, as far as it is known; `overrides` as of `plan_options`.
    """
    return [
        *access_objects(driver),
        *network_policies(driver),
        *plan_objects(plan, driver, lambda wanted: daemonset(wanted, driver, contents or {})),
        *controller_objects(driver, overrides or {}),
    ]


def plan_objects(
    plan: Plan, driver: Driver, make: Optional[Callable[[DaemonSetWanted], Object]] = None
) -> list[Object]:
    """What changes with the plan: ConfigMaps, DaemonSets (as `make` has them), Jobs."""
    make = make or (lambda wanted: daemonset(wanted, driver, {}))
    return [
        *_config_maps(driver),
        *(make(wanted) for wanted in plan.daemonsets),
        *(prebuild_job(wanted, driver) for wanted in plan.prebuilds if driver.prebuilds),
    ]


def _config_maps(driver: Driver) -> list[Object]:
    """Module parameters and certificates, as far as there are any."""
    parameters = {"data": dict(driver.parameters), "immutable": True}
    found = ((CERTIFICATE_MAP, {"data": certificates(driver)}), (parameter_map(driver), parameters))
    return [
        {**made("v1", "ConfigMap", driver, f"{driver.name}-{name}"), **content}
        for name, content in found
        if content["data"]
    ]


def daemonset(wanted: DaemonSetWanted, driver: Driver, contents: Mapping[str, str]) -> Object:
    """The DaemonSet of one RHCOS version. Pods are replaced by whoever drains their node, hence OnDelete."""
    found = made("apps/v1", "DaemonSet", driver, wanted.name)
    value = label_value(wanted.version)
    found["metadata"]["labels"][LABEL] = value
    found["metadata"]["annotations"] = {LABEL: wanted.version}
    found["spec"] = own(
        {
            "selector": {"matchLabels": {NAME: driver.name, COMPONENT: DRIVER, LABEL: value}},
            "updateStrategy": {"type": "OnDelete"},
            "template": _stamped(
                pod_template(wanted, driver, contents),
                pod_template(evolve(wanted, toolkit=None), _bare(driver), contents),
            ),
        }
    )
    return found


def _bare(driver: Driver) -> Driver:
    """Without what changes no driver that runs: a login that is changed every day drains no node."""
    access = evolve(driver, registry_ca=None, registry_auth_secret=None, trust=None, pull_secrets=())
    return evolve(access, tolerations=(), resources={})


def _stamped(template: Object, bare: Object) -> Object:
    """With a digest of itself, by which a pod of an older one is known, and one of what is its driver: of
    the template without a toolkit, and without how images and sets are reached.
    """
    template["metadata"]["annotations"][DRIVER_NOTE] = digest(json.dumps(bare, sort_keys=True))
    template["metadata"]["annotations"][TEMPLATE_NOTE] = digest(json.dumps(template, sort_keys=True))
    return template
