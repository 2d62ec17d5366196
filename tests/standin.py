"""A stand-in for the Driver Toolkit image: a root file system with real kernels of the kit, gcc and Python.

toolkit_root("fits")     # Path: made once a machine, kept in the user's cache; never write to it

Its files are hard links to those of the kit. `podman run --rootfs DIR:O` puts an overlay over it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Dict, List, Tuple

import filelock
from attrs import frozen
from real_build import CACHE
from vm.kit import PROGRAM, KitKernel, load_kit

JUNK_RT = "package kernel-rt-core is not installed"
"""What the release file of real toolkits says at times (openshift/driver-toolkit 161)."""


@frozen
class Variant:
    """Kernels of the kit, by role: the release file names the first as the standard one, a second as RT."""

    kernels: Tuple[str, ...]
    rt: str = ""
    """What the release file says of RT where there is no second kernel."""
    python: bool = True


VARIANTS: Dict[str, Variant] = {
    "fits": Variant(("a",)),
    "wrong-kernel": Variant(("b",)),
    "junk-rt": Variant(("a",), rt=JUNK_RT),
    "no-python": Variant(("a",), python=False),
    "two-flavours": Variant(("a", "rt")),
}


def toolkit_root(name: str) -> Path:
    """The root of a variant; what the kit lacks is fetched."""
    variant = VARIANTS[name]
    kit = load_kit("toolkit", *variant.kernels)
    kernels = [kit.kernel(role) for role in variant.kernels]
    place = CACHE / "roots" / f"{name}-{_digest(kit.root('toolkit'), *(k.headers for k in kernels))}"
    place.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{place.parent}/{name}.lock"):
        if not place.exists():
            for old in place.parent.glob(f"{name}-*"):
                shutil.rmtree(old)
            with tempfile.TemporaryDirectory(prefix=".new-", dir=place.parent) as private:
                root = Path(private) / "root"
                _make(variant, kernels, kit.root("toolkit"), root)
                root.rename(place)
    return place


def lay_out_kernel(kernel: KitKernel, root: Path) -> None:
    """A kernel's headers as a toolkit has them: one whole tree, named by an absolute link.

    Where the kit has the image, its in-tree modules and the image lie beside, as in RHEL's kernel-core.
    """
    usr, release = kernel.headers.parents[1], kernel.release
    tree, modules = root / "usr/src/kernels" / release, root / "usr/lib/modules" / release
    tree.mkdir(parents=True)
    modules.parent.mkdir(parents=True, exist_ok=True)
    _link(f"{kernel.common}/.", tree)
    for name in ("scripts", "tools"):
        (tree / name).unlink()  # links to what kbuild has
    [kbuild] = (usr / "lib").glob("linux-kbuild-*")
    _link(f"{kbuild}/.", tree)
    for name in (".config", "Module.symvers", "arch", "include"):
        _link(kernel.headers / name, tree)
    if kernel.modules and kernel.image:
        _link(kernel.modules, modules)
        _link(kernel.image, modules / "vmlinuz")
    for name in ("build", "source"):
        (modules / name).unlink(missing_ok=True)
    modules.mkdir(exist_ok=True)
    (modules / "build").symlink_to(f"/usr/src/kernels/{release}")


def _link(source: object, target: Path) -> None:
    subprocess.run(["cp", "-al", "--remove-destination", str(source), str(target)], check=True)


def _make(variant: Variant, kernels: List[KitKernel], packages: Path, root: Path) -> None:
    _link(packages, root)
    for kernel in kernels:
        lay_out_kernel(kernel, root)
    rt = kernels[1].release if len(kernels) > 1 else variant.rt
    document = {"KERNEL_VERSION": kernels[0].release, "RT_KERNEL_VERSION": rt, "RHEL_VERSION": "9.4"}
    (root / "etc/driver-toolkit-release.json").write_text(json.dumps(document))
    if not variant.python:
        for path in (root / "usr/bin").glob("python3*"):
            path.unlink()


def _digest(*folders: Path) -> str:
    """Anew where the recipe changes, or where the kit was fetched anew."""
    recipes = [Path(__file__), *sorted((PROGRAM.parent / "kitlib").glob("*.py"))]
    marks = [f"{path} {path.stat().st_ino} {path.stat().st_mtime_ns}" for path in folders]
    content = b"".join(path.read_bytes() for path in recipes)
    return hashlib.sha256(content + "\n".join(marks).encode()).hexdigest()[:16]
