"""A cluster in discrete time: nodes that reboot into other releases, and what is late, stale or wrong in it.

Its parts are those that the controller lives among: kubelets, the DaemonSet and Job controllers, the Machine
Config Operator, NFD. All of them act on an `api_store.Store`, as the real ones do on the API.
"""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, Mapping, Optional, Set, Tuple

from api_store import Doc, Refusal, Store
from attrs import define, field, frozen
from upgrade_works import Works

from nvdriver_build.fleet.names import DRIVER_CONTAINER, GPU_LABEL, LABEL, NFD_VERSION

SPACE = "nvdriver-build"
NODES, DAEMONSETS, PODS, JOBS = "v1/nodes", "apps/v1/daemonsets", "v1/pods", "batch/v1/jobs"
CONFIG_MAPS = "v1/configmaps"
STREAMS, STREAM_TAGS = "image.openshift.io/v1/imagestreams", "image.openshift.io/v1/imagestreamtags"
POOLS = "machineconfiguration.openshift.io/v1/machineconfigpools"
MACHINES = {"x86_64": ("amd64", "x86_64"), "arm64": ("arm64", "aarch64")}
CHANGES = "NVDRIVER_JOBS"
"""The setting by which drivers differ here: no set is another one for it."""
START, BUILD, LOAD, RETRY, END, PREBUILD = 1, 4, 1, 3, 1, 4
"""Ticks: a pod starts, builds, loads, tries again, ends; a Job runs."""


@frozen
class Release:
    """An OpenShift release: its RHCOS version, kernel and toolkit."""

    number: int
    shape: int = 0

    @property
    def version(self) -> str:
        shapes = (f"416.94.2024{self.number:02}260940-0", f"9.6.2026{self.number:02}16-0",
                  f"416.9.2024{self.number:02}211032-0")  # fmt: skip
        return shapes[self.shape % 3]

    @property
    def image(self) -> str:
        return f"quay.io/ocp/release@sha256:{self.number:064x}"

    def kernel(self, arch: str) -> str:
        base, el = ("427", "el9_4") if self.shape % 3 != 1 else ("570", "el9_6")
        return f"5.14.0-{base}.{self.number}.1.{el}.{MACHINES[arch][1]}"

    def os_image(self) -> str:
        suffix = ("", " (Plow)", " (Ootpa)")[self.shape % 3]
        return f"Red Hat Enterprise Linux CoreOS {self.version}{suffix}"


@define
class Machine:
    """A node: what runs on it, and what the API has been told of it."""

    name: str
    arch: str
    release: Release
    nfd: str = "fresh"
    """Its labels follow at once (`fresh`), after some ticks (`late`), never (`stale`); `none`: no NFD."""
    gpu: bool = True
    told: Optional[Release] = None
    labelled: Optional[Release] = None
    down: int = 0
    tell_in: int = 0
    label_in: int = 0
    target: Optional[Release] = None
    boots: int = 0
    cordoned: bool = False
    store: Set[str] = field(factory=set)
    """Kernels that the node's own store has a set for."""
    fell: Optional[int] = None
    following: Optional[Release] = None
    """What it was to run after its last fall, and whether a set was there for that by then."""
    prebuilt: bool = False
    disturbed: bool = False

    @property
    def kernel(self) -> str:
        return self.release.kernel(self.arch)


@define
class PodState:
    """A driver's pod, as its kubelet knows it."""

    name: str
    daemonset: str
    node: str
    version: str
    toolkit: Optional[str]
    timer: int = START
    phase: str = "starting"
    kernel: Optional[str] = None
    """Of the modules that are loaded."""
    ending: Optional[int] = None
    value: str = ""
    """Of the setting that tells one driver from another."""
    config_maps: Tuple[str, ...] = ()
    late: int = 0
    """Ticks for which its probes time out, while its driver runs and is used."""
    anew: bool = False
    """Whether its kubelet has started again: while it is late it has not `started`."""

    @property
    def up(self) -> bool:
        """Whether its driver is loaded."""
        return self.phase == "ready"


