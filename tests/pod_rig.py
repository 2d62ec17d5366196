"""The operator's pod: the driver's container and the Driver Toolkit's, as two containers of podman.

`podman kube play` honours neither hostPID nor the probes nor preStop, and restarts nothing by itself: hence
`podman run` twice, with the commands, arguments, mounts and environment of gpu-operator's
assets/state-driver/0500_daemonset.yaml and controllers/object_controls.go. A container that is started again
is a new one, as a kubelet does it; what the two share stays as long as the pod.
"""

from __future__ import annotations

import datetime
import itertools
import json
import os
import re
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from attrs import define, field, frozen
from pod_node import SHARED, PodNode, remove
from pod_scripts import PRE_STOP
from podman_rig import Podman

DRIVER, TOOLKIT = "nvidia-driver-ctr", "openshift-driver-toolkit-ctr"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
WAITS = (
    f"until [ -f {SHARED}/dir_prepared ]; do echo  Waiting for nvidia-driver-ctr container to prepare the "
    f"shared directory ...; sleep 10; done; exec {SHARED}/ocp_dtk_entrypoint dtk-build-driver"
)
"""What the operator has bash do in the DTK container."""
_ENVIRONMENT = {"NVIDIA_VISIBLE_DEVICES": "void", "DRIVER_CONFIG_DIGEST": "2768893512"}
SLOW = 300
"""Seconds for what takes some: compilers, beside other tests on a machine with two processors."""
_numbers = itertools.count()
_LINE = re.compile(r"^(\S+) (?:stdout|stderr) [FP] (.*)$")


@frozen
class Said:
    """A line of a container's log, and when the container wrote it (seconds since the epoch)."""

    at: float
    text: str


@define
class Container:
    """One container of the pod; `started` is when podman was asked for it."""

    podman: Podman
    name: str
    log: Path
    started: float = field(factory=time.time)

    def said(self) -> List[Said]:
        """The log so far."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        found = (_LINE.match(line) for line in text[: text.rfind("\n") + 1].splitlines())  # whole lines
        return [Said(_seconds(match[1]), match[2]) for match in found if match]

    @property
    def text(self) -> str:
        """The log so far, as a person reads it."""
        return "\n".join(line.text for line in self.said())

    def says(self, words: str, timeout: float = SLOW, since: float = 0.0) -> Said:
        """The first line with these words, waited for; AssertionError with the log where it never comes."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            for line in self.said():
                if words in line.text and line.at >= since:
                    return line
            time.sleep(0.02)
        raise AssertionError(f"{self.name} never said {words!r}:\n{self.text}")

    def waits(self, timeout: float = SLOW) -> int:
        """Its exit code, once it has ended."""
        return int(self.podman("wait", self.name, timeout=timeout).stdout)

    @property
    def runs(self) -> bool:
        """Whether its first process lives."""
        shown = self.podman("inspect", "--format", "{{.State.Running}}", self.name, check=False)
        return shown.stdout.strip() == "true"

    @property
    def began(self) -> float:
        """When its first process began, which is some time after podman was asked for it."""
        return self._moment("StartedAt")

    def kill(self) -> float:
        """SIGKILL; when it died of it: podman takes a while to send it."""
        self.podman("kill", "-s", "KILL", self.name)
        self.podman("wait", self.name)
        return self._moment("FinishedAt")

    def _moment(self, field: str) -> float:
        return int(self.podman("inspect", "-f", f"{{{{.State.{field}.UnixNano}}}}", self.name).stdout) / 1e9

    def stop(self) -> float:
        """As a kubelet does it: preStop, SIGTERM, SIGKILL after 30 s. Seconds that the second one took."""
        self.exec(*PRE_STOP)
        begun = time.monotonic()
        self.podman("stop", "-t", "30", self.name)
        return time.monotonic() - begun

    def exec(self, *words: str, check: bool = True) -> str:
        """Run a command in it; what it says on either output."""
        done = self.podman("exec", self.name, *words, check=check)
        return done.stdout + done.stderr

    def remove(self) -> None:
        self.podman("rm", "-f", "-t", "0", self.name)


