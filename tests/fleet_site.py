"""An upgrade of a cluster of containers by the real `fleet` commands: what people do, and what is asked.

with Site(...) as site:
    site.start(); site.announce(); site.upgrade(); site.ways
"""

from __future__ import annotations

import base64
import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence

from api_server import ApiServer
from attrs import frozen
from cluster_objects import pool
from fleet_nodes import ContainerWorld, Way
from fleet_rig import Rig
from keys import Identity
from kit_release import KitRelease
from oci_registry import OciRegistry
from podman_rig import Podman
from upgrade_world import DAEMONSETS, JOBS, NODES, POOLS, SPACE, STREAMS

LONG = 1200.0
VERSIONS = "config.openshift.io/v1/clusterversions"
WORKER = "node-role.kubernetes.io/worker"
KINDS = {NODES: "Node", STREAMS: "ImageStream", POOLS: "MachineConfigPool", VERSIONS: "ClusterVersion",
         DAEMONSETS: "DaemonSet", JOBS: "Job"}  # fmt: skip
FILES = {"nodes": (NODES,), "imagestream": (STREAMS,), "clusterversion": (VERSIONS,), "pools": (POOLS,),
         "workloads": (DAEMONSETS, JOBS)}  # fmt: skip


@frozen
class Publishing:
    """Where prebuilds go, and what they are signed with."""

    registry: OciRegistry
    keys: Identity

    @property
    def settings(self) -> Dict[str, str]:
        """Of `fleet`."""
        return {
            "registry": f"{self.registry.host}/drivers/nvidia",
            "registry_ca": self.registry.authority.read_text(),
            "registry_auth_secret": "registry-login",
            "trust": self.keys.file.read_text(),
            "sign_secret": "signing",
        }

    @property
    def secrets(self) -> Dict[str, Dict[str, Path]]:
        """What these name."""
        return {
            "registry-login": {".dockerconfigjson": self.registry.auth},
            "signing": {"tls.key": self.keys.key, "tls.crt": self.keys.file},
        }


