"""A real kernel of the kit in QEMU, emulated, with the host's file system as its own.

    with Machine(kit.kernel("a"), kit.busybox, folder) as vm:      # 2 to 3 s
        vm.run("insmod fakegpu.ko && modprobe drm")               # AssertionError unless it exits 0
        done = vm.run("rmmod drm", check=False, timeout=30)
        done.code, done.stdout, done.stderr, done.seconds
        (vm.share / "note").read_text()                           # the same path on both sides
        vm.dmesg()

- A boot is expensive, a run() costs 50 ms: let many checks share a boot.
- The guest is root and sees the host's files at their places, read through 9p under an overlay: it may
  write anywhere, and all of it is gone with the VM. /dev, /proc, /run, /sys are its own; /lib/modules/R
  is the kit's.
- `vm.share` is written by both sides, at one path. run() starts there. Nothing else comes back.
- A script runs in the host's `sh` with an empty stdin. What it leaves in the background lives on: redirect
  its output into the share and look at it with later run()s.
- 1 CPU, 2 GiB, 32 MiB at 0x70000000 kept from the kernel for fakegpu (two GPUs). No network.
- A run() that outlives its timeout, or a guest that dies, is a MachineError with the end of the console;
  the VM is over then. QEMU is killed at the end of `with`, and by the kernel should this process die
  (PR_SET_PDEATHSIG: enter and leave the `with` in one thread that lives as long).

The plain ELF image (PVH boot) spares 2 s of unpacking in the emulated guest; -enable-kvm is never used.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import subprocess
import time
from pathlib import Path
from typing import List, Optional

from attrs import frozen

from . import initramfs
from .firmware import Firmware
from .kit import KitKernel

BOOT_SECONDS = 300.0  # on a machine that is busy with other things
APPEND = (
    "console=ttyS0 loglevel=4 panic=-1 random.trust_cpu=on mitigations=off nokaslr no_timer_check "
    "tsc=reliable rcupdate.rcu_expedited=1 memmap=32M$0x70000000 norandmaps"
)
"""norandmaps: a program at the address of its last run is not translated anew, so processes start 2 to 4
times as fast."""

# Runs as PID 1 in the initramfs, then becomes the agent, which is the host's sh.
INIT = """#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
for module in /modules/*; do insmod $module; done
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose root /lower
mount -t tmpfs upper /upper
mkdir /upper/files /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work root /new
mount --move /dev /new/dev
mount --move /proc /new/proc
mount -t sysfs sys /new/sys
mount -t securityfs security /new/sys/kernel/security
mount -t cgroup2 cgroup /new/sys/fs/cgroup
mount -t tmpfs -o mode=755 run /new/run
mkdir -p /new/dev/pts /new/dev/shm /new/lib/modules/{release} /new{share}
mount -t devpts pts /new/dev/pts
mount -t tmpfs shm /new/dev/shm
mount --bind /new{modules} /new/lib/modules/{release}
ln -sfn {headers} /new/lib/modules/{release}/build
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=none share /new{share}
mount --make-rshared /new
ifconfig lo up
hostname vm
exec switch_root /new /bin/sh {share}/.agent
"""

AGENT = """export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
stty -F /dev/ttyS1 raw -echo
exec 3<>/dev/ttyS1
[ ! -d /sys/firmware/efi/efivars ] || mount -t efivarfs efivarfs /sys/firmware/efi/efivars
echo ready >&3
while read -r job <&3; do
  cd {share}
  sh $job >$job.out 2>$job.err </dev/null 3>&-
  echo $? >&3
done
"""


class MachineError(Exception):
    """The VM did not come up, died, or was too slow; the message ends with its console."""


@frozen
class Done:
    """How a script ended; `seconds` as the host's clock saw it."""

    code: int
    stdout: str
    stderr: str
    seconds: float


class Machine:
    """A VM that lives as long as its `with`. `folder` is for its files, one VM a folder; `append` is added to
    the kernel's command line. With `firmware` it boots by that, which takes some 10 s more."""

    def __init__(
        self,
        kernel: KitKernel,
        busybox: Path,
        folder: Path,
        append: str = "",
        firmware: Optional[Firmware] = None,
    ) -> None:
        self.kernel = kernel
        self.share = folder / "share"
        self._firmware = firmware
        self._folder, self._busybox, self._append = folder, busybox, append
        self._console = folder / "console.log"
        self._jobs = 0
        self._qemu: Optional[subprocess.Popen[bytes]] = None

    def __enter__(self) -> Machine:
        self.share.mkdir(parents=True, exist_ok=True)
        (self.share / ".agent").write_text(AGENT.format(share=shlex.quote(str(self.share))))
        initramfs.write(self._folder / "initrd", self.kernel, self._busybox, self._init())
        pipe = subprocess.PIPE
        with self._console.open("wb") as console:
            self._qemu = subprocess.Popen(self._command(), 0, stdin=pipe, stdout=pipe, stderr=console)
        try:
            while not self._answer(BOOT_SECONDS, "boot").endswith("ready"):
                pass  # firmware talks on every line that it finds
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def run(self, script: str, *, check: bool = True, timeout: float = 300) -> Done:
        """Run a shell script as root; with `check`, AssertionError with its output unless it exits 0."""
        self._jobs += 1
        job = self.share / f".job{self._jobs}"
        job.write_text(script)
        began = time.monotonic()
        assert self._qemu and self._qemu.stdin, "a Machine runs inside its with statement"
        with contextlib.suppress(BrokenPipeError):  # the missing answer tells
            self._qemu.stdin.write(f"{job}\n".encode())
        code = int(self._answer(timeout, script))
        out, err = (job.with_name(job.name + end).read_text(errors="replace") for end in (".out", ".err"))
        if check and code:
            raise AssertionError(f"exit code {code}: {script}\n{out}{err}{self.console()}")
        return Done(code, out, err, time.monotonic() - began)

    def dmesg(self) -> str:
        """The kernel log since boot."""
        return self.run("dmesg").stdout

    def console(self) -> str:
        """What the kernel (warnings and worse) and QEMU said; there also after the VM died."""
        return self._console.read_text(errors="replace")

    @property
    def pid(self) -> int:
        """The process id of QEMU."""
        assert self._qemu is not None
        return self._qemu.pid

    def stop(self) -> None:
        """End QEMU. There is nothing to save: the share is the host's."""
        if self._qemu:
            self._qemu.kill()
            self._qemu.communicate()
            self._qemu = None

    def _init(self) -> str:
        named = {"modules": self.kernel.modules, "headers": self.kernel.headers, "share": self.share}
        quoted = {name: shlex.quote(str(path)) for name, path in named.items()}
        return INIT.format(release=self.kernel.release, **quoted)

    def _command(self) -> List[str]:
        disks = []
        for name, path, more in (("root", "/", ",readonly=on"), ("share", str(self.share), "")):
            local = f"local,id={name},path={path},security_model=none,multidevs=remap{more}"
            disks += ["-fsdev", local, "-device", f"virtio-9p-pci,fsdev={name},mount_tag={name}"]
        firmware = self._firmware
        image = self.kernel.image if firmware else self.kernel.vmlinux or self.kernel.image
        return [
            *("setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64"),
            *(firmware.arguments() if firmware else ()),
            *(
                "-accel",
                "tcg,thread=multi",
                "-M",
                f"q35,smm={'on' if firmware else 'off'}",
                "-cpu",
                "max",
                "-smp",
                "1",  # of two, each spins for locks of the other, which waits for a core
                "-m",
                "2G",
            ),
            *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
            *("-kernel", str(image)),
            *("-initrd", str(self._folder / "initrd"), "-append", f"{APPEND} {self._append}"),
            *("-chardev", f"file,id=console,append=on,path={self._console}", "-serial", "chardev:console"),
            *("-serial", "stdio", *disks),
        ]

    def _answer(self, timeout: float, doing: str) -> str:
        """The next line of the agent."""
        assert self._qemu and self._qemu.stdout
        until, line, pipe = time.monotonic() + timeout, b"", self._qemu.stdout.fileno()
        while not line.endswith(b"\n"):
            left = until - time.monotonic()
            if left <= 0 or not select.select([pipe], [], [], left)[0]:
                raise self._over(f"no end in {timeout:g} s: {doing}")
            data = os.read(pipe, 64)
            if not data:
                raise self._over(f"the VM ended: {doing}")
            line += data
        return line.decode().strip()

    def _over(self, what: str) -> MachineError:
        self.stop()
        return MachineError(f"{what}\n{self.console()[-4000:]}")
