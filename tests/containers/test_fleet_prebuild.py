"""A prebuild Job as `fleet` renders it: its containers in turn, with the rights that it asks for."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping

from keys import make_identity
from podman_rig import Podman
from prebuilt_taker import take
from vm.kit import KitKernel

from nvdriver_build.fleet.manifests import Driver, prebuild_job
from nvdriver_build.fleet.plan import PrebuildWanted

USER, GROUP = 1000, 2000
"""What an SCC gives a pod: a user that nobody knows, in group 0, and a group that its volumes have."""


def test_prebuild_job(
    podman: Podman,
    toolkit: Callable[[str], Path],
    sample_image: str,
    kernel_a: KitKernel,
    tmp_path: Path,
) -> None:
    """Without network, root and capabilities: built in the toolkit, signed and published by ours."""
    driver = Driver(sample_image, registry="registry.example.com/sets", sign_secret="signing")
    wanted = PrebuildWanted("job", "key", "416.94.202408260940-0", "toolkit", "x86_64", kernel_a.release)
    pod = prebuild_job(wanted, driver)["spec"]["template"]["spec"]
    volumes = lay_out(tmp_path)
    keys = make_identity(tmp_path / "made", "Build key")
    as_secret(volumes["signing"], {"tls.key": keys.key, "tls.crt": keys.file})
    for container in [*pod["initContainers"], *pod["containers"]]:
        root = toolkit("fits") if container["image"] == "toolkit" else None
        podman.run(*words(container, volumes, tmp_path / "shared", root))
        if container["name"] == "build":
            assert "signing" not in [each["name"] for each in container["volumeMounts"]]
    taken = take(tmp_path, volumes["work"] / "source", kernel_a, keys.file)
    assert taken["from"] == "registry"


def lay_out(root: Path) -> Dict[str, Path]:
    """The volumes, as a kubelet makes them for the pod's group, and a folder for the registry."""
    found = {"work": root / "work", "signing": root / "signing"}
    for place in (*found.values(), root / "shared"):
        place.mkdir()
        os.chown(place, 0, GROUP)
        place.chmod(0o2777)
    return found


def as_secret(place: Path, files: Mapping[str, Path]) -> None:
    """Readable by the group only."""
    for name, path in files.items():
        shutil.copyfile(path, place / name)
        os.chown(place / name, 0, GROUP)
        (place / name).chmod(0o440)


def words(container: Dict[str, Any], volumes: Mapping[str, Path], shared: Path, root: Any) -> List[object]:
    """podman's words for a container of the pod."""
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    found: List[object] = ["--cap-drop=all", "--security-opt=no-new-privileges", "--pull=never"]
    found += [f"--user={USER}:0", f"--group-add={GROUP}", "-v", f"{shared}:/shared"]
    for each in container["volumeMounts"]:
        mode = ":ro" if each.get("readOnly") else ""
        found += ["-v", f"{volumes[each['name']]}:{each['mountPath']}{mode}"]
    for each in container["env"]:
        value = "/shared" if each["name"] == "NVDRIVER_REGISTRY" else each["value"]
        found += ["-e", f"{each['name']}={value}"]
    program, *rest = container["command"]
    if root is not None:
        found += ["-e", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "--rootfs", f"{root}:O"]
        return [*found, program, *rest]
    return [*found, "--entrypoint", program, container["image"], *rest]
