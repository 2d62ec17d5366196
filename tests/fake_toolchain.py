"""A driver source, kernel headers, and a make and gcc that are scripts: a build in no time.

    rig = FakeToolchain.make(tmp_path)       # rig.source, rig.headers, rig.path
    rig.program("make", "exit 2")            # another make

The fake make puts modules that fit the headers into the tree, as NVIDIA's would, and counts its calls.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Iterator, Mapping, Sequence

from attrs import frozen
from elf_files import export, module
from kernel_trees import RELEASE, RHEL_COMPILER, SYMBOLS, build_tree
from trees import write_tree

VERSION = "999.10.01"
VERMAGIC = f"{RELEASE} SMP mod_unload modversions "
MODULES = ("nvidia", "nvidia-uvm", "nvidia-modeset", "nvidia-drm")
SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_MAKE = """\
echo "$@" >> {calls}
while [ $# -gt 0 ]; do
    case "$1" in -C) tree=$2; shift ;; esac
    shift
done
echo " CC [M]  nvidia/nv.o"
for module in {modules}/*.ko; do cp "$module" "$tree"/; done
"""
_STRIP = """\
while [ $# -gt 0 ]; do
    case "$1" in -o) to=$2; shift ;; -*) ;; *) from=$1 ;; esac
    shift
done
[ -z "$to" ] || cp "$from" "$to"
"""
_GCC = f"""\
case "$1" in
-print-prog-name=*) echo /bin/sh ;;
*) echo '{RHEL_COMPILER}' ;;
esac
"""


def driver_tree(kind: str = "open", version: str = VERSION) -> Mapping[str, str]:
    """The files of a kernel tree as NVIDIA ships it, without anything to compile."""
    licence = "Dual MIT/GPL" if kind == "open" else "NVIDIA"
    files = {
        "Makefile": "modules:\n",
        "Kbuild": f'EXTRA_CFLAGS += -DNV_VERSION_STRING=\\"{version}\\"\n',
        "conftest.sh": "#!/bin/sh\n",
        "nvidia/nv.c": f'MODULE_LICENSE("{licence}");\n',
        "nvidia/nv-kernel.o_binary": "core",
    }
    for name in (*MODULES, "nvidia-peermem"):
        files[f"{name}/{name}.Kbuild"] = f"# {name}\n"
    files["nvidia/nvidia.Kbuild"] += "NVIDIA_BINARY_OBJECT := $(src)/nvidia/nv-kernel.o_binary\n"
    return files


def module_bytes(
    name: str, crcs: Mapping[str, int] = SYMBOLS, vermagic: str = VERMAGIC, depends: str = ""
) -> bytes:
    """A module of the driver that needs `crcs` of the kernel and of what it depends on."""
    modinfo = (
        f"name={name.replace('-', '_')}",
        f"vermagic={vermagic}",
        "license=Dual MIT/GPL",
        f"version={VERSION}",
        f"depends={depends}",
    )
    file = module(modinfo, crcs)
    for symbol in crcs:
        file.symbol(symbol)
    if name == "nvidia":
        export(file, {"nv_register": 0xABC})
    return file.build()


@frozen
class FakeToolchain:
    """Where everything is; `path` is the PATH of the fake programs."""

    root: Path
    source: Path
    headers: Path
    path: str

    @classmethod
    def make(cls, root: Path) -> FakeToolchain:
        """Write all of it below `root`."""
        write_tree(root / "source", driver_tree())
        write_tree(root / "headers", build_tree())
        rig = cls(root, root / "source", root / "headers", f"{root}/bin:{SYSTEM_PATH}")
        rig.modules()
        rig.program("make", _MAKE.format(calls=root / "make-calls", modules=root / "modules"))
        rig.program("strip", _STRIP)
        rig.program(
            "gcc", f"case $1 in -print-prog-name=*) echo /bin/sh ;; *) echo '{RHEL_COMPILER}' ;; esac"
        )
        return rig

    @contextlib.contextmanager
    def again(self) -> Iterator[FakeToolchain]:
        """Another one, as it was at first."""
        yield FakeToolchain.make(self.root / "again")

    def program(self, name: str, script: str) -> None:
        """Put a shell script first on `path`."""
        write_tree(self.root / "bin", {name: f"#!/bin/sh\n{script}"})
        (self.root / "bin" / name).chmod(0o755)

    def modules(self, names: Sequence[str] = MODULES, **differ: object) -> None:
        """What make will leave: these modules; `differ` goes to `module_bytes`."""
        folder = write_tree(self.root / "modules", {})
        for name in names:
            (folder / f"{name}.ko").write_bytes(module_bytes(name, **differ))  # type: ignore[arg-type]

    def make_calls(self) -> int:
        """How often make was started."""
        calls = self.root / "make-calls"
        return len(calls.read_text().splitlines()) if calls.exists() else 0
