"""`fleet watch` as its rendered Deployment starts it, and who else drives GPUs in the cluster."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

import pytest

pytest.importorskip("lightkube", reason="the extra 'fleet' is for Python 3.11 and later")

from fleet_rig import IMAGE, Rig, listening, running, served, wait_for
from keys import make_identity
from module_sets import recipe
from oci_registry import oci_registry
from oci_sets import write_signed
from upgrade_sim import RELEASES
from upgrade_world import DAEMONSETS, JOBS, SPACE

OLD = RELEASES[0]
STATUS = "nvdriver-build-status"


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with served(tmp_path) as made:
        yield made


def rendered(rig: Rig) -> List[Dict[str, Any]]:
    """What `fleet render` writes for this cluster."""
    yaml = pytest.importorskip("yaml")
    settings = {"image": IMAGE, "namespace": SPACE, "fleet_image": "quay.io/example/fleet@sha256:1"}
    (rig.folder / "settings.json").write_text(json.dumps(settings))
    words = ["render", "--settings", str(rig.folder / "settings.json"), "--kubeconfig", str(rig.kubeconfig)]
    done = subprocess.run([*FLEET, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


FLEET = (sys.executable, "-m", "nvdriver_build", "fleet")


def test_the_rendered_command_starts(rig: Rig) -> None:
    """The Deployment's own words, with its ConfigMap at its mount: it leads, labels nodes, answers the probes
    by their paths, and a SIGTERM ends it within the grace that it has.
    """
    objects = rendered(rig)
    (deployment,) = (each for each in objects if each["kind"] == "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    root = laid_out(rig.folder / "root", pod, objects)
    words = [*container["command"], *container["args"]]
    assert words[0] == "nvdriver-build"
    places = tuple(f"{each['mountPath']}/" for each in container["volumeMounts"])
    words = [f"{root}{word}" if word.startswith(places) else word for word in words]
    port = container["ports"][0]["containerPort"]
    words = ["127.0.0.1:0" if word == f":{port}" else word for word in words]
    given = {each["name"]: each["value"] for each in container["env"]}
    environment = {**os.environ, **given, "KUBECONFIG": str(rig.kubeconfig)}
    program = [sys.executable, "-m", "nvdriver_build", *words[1:]]
    process = subprocess.Popen(program, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: rig.ready(OLD.version))
        address = listening(process.pid)
        for probe in ("livenessProbe", "readinessProbe"):
            path = container[probe]["httpGet"]["path"]
            assert urllib.request.urlopen(f"http://{address}{path}", timeout=10).status == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(pod["terminationGracePeriodSeconds"]) == 128 + signal.SIGTERM
    finally:
        process.kill()
    assert process.stderr is not None
    said = process.stderr.read()
    assert "Traceback" not in said and all(json.loads(line) for line in said.splitlines())


def laid_out(root: Path, pod: Dict[str, Any], objects: List[Dict[str, Any]]) -> Path:
    """The volumes, as a kubelet lays them out."""
    maps = {each["metadata"]["name"]: each["data"] for each in objects if each["kind"] == "ConfigMap"}
    volumes = {each["name"]: each for each in pod["volumes"]}
    for each in pod["containers"][0]["volumeMounts"]:
        place = root / each["mountPath"].lstrip("/")
        place.mkdir(parents=True)
        for name, text in maps.get(volumes[each["name"]].get("configMap", {}).get("name"), {}).items():
            (place / name).write_text(text)
    return root


def told(rig: Rig) -> str:
    with rig.server.lock:
        found = rig.server.store.objects.get("v1/configmaps", {}).get((SPACE, STATUS))
    return str(found["data"]["plan"]) if found else ""


@pytest.mark.parametrize(
    ("labels", "space", "seen"),
    [
        ({"app.kubernetes.io/component": "nvidia-driver"}, "nvidia-gpu-operator", True),
        ({"openshift.driver-toolkit": "true"}, "nvidia-gpu-operator", True),
        (
            {"app.kubernetes.io/component": "nvidia-driver", "openshift.driver-toolkit": "true"},
            "nvidia-gpu-operator",
            True,
        ),
        (
            {
                "app.kubernetes.io/component": "nvidia-driver",
                "app.kubernetes.io/managed-by": "nvdriver-build",
            },
            "elsewhere",
            True,
        ),
        ({"app": "nvidia-dcgm"}, "nvidia-gpu-operator", False),
    ],
    ids=["component", "operator", "both", "ours, moved", "another"],
)
def test_a_driver_in_another_namespace(rig: Rig, labels: Dict[str, str], space: str, seen: bool) -> None:
    """Somebody else's DaemonSet with pods, wherever it is, is told once; when it goes, that is told, too."""
    theirs = {
        "metadata": {"name": "theirs", "namespace": space, "labels": labels, "generation": 1},
        "spec": {"template": {"metadata": {}, "spec": {"nodeSelector": {"no": "node"}, "containers": []}}},
        "status": {"observedGeneration": 1, "currentNumberScheduled": 2, "numberMisscheduled": 0},
    }
    with running(rig) as controller:
        wait_for(lambda: rig.ready(OLD.version))
        rig.server.put(DAEMONSETS, theirs)
        if not seen:
            wait_for(lambda: controller.watcher.last is not None)
            assert "OtherDriver" not in told(rig)
            return
        wait_for(lambda: told(rig).count(f"{space}/theirs is a driver's DaemonSet") == 1)
        with rig.server.lock:
            rig.server.store.delete(DAEMONSETS, space, "theirs")
        wait_for(lambda: "OtherDriver" not in told(rig))


