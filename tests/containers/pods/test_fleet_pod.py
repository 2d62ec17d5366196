"""The driver's pod as `fleet` renders it: a Driver Toolkit without any right builds for the driver."""

from __future__ import annotations

from typing import Any, Dict, List

from pod_rig import Container, MakePod, Pod

from nvdriver_build.fleet.manifests import Driver, daemonset
from nvdriver_build.fleet.plan import DaemonSetWanted


def test_a_toolkit_without_rights(make_pod: MakePod) -> None:
    """No privileges, no capabilities, nothing of the node but the shared folder: the modules are built."""
    pod = make_pod()
    wanted = DaemonSetWanted("416.94.202408260940-0", "name", "toolkit")
    spec = daemonset(wanted, Driver(pod.image), {})["spec"]["template"]["spec"]
    driver_container, toolkit_container = spec["containers"]
    driver = pod.driver(*driver_container["command"], *driver_container["args"])
    toolkit = without_rights(pod, toolkit_container)
    driver.says('"stage": "load"')
    assert pod.status["origin"] == "built"
    assert toolkit.runs, toolkit.text


def without_rights(pod: Pod, spec: Dict[str, Any]) -> Container:
    """The container of the toolkit, by its part of the pod."""
    rights = spec["securityContext"]
    assert (
        isinstance(rights, dict) and rights["capabilities"] == {"drop": ["ALL"]} and not rights["privileged"]
    )
    [mount] = spec["volumeMounts"]
    words: List[object] = [
        "--cap-drop=all",
        "--security-opt=no-new-privileges",
        f"--user={rights['runAsUser']}",
    ]
    words += ["-v", f"{pod.shared}:{mount['mountPath']}", "-e", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]
    name = f"unprivileged-{pod.containers[0].name}"
    log = pod.node.folder / f"{name}.log"
    container = Container(pod.podman, name, log)
    pod.containers.append(container)
    start = [
        "run",
        "-d",
        "--pull=never",
        "--network=none",
        "--name",
        name,
        "--log-opt",
        f"path={log}",
        *words,
    ]
    pod.podman(*start, "--rootfs", f"{pod.toolkit_root}:O", *spec["command"])
    return container
