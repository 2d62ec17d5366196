"""Pods as `fleet` renders them, as podman takes them: volumes, variables and rights, by the objects alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

from pod_rig import Container, Pod

USER, GROUP = 1000, 2000
"""What an SCC gives a pod: a user that nobody knows, in group 0, and a group that its volumes have."""
Contents = Mapping[Tuple[str, str], Mapping[str, bytes]]
"""What is in Secrets and ConfigMaps: by `secret` or `configMap`, and name."""
_NAMES = {"secret": "secretName", "configMap": "name"}
_PATH = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"


def lay_out(spec: Mapping[str, Any], root: Path, contents: Contents) -> Dict[str, Path]:
    """A folder for each volume that is not the node's own, as a kubelet makes it for the pod's group."""
    found = {}
    for volume in spec["volumes"]:
        if "hostPath" not in volume:
            place = found[volume["name"]] = root / volume["name"]
            place.mkdir(parents=True)
            os.chown(place, 0, GROUP)
            place.chmod(0o2777)
            _fill(place, volume, contents)
    return found


def _fill(place: Path, volume: Mapping[str, Any], contents: Contents) -> None:
    for kind, key in _NAMES.items():
        if kind in volume:
            source = volume[kind]
            data = contents[kind, source[key]]
            items = source.get("items") or [{"key": name, "path": name} for name in data]
            for each in items:
                path = place / each["path"]
                path.write_bytes(data[each["key"]])
                os.chown(path, 0, GROUP)
                path.chmod(source.get("defaultMode", 0o644))


def mounts(container: Mapping[str, Any], volumes: Mapping[str, Path]) -> List[object]:
    """podman's words for those of the container's mounts that `lay_out` has made."""
    found: List[object] = []
    for each in container["volumeMounts"]:
        if each["name"] in volumes:
            mode = ":ro" if each.get("readOnly") else ""
            found += ["-v", f"{volumes[each['name']]}:{each['mountPath']}{mode}"]
    return found


def environment(container: Mapping[str, Any], node: str = "") -> Dict[str, str]:
    """Its variables; what it asks of the API is the name of its node."""
    return {each["name"]: each.get("value", node) for each in container["env"]}


def job_words(
    container: Mapping[str, Any], volumes: Mapping[str, Path], root: Optional[Path] = None, **differ: str
) -> List[object]:
    """podman's words for a container of a prebuild Job; `root` is a toolkit's, in place of an image.

    `differ` are other values of its variables.
    """
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    found: List[object] = ["--cap-drop=all", "--security-opt=no-new-privileges", "--pull=never"]
    found += [f"--user={USER}:0", f"--group-add={GROUP}", *mounts(container, volumes)]
    for name, value in environment(container).items():
        found += ["-e", f"{name}={differ.get(name, value)}"]
    program, *rest = container["command"]
    if root is not None:
        return [*found, "-e", _PATH, "--rootfs", f"{root}:O", program, *rest]
    return [*found, "--entrypoint", program, container["image"], *rest]


def without_rights(pod: Pod, spec: Mapping[str, Any]) -> Container:
    """Start the container of the toolkit beside a driver's, by its part of the rendered pod."""
    rights = spec["securityContext"]
    assert rights["capabilities"] == {"drop": ["ALL"]} and not rights["privileged"]
    [mount] = spec["volumeMounts"]
    name = f"unprivileged-{pod.containers[0].name}"
    log = pod.node.folder / f"{name}.log"
    container = Container(pod.podman, name, log)
    pod.containers.append(container)
    words: List[object] = ["-d", "--pull=never", "--network=none", "--name", name]
    words += ["--log-opt", f"path={log}", "--cap-drop=all", "--security-opt=no-new-privileges"]
    words += [f"--user={rights['runAsUser']}", "-v", f"{pod.shared}:{mount['mountPath']}", "-e", _PATH]
    pod.podman("run", *words, "--rootfs", f"{pod.toolkit_root}:O", *spec["command"])
    return container
