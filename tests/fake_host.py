"""A node made of files, with programs on PATH that load into it, for tests."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Iterable, Mapping, Optional

from attrs import field, frozen
from trees import Link, write_tree

from nvdriver_build.commands import SystemCommands
from nvdriver_build.loader.host import Host

MODPROBE = """#!/bin/sh
echo "modprobe $*" >>{log}
shift 6
[ "$1" = -a ] && shift
for name; do
    if [ -s {plan}/$name.words ]; then
        head -n 1 {plan}/$name.words >&2
        sed -i 1d {plan}/$name.words
        exit 1
    fi
    [ -d {plan}/$name ] && [ ! -e {modules}/$name/initstate ] || continue
    mkdir -p {modules}/$name
    cp -r {plan}/$name/[!i]* {modules}/$name/
    cp {plan}/$name/initstate {modules}/$name/.initstate
    mv {modules}/$name/.initstate {modules}/$name/initstate
done
"""
"""What it is killed in leaves no half module: the kernel shows all of one or nothing."""

RMMOD = """#!/bin/sh
trap '' TERM
echo "rmmod $*" >>{log}
if [ -s {plan}/$1.busy ]; then
    head -n 1 {plan}/$1.busy >&2
    sed -i 1d {plan}/$1.busy
    exit 1
fi
if [ ! -d {modules}/$1 ]; then
    echo "rmmod: ERROR: Module $1 is not currently loaded" >&2
    exit 1
fi
if [ -n "$(ls {modules}/$1/holders)" ]; then
    echo "rmmod: ERROR: Module $1 is in use by:" $(ls {modules}/$1/holders) >&2
    exit 1
fi
rm {modules}/$1/initstate
rm -f {modules}/*/holders/$1
rm -r {modules}/$1
"""


def build_id_note(build_id: str) -> bytes:
    """The note as the kernel shows it."""
    value = bytes.fromhex(build_id)
    return struct.pack("=III4s", 4, len(value), 3, b"GNU\0") + value


@frozen
class FakeHost:
    """/proc, /sys and /dev of a node below `root`, with a modprobe and a rmmod that act on /sys/module.

    They write down their arguments. `plan` has what they are to do: the folder `NAME` is copied; a line of
    `NAME.words` (modprobe) or `NAME.busy` (rmmod) is an error to end with.
    """

    root: Path
    commands: SystemCommands = field(init=False)

    def __attrs_post_init__(self) -> None:
        words = {"log": self.root / "log", "plan": self.root / "plan", "modules": self.modules}
        programs = {"bin/modprobe": MODPROBE.format(**words), "bin/rmmod": RMMOD.format(**words)}
        write_tree(self.root, programs)
        for program in programs:
            (self.root / program).chmod(0o755)
        for folder in ("proc", "sys/module", "sys/bus/pci/devices", "dev", "plan"):
            (self.root / folder).mkdir(parents=True)
        object.__setattr__(self, "commands", SystemCommands(f"{self.root}/bin:/usr/sbin:/usr/bin:/sbin:/bin"))

    @property
    def host(self) -> Host:
        """The node as the package takes it."""
        return Host(*(self.root / name for name in ("proc", "sys", "dev", "lib/modules")))

    @property
    def modules(self) -> Path:
        """Its /sys/module."""
        return self.root / "sys/module"

    @property
    def ran(self) -> list[str]:
        """The programs that were started, with the arguments behind the root's own."""
        log = self.root / "log"
        return log.read_text().splitlines() if log.exists() else []

    def module(
        self,
        name: str,
        *,
        holders: Iterable[str] = (),
        used: int = 0,
        build_id: str = "",
        state: str = "live",
        planned: bool = False,
    ) -> None:
        """Load a module, or plan that modprobe does; `used` counts references beside the holders'."""
        held = list(holders)
        files = {"initstate": f"{state}\n", "refcnt": f"{used + len(held)}\n"}
        folder = write_tree((self.root / "plan" if planned else self.modules) / name, files)
        write_tree(folder / "holders", {holder: Link(f"../../{holder}") for holder in held})
        if build_id:
            write_tree(folder / "notes", {".note.gnu.build-id": build_id_note(build_id)})

    def say(self, name: str, *lines: str, busy: bool = False) -> None:
        """Let modprobe (or, with `busy`, rmmod) of `name` fail once for each line, with that line."""
        suffix = "busy" if busy else "words"
        (self.root / "plan" / f"{name}.{suffix}").write_text("".join(f"{line}\n" for line in lines))

    def pci(
        self,
        address: str,
        vendor: str = "0x10de",
        device: str = "0x2330",
        pci_class: str = "0x030200",
        driver: Optional[str] = None,
    ) -> None:
        """Plug in a PCI device."""
        files = {"vendor": f"{vendor}\n", "device": f"{device}\n", "class": f"{pci_class}\n"}
        folder = write_tree(self.root / "sys/bus/pci/devices" / address, files)
        if driver:
            (folder / "driver").symlink_to(f"../../../../bus/pci/drivers/{driver}")

    def process(self, pid: int, name: str, descriptors: Mapping[str, str], maps: str = "") -> None:
        """Run a process with these files open."""
        folder = write_tree(self.root / "proc" / str(pid), {"comm": f"{name}\n", "maps": maps})
        write_tree(folder / "fd", {number: Link(target) for number, target in descriptors.items()})
