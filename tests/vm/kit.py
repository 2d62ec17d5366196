"""The kernels and sources of scripts/kit, as values.

kit = load_kit("a", "busybox", "open")     # fetches what is missing, else takes 0.1 s
kit.kernel("a").headers                    # Path; None where the role has no such part
kit.source("open")                         # the tarball
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Mapping, Optional

from attrs import frozen

PROGRAM = Path(__file__).parents[2] / "scripts" / "kit"


@frozen
class KitKernel:
    """One kernel of the kit. `modules` is .../lib/modules/R, `common` the headers shared by flavours."""

    release: str
    version: str
    arch: str
    headers: Path
    common: Path
    image: Optional[Path]
    vmlinux: Optional[Path]
    modules: Optional[Path]


@frozen
class Kit:
    """kit.json, with absolute paths."""

    document: Mapping[str, Any]

    def kernel(self, role: str) -> KitKernel:
        """The kernel of a role that is there; KeyError if it was not asked for or apt offers none."""
        entry = self.document["kernels"][role]
        if entry is None:
            raise KeyError(f"apt offers no kernel for the role {role}")
        paths = {k: entry[k] and Path(entry[k]) for k in ("headers", "common", "image", "vmlinux", "modules")}
        return KitKernel(release=entry["release"], version=entry["version"], arch=entry["arch"], **paths)

    def source(self, role: str) -> Path:
        return Path(self.document["sources"][role])

    def root(self, role: str) -> Path:
        """A root file system; links in it are absolute within it."""
        return Path(self.document["roots"][role])

    @property
    def busybox(self) -> Path:
        return Path(self.document["tools"]["busybox"])


def load_kit(*roles: str) -> Kit:
    """The kit with these roles in it. CalledProcessError if they cannot be fetched; stderr says why."""
    argv = [sys.executable, str(PROGRAM), "--json", *roles]
    return Kit(json.loads(subprocess.run(argv, stdout=subprocess.PIPE, check=True).stdout))


def compile_module(source: Path, kernel: KitKernel, folder: Path) -> Path:
    """Compile NAME.ko for a kernel of the kit in `folder`; `source` is the folder NAME with its sources.

    AssertionError with make's words.
    """
    for name in (f"{source.name}.c", "Makefile"):
        shutil.copy(source / name, folder)
    argv = ["make", "-C", str(folder), f"COMMON={kernel.common}", f"FLAVOUR={kernel.headers}"]
    done = subprocess.run(argv, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / f"{source.name}.ko"