class Known:
    """`Sets` that has one more kernel each time that it is told."""

    asks = True

    def __init__(self) -> None:
        self.there: List[str] = []

    def has(self, kernel: str, arch: str, built: bool = False) -> Optional[bool]:
        return kernel in self.there

    def reasons(self) -> List[Any]:
        return []


def test_a_set_that_appears(rig: Rig) -> None:
    """What others put into the registry is in the status after `wake`, though the cluster is as it was."""
    sets = Known()
    with running(rig, sets=sets) as controller:
        wait_for(lambda: "can build" in told(rig))
        sets.there.append(OLD.kernel("x86_64"))
        controller.watcher.wake()
        wait_for(lambda: "set available" in told(rig))


def test_apply_and_status_know_the_registry(rig: Rig, tmp_path: Path) -> None:
    """`fleet apply` reads the login from the Secret, asks the registry, makes no Job for what is there, and
    `fleet status` shows it; a registry that is down is a reason there, and the nodes are served all the same.
    """
    identity = make_identity(tmp_path / "keys", "builder")
    kernel, new = OLD.kernel("x86_64"), RELEASES[1]
    rig.do(lambda world: world.offer(new))
    with oci_registry(tmp_path / "registry") as server:
        login = base64.b64encode(server.auth.read_bytes()).decode()
        secret = {"metadata": {"name": "login", "namespace": SPACE}, "data": {".dockerconfigjson": login}}
        rig.server.put("v1/secrets", secret)
        for each in (kernel, new.kernel("x86_64")):
            made = recipe(kernel_release=each, certificate=identity.certificate.fingerprint)
            server.open("gpu/sets").push(write_signed(tmp_path / each, made, identity))
        settings = {
            "image": IMAGE,
            "namespace": SPACE,
            "env": {"DRIVER_VERSION": recipe().driver_version},
            "registry": f"{server.host}/gpu/sets",
            "registry_ca": server.authority.read_text(),
            "registry_auth_secret": "login",
            "sign_secret": "signing",
            "trust": identity.file.read_text(),
        }
        (tmp_path / "settings.json").write_text(json.dumps(settings))
        words = ["--settings", str(tmp_path / "settings.json")]
        assert states(rig, *words) == ["set available", "prebuilt"]
        with rig.server.lock:
            assert rig.server.store.list(JOBS) == []
    assert states(rig, *words) == ["can build", "prebuild wanted"]
    assert "RegistryUnknown" in told(rig)


def states(rig: Rig, *words: str) -> List[str]:
    """Of the groups in `fleet status` after a `fleet apply`."""
    for command in (["apply", *words], ["status", "--json", "--namespace", SPACE]):
        argv = [*FLEET, *command, "--kubeconfig", str(rig.kubeconfig)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert done.stdout
    return [each["state"] for each in json.loads(done.stdout)["groups"]]