@define
class Pod:
    """Both containers, a fresh emptyDir, and the environment that both get on top of the operator's.

    `image` is the driver's, `toolkit_root` the root file system of the Driver Toolkit, or None where its slot
    has our image (RHCOS_IMAGE_MISSING).
    """

    podman: Podman
    node: PodNode
    image: str
    toolkit_root: Optional[Path]
    shared: Path
    environment: Mapping[str, str] = field(factory=dict)
    more: Sequence[object] = ()
    """More words for `podman run` of the driver."""
    limits: Sequence[object] = ()
    """Words for `podman run` of both."""
    network: str = "none"
    """Of the driver's container."""
    containers: List[Container] = field(factory=list)

    def __enter__(self) -> Pod:
        self.shared.mkdir(parents=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Remove the containers and the emptyDir; pytest shows the logs where a test fails."""
        for container in self.containers:
            print(f"--- {container.name}\n{container.text[-20000:]}")
            container.remove()
        remove(self.shared)

    def driver(self, *words: str) -> Container:
        """Start the driver's container, by the operator's command unless others are given."""
        command = words or ("ocp_dtk_entrypoint", "nv-ctr-run-with-dtk")
        module_tree = f"/rig/modules/{self.node.release}"
        environment = {"NODE_NAME": "node-1", "NODE_IP": "192.0.2.1", "NVDRIVER_MODULE_TREE": module_tree}
        environment.update({"NVDRIVER_LOG_FORMAT": "json", **self.environment})
        mounts = (*self.node.driver_mounts(self.shared), *self.more)
        wrapped = ("--entrypoint", "sh", self.image, "/rig/node.sh", *command)
        return self._start(DRIVER, environment, mounts, wrapped, self.network)

    def toolkit(self) -> Container:
        """Start the Driver Toolkit's container by the operator's command."""
        environment = {"RHCOS_VERSION": "416.94.202408260940-0", "NVDRIVER_LOG_FORMAT": "json"}
        if self.toolkit_root is None:
            rootfs: Tuple[object, ...] = ("--entrypoint", "bash", self.image)
        else:
            rootfs = ("--rootfs", f"{self.toolkit_root}:O", "bash")
        mounts = self.node.toolkit_mounts(self.shared)
        return self._start(TOOLKIT, {**environment, **self.environment}, mounts, (*rootfs, "-xc", WAITS))

    def peermem(self) -> Container:
        """Start the third container that our image has in the pod where RDMA is on."""
        mounts = self.node.peermem_mounts()
        wrapped = ("--entrypoint", "sh", self.image, "/rig/node.sh", "nvidia-driver", "reload_nvidia_peermem")
        return self._start("nvidia-peermem-ctr", self.environment, mounts, wrapped)

    def prepared_toolkit(self) -> Container:
        """Start it once the driver's container is ready for it, which saves the operator's 10 s look."""
        end = time.monotonic() + SLOW
        while not (self.shared / "dir_prepared").exists() and time.monotonic() < end:
            time.sleep(0.02)
        return self.toolkit()

    def _start(
        self,
        name: str,
        environment: Mapping[str, str],
        mounts: Sequence[object],
        what: Sequence[object],
        network: str = "none",
    ) -> Container:
        name = f"{name}-{os.getpid()}-{next(_numbers)}"
        log = self.node.folder / f"{name}.log"
        container = Container(self.podman, name, log)
        words: List[object] = ["--name", name, "--log-opt", f"path={log}", "--privileged", "--pid=host"]
        values = {**_ENVIRONMENT, "PATH": f"/rig/bin:{PATH}", **environment}
        words += [f"--env={key}={value}" for key, value in values.items()]
        self.podman("run", "-d", "--pull=never", "--network", network, *words, *self.limits, *mounts, *what)
        self.containers.append(container)
        return container

    def document(self, name: str) -> Dict[str, Any]:
        """A document in the shared folder; empty where it is not there."""
        return _read(self.shared / name)

    def waits_for(self, name: str, fits: Callable[[Dict[str, Any]], bool]) -> None:
        """Wait for a document in the shared folder."""
        end = time.monotonic() + SLOW
        while not fits(self.document(name)):
            assert time.monotonic() < end, f"{name} is {self.document(name)}"
            time.sleep(0.02)

    @property
    def status(self) -> Dict[str, Any]:
        """The node's status.json."""
        return _read(self.node.run / "nvdriver-build/status.json")


MakePod = Callable[..., Pod]


def within(bound: float, what: str, seconds: float) -> None:
    """It took less than `bound` seconds; how long it took is printed."""
    print(f"{what} after {seconds:.2f} s")
    assert 0 <= seconds < bound


def _read(path: Path) -> Dict[str, Any]:
    try:
        found: Dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    return found


def _seconds(stamp: str) -> float:
    """The time of podman's k8s-file logs, with nanoseconds."""
    match = re.fullmatch(r"(\S{19})(\.\d+)?(\S+)", stamp)
    assert match is not None, stamp
    zone = match[3].replace("Z", "+00:00")
    return datetime.datetime.fromisoformat(match[1] + zone).timestamp() + float(match[2] or 0)
