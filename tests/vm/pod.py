"""The GPU Operator's pod on the node that a VM is: two containers without a container engine.

pod = Pod.on(vm, kernel, driver_root, toolkit_root)
pod.prepare_node()                    # a module folder as RHEL has it, the host's folders of the volumes
pod.start(DRIVER_VERSION="999.10.01")  # both containers, by the operator's commands
pod.driver.await_(READY)
pod.driver.exec("lsmod")              # as the kubelet does: in its namespaces, environment, root

A container is a mount namespace with a root file system of its own, set up as runc does for this pod: an
overlay as its root, /proc, /sys and /dev of its own, the volumes, pivot_root, and, for the driver's with its
volume of mountPropagation Bidirectional, all of it shared. The host's processes are seen (hostPID).
"""

from __future__ import annotations

import gzip
import json
import shlex
from pathlib import Path
from typing import Any, Dict, List, Mapping

from attrs import define, field

from .kit import KitKernel
from .machine import Done, Machine

SLOW = 300
"""Seconds: everything here is emulated, beside other tests."""
RUN = "/run/nvidia"
VALIDATIONS = f"{RUN}/validations"
READY = f"grep -qx Ready {VALIDATIONS}/.driver-daemons-status 2>/dev/null"
UNTIL_NOT_READY = (
    f'while read word <{VALIDATIONS}/.driver-daemons-status && [ "$word" = Ready ]; do :; done 2>/dev/null'
)
"""Starts no program: where all is emulated, one takes as long as a stage of the driver's start."""
FIRMWARE_PATH = "/sys/module/firmware_class/parameters/path"
SHARED = "/mnt/shared-nvidia-driver-toolkit"
EMPTY_DIR = "/run/pod/shared"
"""Where the kubelet of this node keeps the emptyDir that both containers mount."""
DRIVER = "ocp_dtk_entrypoint nv-ctr-run-with-dtk"
WAIT_FOR_DRIVER = (
    f"until [ -f {SHARED}/dir_prepared ]; do echo Waiting for nvidia-driver-ctr ...; sleep 10; done; "
    f"exec {SHARED}/ocp_dtk_entrypoint dtk-build-driver"
)
PRE_STOP = f"rm -f {VALIDATIONS}/.driver-ctr-ready {VALIDATIONS}/.driver-daemons-status"
HOST_VOLUMES = {
    "/run/nvidia-fabricmanager": "/run/nvidia-fabricmanager",
    "/run/nvidia-topologyd": "/run/nvidia-topologyd",
    "/var/log": "/var/log",
    "/run/mellanox/drivers": "/run/mellanox/drivers",
    "/sys/devices/system": "/sys/devices/system",
    FIRMWARE_PATH: FIRMWARE_PATH,
    "/etc/os-release": "/host-etc/os-release",
    f"{RUN}/driver/lib/firmware": "/lib/firmware",
    EMPTY_DIR: SHARED,
}
"""gpu-operator, assets/state-driver/0500_daemonset.yaml; /run/nvidia, Bidirectional, is apart."""
FOLDERS = f"{RUN}/driver/lib/firmware /run/mellanox/drivers /run/nvidia-fabricmanager /run/nvidia-topologyd"
"""hostPath, DirectoryOrCreate."""
TOOLKIT_VOLUMES = {
    "/var/log": "/var/log",
    "/etc/os-release": "/host-etc/os-release",
    EMPTY_DIR: SHARED,
}
_ENVIRONMENT = {"NVIDIA_VISIBLE_DEVICES": "void", "RHCOS_VERSION": "416.94.202408260940-0"}
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

PROBE = f"""\
#!/bin/sh
# Judges as the GPU Operator's startup probe does (gpu-operator, assets/state-driver/0400_configmap.yaml).
set -eu
told={VALIDATIONS}/.driver-daemons-status
mkdir -p {VALIDATIONS}
[ -f /sys/module/nvidia/refcnt ] || {{ echo "nvidia is not loaded"; exit 1; }}
[ ! -f $told ] || [ "$(cat $told)" = Ready ] || {{ echo "told is $(cat $told)"; exit 1; }}
nvidia-smi || {{ echo "nvidia-smi failed"; exit 1; }}
for name in GDRCOPY GDS GPU_DIRECT_RDMA; do
    eval "value=\\${{${{name}}_ENABLED:-false}}"
    echo "${{name}}_ENABLED: $value"
done >{VALIDATIONS}/.driver-ctr-ready.tmp
mv {VALIDATIONS}/.driver-ctr-ready.tmp {VALIDATIONS}/.driver-ctr-ready
"""

