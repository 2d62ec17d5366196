"""A cluster whose nodes are containers: kubelets and Job controller of a `World`, played by podman.

What runs in the rendered pods is real: images, toolkits, compilers, signatures, a registry. Of a node only
the kernel is played (`PodNode`). A node does one thing after another, while the cluster's time goes on.
"""

from __future__ import annotations

import base64
import itertools
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

from api_store import Doc
from attrs import define, field, frozen
from kit_release import KitRelease
from pod_node import PodNode, remove
from pod_rig import SLOW, Container, Pod
from podman_rig import Podman
from rendered import Contents, environment, job_words, lay_out, mounts, without_rights
from upgrade_world import JOBS, SPACE, Machine, PodState, World

CHECKED, COMPILES = '"event": "a set that fits"', "asked for"
ANNOUNCED = '"stage": "ready", "seconds"'
PROBES = ("startup", "readiness")
RESTART = 5.0
"""Seconds after a boot until a kubelet starts a pod again that was there before: the network comes first.
Also from the end of its driver, which finds itself on the wrong node, until it is started once more.
"""


@frozen
class Way:
    """How a node came into a kernel: seconds from its own word on it until modules were checked, and ready.

    `origin` is where the modules came from, `compiled` whether the toolkit beside was asked for anything.
    """

    node: str
    kernel: str
    checked: float
    ready: float
    origin: str
    compiled: bool


@define
class RealNode:
    """A node, its kubelet, and the one pod on it. `release`, `running` and `ready` are what it says."""

    name: str
    podman: Podman
    folder: Path
    filled: Path
    """A store that its first boot finds."""
    user_space: bool = True
    """Whether the image has nvidia-smi, which probes ask."""
    back: float = 0.0
    not_before: float = 0.0
    running: Optional[str] = None
    ready: bool = False
    ways: List[Way] = field(factory=list)
    host: Optional[PodNode] = None
    pod: Optional[Pod] = None
    _worker: ThreadPoolExecutor = field(init=False, factory=lambda: ThreadPoolExecutor(1))
    _doing: List[Future[None]] = field(init=False, factory=list)
    _numbers: Any = field(init=False, factory=itertools.count)

    @property
    def busy(self) -> bool:
        """Whether it is still at something. Raises what went wrong."""
        for each in [each for each in self._doing if each.done()]:
            self._doing.remove(each)
            each.result()
        return bool(self._doing)

    def do(self, what: Callable[..., None], *words: Any) -> None:
        """Once all is done that it was told before."""
        self._doing.append(self._worker.submit(what, *words))

    def boot(self, release: KitRelease) -> None:
        """Whatever ran is dead; /run is empty; the store is still there."""
        before, place = self.host, self.folder / f"boot{next(self._numbers)}"
        self._end_pod()
        assert release.kit is not None
        host = PodNode.make(place, release.kit, release.trees)
        (host.folder / "os-release").write_text(f'ID="rhcos"\nOSTREE_VERSION="{release.version}"\n')
        host.store.rmdir()
        if before is None:
            shutil.copytree(self.filled, host.store, symlinks=True)
        else:
            assert before.trapped == ()
            before.store.rename(host.store)
            before.unshare()
            remove(before.folder)
        host.takes_later()
        host.share()
        self.host = host

    def run_again(self, *words: Any) -> None:
        """A pod that was there before the boot: its driver may well end."""
        try:
            self.run(*words)
        except Ended:
            self._end_pod()
            self.not_before = time.time() + RESTART

    def run(self, name: str, spec: Doc, toolkit: Optional[Path], contents: Contents) -> None:
        """The containers of a pod, until it is ready; `Ended` where its driver ends before."""
        assert self.host is not None
        self.running = name
        place = self.folder / name
        volumes = lay_out(spec, place, contents)
        driver, *beside = spec["containers"]
        self.pod = pod = Pod(
            self.podman,
            self.host,
            driver["image"],
            toolkit,
            place / "shared",
            {**environment(driver, self.name), "DRIVER_CONFIG_DIGEST": ""},
            mounts(driver, {name: path for name, path in volumes.items() if "shared" not in name}),
            network="host",
        )
        pod.__enter__()
        container = pod.driver(*driver["command"], *driver["args"])
        tools = [without_rights(pod, each) for each in beside]
        checked = _says(container, CHECKED)
        self.host.plan(self.host.store / "sets" / pod.status["key"])
        ready = _says(container, ANNOUNCED)
        for probe in PROBES if self.user_space else ():
            container.exec("nvdriver-build", "probe", probe)
        if self.back:
            compiled = any(COMPILES in each.text for each in tools)
            taken = checked - self.back, ready - self.back
            self.ways.append(Way(self.name, self.host.release, *taken, pod.status["origin"], compiled))
        self.ready = True

    def stop(self) -> None:
        """As a kubelet ends a pod."""
        if self.pod is not None:
            self.pod.containers[0].stop()
        self._end_pod()

    def _end_pod(self) -> None:
        if self.pod is not None:
            self.pod.end()
            remove(self.pod.shared.parent)
        self.pod, self.running, self.ready = None, None, False

    def close(self) -> None:
        """Nothing is left of it, whatever went wrong."""
        for container in self.pod.containers if self.pod else ():
            container.remove()  # nobody waits for it any longer
        self._worker.shutdown(cancel_futures=True)
        self._end_pod()
        if self.host is not None:
            self.host.unshare()
            remove(self.host.folder)


