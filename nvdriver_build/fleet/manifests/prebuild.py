"""The Job that builds ahead: our image lays out bundle and source, the Driver Toolkit compiles, our image
signs and publishes. One after the other, so that no container of the toolkit's ever sees a key.
"""

from __future__ import annotations

from attrs import evolve

from nvdriver_build.fleet.manifests.common import (
    Object,
    made,
    mount,
    own,
    pull_secrets,
    registry_variables,
    registry_volumes,
    tolerations,
    variable,
    variables,
)
from nvdriver_build.fleet.manifests.driver import Driver
from nvdriver_build.fleet.names import KEY_NOTE, LABEL, PREBUILD
from nvdriver_build.fleet.plan import PrebuildWanted
from nvdriver_build.fleet.versions import PLATFORMS

_WORK, _KEYS = "/work", "/etc/nvdriver-build/signing"
_FILL = (
    f"cp -R /usr/libexec/nvdriver-build {_WORK}/bundle && "
    f'cp -R "${{NVDRIVER_SOURCE:-/usr/src/nvidia-$DRIVER_VERSION}}" {_WORK}/source'
)
_PUBLISH = (
    f"pin=; [ ! -e {_KEYS}/pin ] || pin='--pin-file {_KEYS}/pin'; "
    f"nvdriver-build sign {_WORK}/set --output {_WORK}/signed "
    f"--cert {_KEYS}/tls.crt --key {_KEYS}/tls.key $pin && "
    f"exec nvdriver-build store push {_WORK}/signed"
)
_RETRIES, _DEADLINE = 3, 3600
_HOPELESS = [2, 10, 11, 13]
"""Exit codes that come again however often it is tried: configuration, toolkit, source, fit
(docs/contracts.md).
"""
_RESOURCES = {"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"memory": "8Gi"}}
_SIZE = "8Gi"


def prebuild_job(wanted: PrebuildWanted, driver: Driver) -> Object:
    """The Job for one kernel: bounded in retries and time, and the first to give way to anything else."""
    job = made("batch/v1", "Job", driver, wanted.name, PREBUILD)
    job["metadata"]["annotations"] = {KEY_NOTE: wanted.key, LABEL: wanted.version}
    job["spec"] = {
        "backoffLimit": _RETRIES,
        "activeDeadlineSeconds": _DEADLINE,
        "podFailurePolicy": {
            "rules": [
                # the empty list: the schemas of Kubernetes 1.27 ask for one in every rule
                {
                    "action": "FailJob",
                    "onExitCodes": {"operator": "In", "values": _HOPELESS},
                    "onPodConditions": [],
                },
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            ]
        },
        "template": {"metadata": {"labels": dict(job["metadata"]["labels"])}, "spec": _pod(wanted, driver)},
    }
    return {name: own(part) for name, part in job.items()}


def _pod(wanted: PrebuildWanted, driver: Driver) -> Object:
    login = driver.push_auth_secret or driver.registry_auth_secret
    driver = evolve(driver, registry_auth_secret=login)
    volumes, mounts = registry_volumes(driver)
    user = (
        {"runAsUser": driver.prebuild_user, "fsGroup": driver.prebuild_user} if driver.prebuild_user else {}
    )
    return {
        "serviceAccountName": f"{driver.name}-prebuild",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "restartPolicy": "Never",
        "priorityClassName": f"{driver.name}-prebuild",
        "nodeSelector": {"kubernetes.io/arch": PLATFORMS[wanted.arch], "kubernetes.io/os": "linux"},
        "tolerations": tolerations(driver, everywhere=False),
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}, **user},
        **pull_secrets(driver),
        "initContainers": [_fill(driver), _build(wanted, driver)],
        "containers": [_publish(driver, mounts)],
        "volumes": [
            {"name": "work", "emptyDir": {"sizeLimit": _SIZE}},
            {"name": "signing", "secret": {"secretName": driver.sign_secret, "defaultMode": 0o440}},
            *volumes,
        ],
    }


def _container(name: str, image: str, command: list[str], env: list[Object], mounts: list[Object]) -> Object:
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": command,
        "env": [variable("NVIDIA_VISIBLE_DEVICES", "void"), *env],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [mount("work", _WORK), *mounts],
    }


def _fill(driver: Driver) -> Object:
    return _container("fill", driver.image, ["/bin/sh", "-c", _FILL], variables(driver.env), [])


def _build(wanted: PrebuildWanted, driver: Driver) -> Object:
    words = ["--source", f"{_WORK}/source", "--headers", "/", "--output", f"{_WORK}/set"]
    words += ["--kind", driver.env.get("KERNEL_MODULE_TYPE", "auto")]
    words += ["--kernel-release", wanted.kernel] if wanted.kernel else []
    command = [f"{_WORK}/bundle/ocp_dtk_entrypoint", "dtk-prebuild", *words]
    env = [variable("NVDRIVER_STORE", f"{_WORK}/store"), *variables(_building(driver))]
    return {
        **_container("build", wanted.toolkit, command, env, []),
        "resources": dict(driver.prebuild_resources) or _RESOURCES,
    }


def _building(driver: Driver) -> dict[str, str]:
    names = ("NVDRIVER_COMPILER_MISMATCH", "NVDRIVER_JOBS", "NVDRIVER_JOB_MEMORY_MIB", "NVDRIVER_LOG_FORMAT")
    return {name: driver.env[name] for name in names if name in driver.env}


def _publish(driver: Driver, mounts: list[Object]) -> Object:
    env = [
        variable("NVDRIVER_STORE", f"{_WORK}/signing"),
        *registry_variables(driver),
        *variables(_proxies(driver)),
    ]
    keys = mount("signing", _KEYS, read_only=True)
    return _container("publish", driver.image, ["/bin/sh", "-c", _PUBLISH], env, [keys, *mounts])


def _proxies(driver: Driver) -> dict[str, str]:
    return {name: value for name, value in driver.env.items() if name.lower().endswith("_proxy")}