_CONTAINER = """\
#!/bin/sh
# container.sh NAME LOWER SHARED_ROOT [HOST:PLACE]... -- COMMAND...   in a new mount namespace
set -eu
name=$1 lower=$2 bidirectional=$3
shift 3
for point in $(cut -d ' ' -f 5 /proc/self/mountinfo); do
    case $point in /run/nvidia | /run/nvidia/*) ;; *) mount --make-private "$point" ;; esac
done
base=/run/pod/$name
rm -rf "$base"
mkdir -p "$base/upper" "$base/work" "$base/root"
mount -t overlay -o "lowerdir=$lower,upperdir=$base/upper,workdir=$base/work" overlay "$base/root"
cd "$base/root"
mkdir -p proc sys dev run .old
mount -t proc proc proc
mount -t sysfs sys sys
mount -t tmpfs -o mode=755 dev dev
mkdir dev/pts dev/shm
for node in null zero full random urandom tty kmsg; do cp -a /dev/$node dev/; done
mount -t tmpfs shm dev/shm
while [ "$1" != -- ]; do
    host=${1%%:*} place=${1#*:}
    mkdir -p ".${place%/*}"
    if [ -d "$host" ]; then mkdir -p ".$place"; elif [ ! -e ".$place" ]; then : >".$place"; fi
    mount --bind "$host" ".$place"
    shift
done
shift
mount --make-rprivate .
[ "$bidirectional" = no ] || { mkdir -p run/nvidia; mount --rbind /run/nvidia run/nvidia; }
pivot_root . .old
exec chroot . /bin/sh -euc '
mount --make-rprivate /.old
umount --lazy /.old
rmdir /.old
if [ "$0" = yes ]; then mount --make-rshared /; fi
exec "$@"' "$bidirectional" "$@"
"""


@define
class Container:
    """One container of the pod; started, looked into and ended."""

    vm: Machine
    name: str
    root: Path
    volumes: Mapping[str, str]
    bidirectional: bool
    environment: Dict[str, str] = field(factory=dict)

    def start(self, command: str, **environment: str) -> None:
        """Start it, in a fresh root file system; `command` is a line for bash, as in the operator's pod."""
        self.environment = {"PATH": _PATH, "HOME": "/root", **_ENVIRONMENT, **environment}
        volumes = " ".join(f"{host}:{place}" for host, place in self.volumes.items())
        shared = "yes" if self.bidirectional else "no"
        line = (
            f"unshare --mount --propagation unchanged sh {self.vm.share}/container.sh {self.name} "
            f"{self.root} {shared} {volumes} -- {self._words(command)} >{self.name}.log 2>&1 </dev/null"
        )
        (self.vm.share / f"{self.name}.sh").write_text(
            f"{line} & echo $! >{self.name}.pid; wait $!; echo $? >{self.name}.code\n"
        )
        self.vm.run(f"rm -f {self.name}.code {self.name}.pid; sh {self.name}.sh >/dev/null 2>&1 &")

    def _words(self, command: str) -> str:
        env = " ".join(shlex.quote(f"{name}={value}") for name, value in self.environment.items())
        return f"env -i {env} bash -c {shlex.quote(command)}"

    def exec(self, script: str, *, check: bool = True) -> Done:
        """Run a script inside, as the kubelet runs probes and hooks."""
        words = f"nsenter --mount --root --wd --target $(cat {self.name}.pid) {self._words(script)}"
        return self.vm.run(words, check=check, timeout=SLOW)

    def await_(self, condition: str, *, timeout: float = SLOW) -> float:
        """Wait for a condition on the node while the container lives; the seconds that it took."""
        done = self.vm.run(
            f"until {condition}; do [ ! -e {self.name}.code ] || exit 77; sleep 0.2; done",
            check=False,
            timeout=timeout,
        )
        assert done.code == 0, f"{condition}: {self.log}"
        return done.seconds

    def end(self, signal: str = "TERM") -> int:
        """Send a signal and wait for its exit code."""
        self.vm.run(f"kill -{signal} $(cat {self.name}.pid)")
        return self.ended()

    def ended(self) -> int:
        """Its exit code, once there is one."""
        self.vm.run(f"until [ -s {self.name}.code ]; do sleep 0.1; done", timeout=SLOW)
        return int((self.vm.share / f"{self.name}.code").read_text())

    @property
    def log(self) -> str:
        """All that it has said."""
        return (self.vm.share / f"{self.name}.log").read_text(errors="replace")

    def events(self) -> List[Dict[str, Any]]:
        """Its log, a document a line, where NVDRIVER_LOG_FORMAT=json."""
        lines = self.log[: self.log.rfind("\n") + 1].splitlines()  # the last one may be half there
        return [json.loads(line) for line in lines if line.startswith("{")]


