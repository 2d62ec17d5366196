"""A stand-in for MOFED: a real kernel module `ib_core` that exports what nvidia-peermem registers with, in a
root file system that is laid out like that of MOFED's container."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from vm.kit import KitKernel

_HERE = Path(__file__).parent
MODULE = "lib/modules/{release}/extra/ib_core.ko"


def build_mofed(kernel: KitKernel, root: Path, *, another: bool = False) -> Path:
    """Build it for `kernel` into the new folder `root`; return its ib_core.ko.

    `another` is an update of MOFED: the exports have the same names and other CRCs.
    """
    release = kernel.release
    folder = root / "usr/src/ofa_kernel/x86_64" / release
    folder.mkdir(parents=True)
    for name in ("ib_core.c", "Makefile"):
        shutil.copy(_HERE / name, folder)
    argv = ["make", "-C", str(kernel.common), f"KBUILD_OUTPUT={kernel.headers}", f"M={folder}", "modules"]
    argv += ["CONFIG_DEBUG_INFO_BTF_MODULES=", *(["ANOTHER_MOFED=y"] if another else [])]
    done = subprocess.run(argv, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "configure.mk.kernel").write_text(f"KVERSION={release}\nCONFIG_INFINIBAND_CORE_DUMMY=y\n")
    module = root / MODULE.format(release=release)
    module.parent.mkdir(parents=True)
    (folder / "ib_core.ko").rename(module)
    (root / "etc/alternatives").mkdir(parents=True)
    (root / "etc/alternatives/ofa_kernel_headers").symlink_to(f"/usr/src/ofa_kernel/x86_64/{release}")
    (root / "usr/src/ofa_kernel/default").symlink_to("/etc/alternatives/ofa_kernel_headers")
    return module
