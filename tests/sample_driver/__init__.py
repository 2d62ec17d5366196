"""A small driver with the names, dependencies and tree layout of NVIDIA's, for tests.

`make_sample_driver` writes a tree like an unpacked `.run`; `modules_command` gives the make command
that NVIDIA documents. `tree/` is the source of the kernel modules, `core/` what the fixture compiles
into the objects that NVIDIA delivers prebuilt. The kernel code is GPL-2.0 and was written for this
project; only the interface (names, make variables, messages) is NVIDIA's.

Without a GPU the modules load with the parameter `NVreg_SampleWithoutGpu=1` of nvidia. A process that has
`/dev/nvidiactl` (character device 195, 255; as with NVIDIA's nobody creates the node) open holds a
reference of nvidia.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Tuple

VERSION = "999.10.01"
"""The version in the committed tree; higher than any release of NVIDIA's."""
MODULES = ("nvidia", "nvidia-uvm", "nvidia-modeset", "nvidia-drm", "nvidia-peermem")
CORE_OBJECTS = ("nvidia/nv-kernel.o_binary", "nvidia-modeset/nv-modeset-kernel.o_binary")
FOLDERS = {"open": "kernel-open", "proprietary": "kernel"}
"""The folder of each kind in an unpacked `.run`."""

_HERE = Path(__file__).parent
_PROPRIETARY_LICENSES = {
    "nvidia/nv-frontend.c": ("Dual MIT/GPL", "NVIDIA"),
    "nvidia-modeset/nvidia-modeset-linux.c": ("Dual MIT/GPL", "NVIDIA"),
    "nvidia-drm/nvidia-drm-linux.c": ("Dual MIT/GPL", "MIT"),
    "nvidia-peermem/nvidia-peermem.c": ("Dual BSD/GPL", "Linux-OpenIB"),
}
_ID_STRINGS = {
    "open": "NVIDIA UNIX Open Kernel Module for {arch}  {version}  Release Build  (sample@tests)  {date}",
    "proprietary": "NVIDIA UNIX {arch} Kernel Module  {version}  {date}",
}
_DATE = "Thu Jan  1 00:00:00 UTC 1970"
_FREESTANDING = "-O2 -g0 -ffreestanding -fno-pic -fno-stack-protector -fno-asynchronous-unwind-tables"
_CORE_FLAGS = {
    "x86_64": f"{_FREESTANDING} -mno-red-zone -mcmodel=kernel -mno-sse -fcf-protection=none".split(),
    "aarch64": f"{_FREESTANDING} -mgeneral-regs-only -mno-outline-atomics".split(),
}
_MOFED_SYMVERS = """\
0x0badcafe\tib_register_peer_memory_client\tdrivers/infiniband/core/ib_core\tEXPORT_SYMBOL\t
0x0badbeef\tib_unregister_peer_memory_client\tdrivers/infiniband/core/ib_core\tEXPORT_SYMBOL\t
"""


def make_sample_driver(dest: Path, version: str = VERSION, kind: str = "both") -> Path:
    """Write the sample into the new folder `dest`, as an unpacked `.run` lies there; return `dest`.

    `kind` is `open` (`dest/kernel-open`), `proprietary` (`dest/kernel`) or `both`. Needs gcc.
    """
    dest.mkdir(parents=True)
    for each in FOLDERS if kind == "both" else (kind,):
        _write_kind(dest / FOLDERS[each], version, each)
    arch = platform.machine()
    (dest / ".manifest").write_text(
        f"NVIDIA Accelerated Graphics Driver for Linux-{arch}\n{version}\n{' '.join(MODULES)}\n"
    )
    (dest / "firmware").mkdir()
    for name in ("gsp_ga10x.bin", "gsp_tu10x.bin"):
        (dest / "firmware" / name).write_bytes(f"sample {name} {version}\n".encode())
    return dest


def modules_command(headers: Path, *variables: str, jobs: int = 2) -> Tuple[str, ...]:
    """Give the command that builds the modules in the current folder, for a build tree or a Debian pair.

    `variables` are more make variables, as `NAME=value`.
    """
    source, output = debian_pair(headers)
    return ("make", f"-j{jobs}", "modules", f"SYSSRC={source}", f"SYSOUT={output}", *variables)


def debian_pair(headers: Path) -> Tuple[Path, Path]:
    """Give SYSSRC and SYSOUT for a flavour's folder, wherever the pair was unpacked; else `headers` twice.

    The flavour's Makefile includes that of its `-common` by the absolute path of an installed system.
    """
    makefile = headers / "Makefile"
    found = re.match(r"include \S*/([^/\s]+)/Makefile", makefile.read_text()) if makefile.exists() else None
    return (headers.parent / found[1] if found else headers), headers


def make_mofed(dest: Path) -> Path:
    """Write what nvidia-peermem wants of MOFED into the new folder `dest`, which stands for
    `/usr/src/ofa_kernel/default`; return `dest`. The symbols exist in no kernel."""
    (dest / "include" / "rdma").mkdir(parents=True)
    shutil.copy(_HERE / "tree/nvidia-peermem/peer_mem.h", dest / "include" / "rdma")
    (dest / "Module.symvers").write_text(_MOFED_SYMVERS)
    return dest


def replace_text(path: Path, old: str, new: str) -> None:
    """Replace `old` by `new` in a file; ValueError where it is not there."""
    text = path.read_text()
    if old not in text:
        raise ValueError(f"{path}: {old!r} is not in it")
    path.write_text(text.replace(old, new))


def _write_kind(tree: Path, version: str, kind: str) -> None:
    shutil.copytree(_HERE / "tree", tree)
    replace_text(tree / "Kbuild", VERSION, version)
    if kind == "proprietary":
        for file, (ours, theirs) in _PROPRIETARY_LICENSES.items():
            replace_text(tree / file, f'MODULE_LICENSE("{ours}")', f'MODULE_LICENSE("{theirs}")')
        replace_text(tree / "nvidia/nvidia-sources.Kbuild", "NVIDIA_SOURCES += nvidia/nv-dmabuf.c\n", "")
    arch = platform.machine()
    id_string = _ID_STRINGS[kind].format(arch=arch, version=version, date=_DATE)
    for core in CORE_OBJECTS:
        _compile_core(tree / core, id_string, arch)


def _compile_core(core: Path, id_string: str, arch: str) -> None:
    source = core.with_suffix(".c").name
    command = ["gcc", *_CORE_FLAGS[arch], f'-DNVRM_ID_STRING="{id_string}"', "-c", source, "-o"]
    subprocess.run([*command, core.resolve()], cwd=_HERE / "core", check=True)