@define
class Pod:
    """The pod on the node; `driver` and `toolkit` are its containers."""

    vm: Machine
    kernel: KitKernel
    driver: Container
    toolkit: Container

    @classmethod
    def on(cls, vm: Machine, kernel: KitKernel, driver_root: Path, toolkit_root: Path) -> Pod:
        """A pod whose containers have these root file systems."""
        driver = Container(vm, "driver", driver_root, HOST_VOLUMES, bidirectional=True)
        return cls(
            vm, kernel, driver, Container(vm, "toolkit", toolkit_root, TOOLKIT_VOLUMES, bidirectional=False)
        )

    def prepare_node(self) -> None:
        """Let the node look like one with RHEL's kernel: its folder has symvers and config, no headers."""
        share, tree = self.vm.share, f"/lib/modules/{self.kernel.release}"
        (share / "container.sh").write_text(_CONTAINER)
        symvers = (self.kernel.headers / "Module.symvers").read_bytes()
        (share / "symvers.gz").write_bytes(gzip.compress(symvers, 1))
        self.vm.run(f"rm {tree}/build; mv symvers.gz {tree}/; cp {self.kernel.headers}/.config {tree}/config")
        self.vm.run(f"mkdir -p {RUN}; mount --bind {RUN} {RUN}; mount --make-shared {RUN}")
        self.kubelet()

    def kubelet(self) -> None:
        """Make the folders of the volumes that are not there, and the emptyDir."""
        self.vm.run(f"mkdir -p {VALIDATIONS} {EMPTY_DIR} /var/log {FOLDERS}")

    def start(self, **environment: str) -> None:
        """Start both containers as the operator has them."""
        self.kubelet()
        self.driver.start(DRIVER, NVDRIVER_LOG_FORMAT="json", **environment)
        self.toolkit.start(WAIT_FOR_DRIVER)

    def probe(self) -> Done:
        """The startup probe."""
        return self.driver.exec(PROBE, check=False)

    def status(self) -> Dict[str, Any]:
        """What `run` says of itself."""
        document: Dict[str, Any] = json.loads(self.vm.run(f"cat {RUN}/nvdriver-build/status.json").stdout)
        return document

    def loaded(self) -> List[str]:
        """The driver's modules in the kernel."""
        return sorted(self.vm.run("cut -d ' ' -f 1 /proc/modules | grep ^nvidia || true").stdout.split())

    def traces(self) -> Dict[str, str]:
        """What a driver may leave on a node: nothing of it may differ before and after one."""
        looks = {
            "modules": "cut -d ' ' -f 1 /proc/modules | grep ^nvidia",
            "mounts": "sed 's/^[0-9]* [0-9]* //' /proc/self/mountinfo",
            "firmware path": f"cat {FIRMWARE_PATH}",
            "device files": "ls -A /dev | grep ^nvidia",
            "files": f"cd {RUN} && find . ! -path './nvdriver-build*' ! -path './driver*' | sort",
            "files in driver": f"find {RUN}/driver ! -type d",
            "daemons": "pgrep -l nvidia",
        }
        return {name: self.vm.run(f"{look} || true").stdout for name, look in looks.items()}