class Site:
    """A cluster on `releases[0]`, whose nodes' stores are copies of `filled`; `publishing` for prebuilds."""

    def __init__(
        self,
        podman: Podman,
        image: str,
        version: str,
        releases: Sequence[KitRelease],
        filled: Path,
        folder: Path,
        publishing: Optional[Publishing] = None,
        nodes: int = 3,
        user_space: bool = True,
    ) -> None:
        self.folder, self.old, self.new = folder, releases[0], releases[1]
        self._last = contextlib.ExitStack()
        self.server = ApiServer()
        self.world = ContainerWorld(
            tuple(releases),
            store=self.server.store,
            podman=podman,
            folder=folder / "nodes",
            filled=filled,
            user_space=user_space,
        )
        self.settings = folder / "settings.json"
        env = {"DRIVER_VERSION": version, "NVDRIVER_LOG_FORMAT": "json"}
        settings: Dict[str, Any] = {"image": image, "env": env}
        self.settings.write_text(json.dumps({**settings, **(publishing.settings if publishing else {})}))
        self.publishing = publishing
        self.names = [f"node-{number}" for number in range(nodes)]
        self.controller: Optional[subprocess.Popen[bytes]] = None

    def __enter__(self) -> Site:
        with self._last:
            self._last.enter_context(self.server)
            self._last.callback(self.world.close)
            with self.server.lock:
                self._fill()
            self.rig = Rig(self.server, self.folder, world=self.world)
            self._last.callback(self.rig.stop)
            self._last = self._last.pop_all()
        return self

    def _fill(self) -> None:
        """What is in the cluster at first."""
        self._put(POOLS, {**pool("worker"), "kind": "MachineConfigPool"})
        for name, files in (self.publishing.secrets if self.publishing else {}).items():
            data = {key: base64.b64encode(path.read_bytes()).decode() for key, path in files.items()}
            self._put("v1/secrets", {"metadata": {"name": name, "namespace": SPACE}, "data": data})
        self.offer(self.old)
        for name in self.names:
            self.world.join(name, self.old)
            self.server.store.merge(NODES, "", name, {"metadata": {"labels": {WORKER: ""}}})

    def __exit__(self, *_: object) -> None:
        self._last.close()

    def _put(self, plural: str, document: Dict[str, Any]) -> None:
        self.server.put(plural, document)

    def offer(self, release: KitRelease) -> None:
        """The release's toolkit comes into the ImageStream, and the cluster goes there."""
        version = {"desired": {"version": f"4.{release.number}.0"}}
        metadata = {"name": "version"}
        with self.server.lock:
            self.world.offer(release, labels=False)
            self._put(VERSIONS, {"kind": "ClusterVersion", "metadata": metadata, "status": version})

    def fleet(self, *words: str, api: bool = True, code: int = 0) -> str:
        """What a command of `fleet` says on its output; AssertionError where it ends with another code."""
        argv = [sys.executable, "-m", "nvdriver_build", "fleet", *words]
        argv += ["--kubeconfig", str(self.rig.kubeconfig)] if api else []
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == code, f"{argv}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def configured(self, command: str, *words: str, api: bool = True) -> str:
        """A command that takes the settings."""
        return self.fleet(command, "--settings", str(self.settings), *words, api=api)

    @contextlib.contextmanager
    def _controller(self) -> Any:
        argv = [sys.executable, "-m", "nvdriver_build", "fleet", "watch", "--listen", "127.0.0.1:0"]
        argv += ["--settings", str(self.settings), "--kubeconfig", str(self.rig.kubeconfig)]
        with (self.folder / "watch.log").open("wb") as log:
            process = subprocess.Popen(argv, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def watch(self) -> None:
        """`fleet watch` runs from now on."""
        self.controller = self._last.enter_context(self._controller())

    def end_watch(self) -> int:
        """It gets a SIGTERM; its exit code."""
        assert self.controller is not None
        self.controller.send_signal(signal.SIGTERM)
        return self.controller.wait(20)

    def until(self, what: Callable[[], object], seconds: float = LONG) -> None:
        """Wait for it, as long as the nodes and the controller are well."""
        end = time.monotonic() + seconds
        while not what():
            assert not self.rig.errors, self.rig.errors
            assert self.controller is None or self.controller.poll() is None, self.told
            assert time.monotonic() < end, self.told
            time.sleep(0.05)

    @property
    def told(self) -> str:
        """The controller's log."""
        return (self.folder / "watch.log").read_text(errors="replace")[-20000:]

    def up(self, release: KitRelease, *names: str) -> bool:
        """Whether the drivers of these nodes (of all) are ready in that release."""
        with self.server.lock:
            return all(
                self.world.machines[name].release == release and self.world.driver_ready(name)
                for name in names or self.names
            )

    def reboot(self, *names: str) -> None:
        """The Machine Config Operator brings nodes to the new release at once; until drivers are ready."""
        with self.server.lock:
            self.world.at_once = len(names)
            for name in names:
                self.world.machines[name].target = self.new
        self.until(lambda: self.up(self.new, *names))

    def files(self) -> List[str]:
        """What `oc get -o json` would write of the cluster now, and the options that name it."""
        words = []
        for option, plurals in FILES.items():
            with self.server.lock:
                items = [
                    {"kind": KINDS[each], **item} for each in plurals for item in self.server.store.list(each)
                ]
            path = self.folder / f"{option}.json"
            path.write_text(json.dumps({"kind": "List", "apiVersion": "v1", "items": items}))
            words += [f"--{option}", str(path)]
        return words

    @property
    def states(self) -> Dict[str, str]:
        """The state of each version, as `fleet status` tells it."""
        status = json.loads(self.fleet("status", "--json"))
        return {each["rhcos_version"]: each["state"] for each in status["groups"]}

    @property
    def ways(self) -> List[Way]:
        """How the nodes came into the new release, in the order of their reboots."""
        return [way for name in self.names for way in self.world.nodes[name].ways]


def table(courses: Mapping[str, Sequence[Way]]) -> str:
    """Markdown: a row for each node of each course."""
    rows = ["| upgrade | node | modules from | checked s | ready s |", "|---|---|---|---|---|"]
    for name, ways in courses.items():
        rows += [
            f"| {name} | {way.node} | {way.origin} | {way.checked:.2f} | {way.ready:.2f} |" for way in ways
        ]
    return "\n".join(rows)
