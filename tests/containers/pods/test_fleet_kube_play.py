"""The driver's pod as `fleet` renders it, whole, by `podman kube play`: both containers of one pod.

podman takes pods, no DaemonSets: the template is played as a Pod. What podman 4.3 or this machine cannot do
is changed by `as_pod`, nothing else:

    fieldRef            is an error: the value is put in
    hostPath            the node's folders are those of the rig
    the driver's words  are started by the rig's wrapper, which shows the node's kernel; three variables more
    hostPID             is not honoured: the pod sees its own processes only
    probes, preStop     are not honoured, but by `podman exec` in the other tests of this folder
    the toolkit's image would take 20 s to import: another one with the /usr of its root mounted, read-only
"""

from __future__ import annotations

import copy
import json
import os
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import pytest
from pod_node import PodNode
from podman_rig import Podman

from nvdriver_build.fleet.manifests import Driver, daemonset
from nvdriver_build.fleet.plan import DaemonSetWanted

VERSION = "416.94.202408260940-0"
SHARED = "/mnt/shared-nvidia-driver-toolkit"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SLOW = 180


def as_pod(found: Dict[str, Any], name: str, node: PodNode, root: Path) -> Dict[str, Any]:
    """The template of a DaemonSet as a Pod on this node, with the toolkit's `root`."""
    template = copy.deepcopy(found["spec"]["template"])
    spec = template["spec"]
    places = host_places(node)
    for volume in spec["volumes"]:
        if "hostPath" in volume:
            volume["hostPath"]["path"] = places[volume["hostPath"]["path"]]
    driver, toolkit = spec["containers"]
    for container in (driver, toolkit):
        for each in container["env"]:
            if "valueFrom" in each:
                each["value"] = each.pop("valueFrom")["fieldRef"]["fieldPath"]
        container["env"].append({"name": "PATH", "value": f"/rig/bin:{PATH}"})
    driver["command"] = ["sh", "/rig/node.sh", *driver["command"]]
    driver["env"].append({"name": "NVDRIVER_MODULE_TREE", "value": f"/rig/modules/{node.release}"})
    release = "etc/driver-toolkit-release.json"
    more = (
        ("rig", node.rig, "/rig", driver),
        ("modules", node.modules.parent, "/rig/modules", driver),
        ("usr", root / "usr", "/usr", toolkit),
        ("release", root / release, f"/{release}", toolkit),
    )
    for what, place, target, container in more:
        spec["volumes"].append({"name": what, "hostPath": {"path": str(place)}})
        container["volumeMounts"].append(
            {"name": what, "mountPath": target, "readOnly": container is toolkit}
        )
    head = {"apiVersion": "v1", "kind": "Pod"}
    return {**head, "metadata": {"name": name, **template["metadata"]}, "spec": spec}


def host_places(node: PodNode) -> Dict[str, str]:
    """The rig's place for each of the node's that the pod mounts."""
    folder = node.folder
    (node.run / "driver/lib/firmware").mkdir(parents=True, exist_ok=True)
    found = {
        "/run/nvidia": node.run,
        "/run/nvidia-fabricmanager": folder / "fabricmanager",
        "/run/nvidia-topologyd": folder / "topologyd",
        "/var/log": folder / "var-log",
        "/dev/log": folder / "dev-log",
        "/run/mellanox/drivers": folder / "mellanox",
        "/sys/devices/system": Path("/sys/devices/system"),
        "/sys/module/firmware_class/parameters/path": node.firmware_path,
        "/var/lib/nvdriver-build": node.store,
        "/run/nvidia/driver/lib/firmware": node.run / "driver/lib/firmware",
        "/etc/os-release": folder / "os-release",
    }
    return {name: str(place) for name, place in found.items()}


@pytest.fixture
def played(
    podman: Podman,
    node: PodNode,
    sample_image: str,
    base_image: str,
    toolkit: Callable[[str], Path],
    tmp_path: Path,
) -> Iterator[str]:
    """The pod's name, while it runs."""
    name = f"nvidia-driver-{os.getpid()}"
    found = daemonset(DaemonSetWanted(VERSION, name, base_image), Driver(sample_image), {})
    (tmp_path / "pod.json").write_text(json.dumps(as_pod(found, name, node, toolkit("fits"))))
    try:
        podman("kube", "play", "--network", "none", tmp_path / "pod.json")
        yield name
    finally:
        for container in containers(podman, name):
            print(f"--- {container}\n{podman('logs', container, check=False).stderr[-20000:]}")
        podman("pod", "rm", "-f", "-t", "0", name, check=False)
        podman("volume", "rm", "-f", "shared-nvidia-driver-toolkit", check=False)


def containers(podman: Podman, pod: str) -> List[str]:
    listed = podman("ps", "-a", "--filter", f"pod={pod}", "--format", "{{.Names}}").stdout.split()
    return [each for each in listed if each.startswith(f"{pod}-")]


def status(node: PodNode) -> Dict[str, Any]:
    place = node.run / "nvdriver-build/status.json"
    found: Dict[str, Any] = json.loads(place.read_text()) if place.exists() else {}
    return found


def test_the_rendered_pod(podman: Podman, node: PodNode, played: str) -> None:
    """Both containers start, talk through the shared folder, and the set is built in the one that has no
    rights and checked in the other.
    """
    until = time.monotonic() + SLOW
    while status(node).get("origin") is None:
        assert time.monotonic() < until, status(node)
        time.sleep(0.1)
    assert status(node)["origin"] == "built" and status(node)["fit"] == "exact"
    assert sorted(containers(podman, played)) == [
        f"{played}-nvidia-driver-ctr",
        f"{played}-openshift-driver-toolkit-ctr",
    ]
    toolkit = f"{played}-openshift-driver-toolkit-ctr"
    seen = podman("exec", toolkit, "sh", "-c", f"ls {SHARED}; cat /proc/1/status; ls -d /run/nvidia || true")
    assert "dir_prepared" in seen.stdout.split()
    rights = dict(line.split(":\t") for line in seen.stdout.splitlines() if ":\t" in line)
    assert int(rights["CapEff"], 16) == int(rights["CapBnd"], 16) == 0 and rights["NoNewPrivs"] == "1"
    assert "/run/nvidia" not in seen.stdout
    assert [path.name for path in node.store.glob("sets/*")]