class Ended(AssertionError):
    """A container has ended that should go on."""


def _says(container: Container, words: str) -> float:
    """When it said so."""
    until = time.monotonic() + SLOW
    while True:
        try:
            return container.says(words, 1).at
        except AssertionError as error:
            if time.monotonic() > until or not container.runs:
                raise Ended(container.text) from error


@define
class ContainerWorld(World):
    """A world whose nodes, pods and Jobs are real as far as they can be."""

    podman: Podman = field(kw_only=True)
    folder: Path = field(kw_only=True)
    filled: Path = field(kw_only=True)
    user_space: bool = field(kw_only=True, default=True)
    nodes: Dict[str, RealNode] = field(factory=dict)
    specs: Dict[str, Doc] = field(factory=dict)
    """Of pods, by name, as the template was when each was made."""
    job_seconds: List[float] = field(factory=list)
    _before: Dict[str, float] = field(init=False, factory=dict)
    """When its node had come back, of each pod as it was made."""
    _workers: ThreadPoolExecutor = field(init=False, factory=lambda: ThreadPoolExecutor(2))
    _doing: Dict[str, Future[None]] = field(init=False, factory=dict)

    def join(self, name: str, release: KitRelease) -> None:
        """A new node."""
        self.nodes[name] = RealNode(name, self.podman, self.folder / name, self.filled, self.user_space)
        self.add(Machine(name, "x86_64", release, "late"))
        self.nodes[name].do(self.nodes[name].boot, release)

    def close(self) -> None:
        """Nothing is left."""
        self._workers.shutdown(cancel_futures=True)
        with ThreadPoolExecutor(2) as both:
            list(both.map(RealNode.close, self.nodes.values()))

    def _fall(self, machine: Machine) -> None:
        World._fall(self, machine)
        node = self.nodes[machine.name]
        node.do(node.boot, machine.target or machine.release)

    def _live(self, machine: Machine) -> None:
        node, told = self.nodes[machine.name], machine.told
        if machine.down and node.busy:
            return
        World._live(self, machine)
        if machine.told is not told:
            node.back = time.time()

    def _create(self, daemonset: Doc, node: str) -> None:
        World._create(self, daemonset, node)
        name = f"{daemonset['metadata']['name']}-{self.serial}"
        self.specs[name] = daemonset["spec"]["template"]["spec"]
        self._before[name] = self.nodes[node].back

    def _kubelet(self, pod: PodState) -> None:
        machine, node = self.machines[pod.node], self.nodes[pod.node]
        pod.phase, pod.kernel = "starting", None
        if machine.down or node.busy:
            pass
        elif pod.ending is not None:
            if node.running == pod.name:
                node.do(node.stop)
            else:
                self._gone(pod)
                return
        elif node.running is None:
            self._start(pod, node)
        elif node.running == pod.name and node.ready:
            pod.phase, pod.kernel = "ready", machine.kernel
        self._tell_pod(pod, ready=pod.up, started=pod.up)

    def _start(self, pod: PodState, node: RealNode) -> None:
        words = pod.name, self.specs[pod.name], self._toolkit(pod.toolkit), self.contents()
        if self._before[pod.name] == node.back:
            node.do(node.run, *words)
        elif time.time() > max(node.back + RESTART, node.not_before):
            node.do(node.run_again, *words)

    def _toolkit(self, image: Optional[str]) -> Optional[Path]:
        releases = (each for each in self.releases if isinstance(each, KitRelease))
        return next((each.toolkit for each in releases if each.image == image), None)

    def contents(self) -> Contents:
        """Of all Secrets and ConfigMaps of the driver's namespace."""
        found: Dict[Any, Dict[str, bytes]] = {}
        for each in self.store.list("v1/secrets", SPACE):
            data = {name: base64.b64decode(text) for name, text in each["data"].items()}
            found["secret", each["metadata"]["name"]] = data
        for each in self.store.list("v1/configmaps", SPACE):
            data = {name: text.encode() for name, text in (each.get("data") or {}).items()}
            found["configMap", each["metadata"]["name"]] = data
        return found

    def _run_jobs(self) -> None:
        for each in self.store.list(JOBS, SPACE):
            uid, name = each["metadata"]["uid"], each["metadata"]["name"]
            if uid not in self._doing:
                spec = each["spec"]["template"]["spec"]
                self._doing[uid] = self._workers.submit(self._job, spec, self.folder / name, self.contents())
            elif self._doing[uid].done() and not each.get("status"):
                self._doing[uid].result()
                condition = {"type": "Complete", "status": "True"}
                self.store.put(JOBS, {**each, "status": {"conditions": [condition]}})

    def _job(self, spec: Doc, place: Path, contents: Contents) -> None:
        """Its containers in turn; only the last one has a network, and a key."""
        began = time.monotonic()
        volumes = lay_out(spec, place, contents)
        last = spec["containers"][0]["name"]
        for container in (*spec["initContainers"], *spec["containers"]):
            mounted = {each["name"] for each in container["volumeMounts"]}
            assert (container["name"] == last) == ("signing" in mounted)
            words = job_words(container, volumes, self._toolkit(container["image"]))
            network = "host" if container["name"] == last else "none"
            self.podman("run", "--rm", "--network", network, *words)
        self.job_seconds.append(time.monotonic() - began)