@define
class World:
    """All of it. `tick` lets one unit of time pass."""

    releases: Tuple[Release, ...]
    machines: Dict[str, Machine] = field(factory=dict)
    store: Store = field(factory=Store)
    pods: Dict[str, PodState] = field(factory=dict)
    registry: Set[Tuple[str, str]] = field(factory=set)
    stream: Dict[str, Optional[str]] = field(factory=dict)
    labelled_images: Set[str] = field(factory=set)
    unpullable: Set[str] = field(factory=set)
    jobs: Dict[str, int] = field(factory=dict)
    failing_jobs: bool = False
    down_for: int = 3
    tell_lag: int = 0
    label_lag: int = 3
    at_once: int = 1
    paused: bool = False
    now: int = 0
    lag_status: bool = False
    serial: int = 0
    loaded: List[Tuple[str, str, str, str]] = field(factory=list)
    """(node, the pod's version, kernel of the modules, kernel of the node), of every load."""
    built: List[Tuple[str, Optional[str], str]] = field(factory=list)
    """(node, kernel of the toolkit, kernel of the node), of every header check that passed."""
    gaps: List[Tuple[str, int, bool, bool]] = field(factory=list)
    """(node, ticks without a driver, prebuilt before, disturbed), of every reboot."""
    works: Works = field(init=False)
    bad: Set[str] = field(factory=set)
    """Drivers that do not become ready."""
    persons: Set[str] = field(factory=set)
    """Nodes that a person has cordoned."""

    def __attrs_post_init__(self) -> None:
        self.works = Works(self)

    # what a script does

    def add(self, machine: Machine) -> None:
        self.machines[machine.name] = machine
        machine.told = machine.labelled = machine.release
        self._tell(machine)
        self.works.add(machine.name)

    def remove(self, name: str) -> None:
        if name in self.machines:
            del self.machines[name]
            self.persons.discard(name)
            self.store.delete(NODES, "", name)

    def offer(
        self, release: Release, image: Optional[str] = "", labels: bool = True, latest: bool = True
    ) -> None:
        """A release's tag comes into the ImageStream; `image` is another's for a wrong one, None for none."""
        self.stream[release.version] = release.image if image == "" else image
        if latest:
            self.stream["latest"] = release.image
        if labels:
            self.labelled_images.add(release.image)
        self._write_stream()

    def retract(self, version: str) -> None:
        self.stream.pop(version, None)
        self._write_stream()

    def head_for(self, release: Release) -> None:
        """The Machine Config Operator is to bring all nodes to a release."""
        for machine in self.machines.values():
            machine.target = release if machine.release != release else None
            self._tell(machine)

    def reboot(self, name: str) -> None:
        """A node reboots by itself, into what it ran."""
        if name in self.machines and not self.machines[name].down:
            self._fall(self.machines[name])

    # time

    def tick(self) -> None:
        self.now += 1
        self._machine_config()
        for machine in list(self.machines.values()):
            self._live(machine)
        self._daemonsets()
        for pod in list(self.pods.values()):
            self._kubelet(pod)
        self.works.tick()
        self._statuses()
        self._run_jobs()

    def cordon(self, name: str, on: bool) -> None:
        """By whoever: the last word counts."""
        self.store.merge(NODES, "", name, {"spec": {"unschedulable": True if on else None}})

    def _machine_config(self) -> None:
        busy = sum(1 for each in self.machines.values() if each.down or each.cordoned)
        for machine in self.machines.values():
            if machine.target is None or self.paused or machine.down or busy >= self.at_once:
                continue
            busy += 1
            machine.cordoned = True
            self.cordon(machine.name, True)
            self._fall(machine)

    def _fall(self, machine: Machine) -> None:
        machine.down = self.down_for
        following = machine.target or machine.release
        machine.following = following
        machine.prebuilt = (following.kernel(machine.arch), machine.arch) in self.registry
        machine.fell, machine.disturbed = self.now, False
        for pod in self.pods.values():
            if pod.node == machine.name:
                pod.kernel, pod.phase, pod.timer = None, "starting", START
        self._tell(machine)

    def _live(self, machine: Machine) -> None:
        if machine.down:
            machine.down -= 1
            if machine.down == 0:
                machine.release, machine.target = machine.target or machine.release, None
                machine.prebuilt = machine.prebuilt and machine.release == machine.following
                machine.boots += 1
                if machine.cordoned:  # the Machine Config Operator takes it away, whoever's it was
                    self.cordon(machine.name, False)
                    self.persons.discard(machine.name)
                machine.tell_in, machine.cordoned = self.tell_lag, False
                machine.label_in = {"fresh": 0, "late": self.label_lag}.get(machine.nfd, 1 << 30)
        if machine.down:
            return
        if machine.told != machine.release:
            machine.tell_in -= 1
            if machine.tell_in < 0:
                machine.told = machine.release
        if machine.labelled != machine.release:
            machine.label_in -= 1
            if machine.label_in < 0:
                machine.labelled = machine.release
        self._tell(machine)

    def _tell(self, machine: Machine) -> None:
        """The node object, with the labels of others as they are."""
        old = self.store.objects.get(NODES, {}).get(("", machine.name))
        known = old["metadata"] if old else {}
        labels = dict(known.get("labels") or {})
        for name in [name for name in labels if name.startswith("feature.node")]:
            del labels[name]
        if machine.gpu and machine.nfd == "none":
            labels[GPU_LABEL] = "true"
        elif machine.gpu:
            labels["feature.node.kubernetes.io/pci-10de.present"] = "true"
            labels[NFD_VERSION] = f"'{machine.labelled.version}'" if machine.labelled else ""
        labels["kubernetes.io/arch"] = MACHINES[machine.arch][0]
        told = machine.told or machine.release
        desired = (machine.target or machine.release).version
        notes = {
            "machineconfiguration.openshift.io/currentConfig": machine.release.version,
            "machineconfiguration.openshift.io/desiredConfig": desired,
        }
        notes = {**(known.get("annotations") or {}), **notes}
        new: Doc = {
            "metadata": {**known, "name": machine.name, "labels": labels, "annotations": notes},
            "spec": old["spec"] if old else {},
            "status": {
                "nodeInfo": {
                    "kernelVersion": told.kernel(machine.arch), "osImage": told.os_image(),
                    "architecture": MACHINES[machine.arch][0],
                    "bootID": f"{machine.name}-{machine.boots}",
                },
                "conditions": [{"type": "Ready", "status": "Unknown" if machine.down else "True"}],
            },
        }  # fmt: skip
        self.store.put(NODES, new)

    def _write_stream(self) -> None:
        tags = [
            {"name": name, **({"from": {"kind": "DockerImage", "name": image}} if image else {})}
            for name, image in self.stream.items()
        ]
        for name, image in self.stream.items():
            release = next((each for each in self.releases if each.image == image), None)
            if release is None or image not in self.labelled_images:
                continue
            labels = {"kernel-version": release.kernel("x86_64")}
            document = {"dockerImageMetadata": {"Config": {"Labels": labels}}}
            metadata = {"name": f"driver-toolkit:{name}", "namespace": "openshift"}
            self.store.put(STREAM_TAGS, {"metadata": metadata, "tag": {"name": name}, "image": document})
        metadata = {"name": "driver-toolkit", "namespace": "openshift"}
        imported = [
            {"tag": name, "items": [{"image": f"sha256:{image}"}]}
            for name, image in self.stream.items()
            if image in self.labelled_images
        ]
        new = {"metadata": metadata, "spec": {"tags": tags}, "status": {"tags": imported}}
        self.store.put(STREAMS, new)

    # the DaemonSet controller

    def daemonsets(self) -> List[Doc]:
        return self.store.list(DAEMONSETS, SPACE)

    def chosen(self, daemonset: Doc) -> Iterator[str]:
        """The nodes that a DaemonSet is for."""
        wanted = daemonset["spec"]["template"]["spec"]["nodeSelector"].items()
        for (_, name), node in self.store.objects.get(NODES, {}).items():
            if wanted <= node["metadata"]["labels"].items():
                yield name

    def _daemonsets(self) -> None:
        there = {each["metadata"]["name"]: each for each in self.daemonsets()}
        wanted = {(name, node) for name, each in there.items() for node in self.chosen(each)}
        kept = set()
        for pod in list(self.pods.values()):
            if pod.ending is not None:
                continue
            if pod.node not in self.machines:
                self._gone(pod)
            elif (pod.daemonset, pod.node) not in wanted:
                self._end(pod)
            else:
                kept.add((pod.daemonset, pod.node))
        for name, node in sorted(wanted - kept):
            if node in self.machines and not any(
                pod.node == node and pod.daemonset == name for pod in self.pods.values()
            ):
                self._create(there[name], node)

    def _create(self, daemonset: Doc, node: str) -> None:
        self.serial += 1
        template = daemonset["spec"]["template"]
        toolkits = [each["image"] for each in template["spec"]["containers"][1:2]]
        name = f"{daemonset['metadata']['name']}-{self.serial}"
        version = daemonset["metadata"]["annotations"][LABEL]
        env = {each["name"]: each.get("value") for each in template["spec"]["containers"][0].get("env", ())}
        state = PodState(
            name, daemonset["metadata"]["name"], node, version, toolkits[0] if toolkits else None
        )
        state.value = env.get(CHANGES) or ""
        volumes = template["spec"]["volumes"]
        state.config_maps = tuple(each["configMap"]["name"] for each in volumes if "configMap" in each)
        self.pods[name] = state
        metadata = {**template["metadata"], "name": name, "namespace": SPACE}
        self.store.create(
            PODS,
            SPACE,
            {
                "metadata": metadata,
                "spec": {"nodeName": node, "volumes": volumes},
                "status": _status(False, False),
            },
        )

    def end(self, name: str) -> None:
        """A pod is deleted by somebody: its kubelet ends it."""
        pod = self.pods.get(name)
        if pod is None:
            raise Refusal(404, "NotFound", f"no pod {name}")
        if pod.ending is None:
            self._end(pod)

    def _end(self, pod: PodState) -> None:
        pod.ending = END
        document = self.store.get(PODS, SPACE, pod.name)
        stamp = {"deletionTimestamp": str(self.now)}
        self.store.put(PODS, {**document, "metadata": {**document["metadata"], **stamp}})

    def _gone(self, pod: PodState) -> None:
        del self.pods[pod.name]
        if (SPACE, pod.name) in self.store.objects.get(PODS, {}):
            self.store.delete(PODS, SPACE, pod.name)

    def _statuses(self) -> None:
        if self.lag_status:
            return
        for each in self.daemonsets():
            name, nodes = each["metadata"]["name"], set(self.chosen(each))
            mine = [pod for pod in self.pods.values() if pod.daemonset == name]
            status = {
                "observedGeneration": each["metadata"]["generation"],
                "desiredNumberScheduled": len(nodes),
                "currentNumberScheduled": len({pod.node for pod in mine} & nodes),
                "numberMisscheduled": len({pod.node for pod in mine} - nodes),
                "numberReady": sum(1 for pod in mine if pod.up and not pod.late),
            }
            self.store.put(DAEMONSETS, {**each, "status": status})

    # kubelets

    def _kubelet(self, pod: PodState) -> None:
        machine = self.machines.get(pod.node)
        if machine is None:
            self._gone(pod)
            return
        if machine.down:
            self._tell_pod(pod, ready=False)  # of what it has started the API was told last
            return
        if (SPACE, pod.name) not in self.store.objects.get(PODS, {}):
            self._gone(pod)  # deleted with its record
            return
        if pod.ending is not None:
            pod.ending -= 1
            if pod.ending < 0:
                self._gone(pod)
            return
        others = (each for each in self.pods.values() if each.node == pod.node and each is not pod)
        if pod.phase == "starting" and any(
            each.ending is not None or each.phase != "starting" for each in others
        ):
            return  # anti-affinity: one driver on a node
        if pod.phase == "starting" and self.lacks(pod):
            return  # its volumes cannot be made
        if pod.phase != "ready" and pod.value not in self.bad:
            pod.timer -= 1
            if pod.timer <= 0:
                self._advance(pod, machine)
        pod.late = max(0, pod.late - 1)
        self._tell_pod(pod, ready=pod.up and not pod.late, started=pod.up and not (pod.late and pod.anew))

    def _advance(self, pod: PodState, machine: Machine) -> None:
        kernel = machine.kernel
        if pod.phase == "loading":
            pod.phase, pod.kernel = "ready", kernel
            self.loaded.append((machine.name, pod.version, kernel, kernel))
            machine.store.add(kernel)
            if machine.fell is not None:
                self.gaps.append((machine.name, self.now - machine.fell, machine.prebuilt, machine.disturbed))
                machine.fell = None
        elif pod.phase == "building":
            machine.store.add(kernel)
            pod.phase, pod.timer = "loading", LOAD
        elif kernel in machine.store or (kernel, machine.arch) in self.registry:
            pod.phase, pod.timer = "loading", LOAD
        elif self.kernel_in(pod.toolkit, machine.arch) == kernel:
            self.built.append((machine.name, self.kernel_in(pod.toolkit, machine.arch), kernel))
            pod.phase, pod.timer = "building", BUILD
        else:
            pod.phase, pod.timer = "starting", RETRY

    def kernel_in(self, image: Optional[str], arch: str) -> Optional[str]:
        """The kernel whose headers an image holds; None where it cannot be pulled."""
        if image is None or image in self.unpullable:
            return None
        return next((each.kernel(arch) for each in self.releases if each.image == image), None)

    def _tell_pod(self, pod: PodState, ready: bool, started: Optional[bool] = None) -> None:
        document = self.store.objects.get(PODS, {}).get((SPACE, pod.name))
        if document is None:
            return
        before = document["status"]
        was = before["containerStatuses"][0]["started"]
        whole = pod.toolkit is None or pod.toolkit not in self.unpullable
        new = _status(ready, was if started is None else started, whole)
        if before != new:
            self.store.put(PODS, {**document, "status": new})

    # prebuilds

    def _run_jobs(self) -> None:
        for each in self.store.list(JOBS, SPACE):
            name = each["metadata"]["name"]
            if each.get("status"):
                continue
            left = self.jobs.setdefault(each["metadata"]["uid"], PREBUILD) - 1
            self.jobs[each["metadata"]["uid"]] = left
            if left <= 0:
                self._finish(each, name)

    def _finish(self, job: Mapping[str, Any], name: str) -> None:
        spec = job["spec"]["template"]["spec"]
        arch = {"amd64": "x86_64", "arm64": "arm64"}[spec["nodeSelector"]["kubernetes.io/arch"]]
        build = next(each for each in spec["initContainers"] if each["name"] == "build")
        kernel = self.kernel_in(build["image"], arch)
        asked = dict(zip(build["command"], build["command"][1:])).get("--kernel-release")
        good = kernel is not None and asked in (None, kernel) and not self.failing_jobs
        if good and kernel is not None:
            self.registry.add((kernel, arch))
        condition = {"type": "Complete" if good else "Failed", "status": "True", "message": "of a test"}
        self.store.put(JOBS, {**job, "status": {"conditions": [condition]}})

    def lacks(self, pod: PodState) -> List[str]:
        """ConfigMaps that a pod needs and that are not there."""
        there = self.store.objects.get(CONFIG_MAPS, {})
        return [name for name in pod.config_maps if (SPACE, name) not in there]

    def driver_ready(self, name: str) -> bool:
        """Whether the node's driver is loaded, by a pod that is ready."""
        return any(
            pod.node == name
            and pod.phase == "ready"
            and pod.ending is None
            and pod.kernel == self.machines[name].kernel
            for pod in self.pods.values()
        )


def _status(ready: bool, started: bool, whole: bool = True) -> Doc:
    """Of a pod whose other containers are ready, too, or not."""
    containers = [{"name": DRIVER_CONTAINER, "started": started, "ready": ready}]
    told = [{"type": "Ready", "status": str(ready and whole)}]
    return {"conditions": told, "containerStatuses": containers}
