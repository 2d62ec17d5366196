"""Where kernel headers are: a build tree, a Debian pair, /lib/modules/R/build, or the root of a DTK image."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Optional

from attrs import frozen

from nvdriver_build.errors import HeadersError, HeadersMismatch
from nvdriver_build.kernel.toolkit import RELEASE_FILE, ToolkitRelease, read_toolkit_release

_UTS_RELEASE = re.compile(r'^#define\s+UTS_RELEASE\s+"([^"]+)"', re.MULTILINE)
_UTS_VERSION = re.compile(r'^#define\s+UTS_VERSION\s+"([^"]+)"', re.MULTILINE)
_INCLUDED_MAKEFILE = re.compile(r"^include\s+(/\S*)/Makefile\s*$", re.MULTILINE)
"""Only an absolute path names other sources: every kernel's own Makefile includes `$(srctree)/arch/...`."""
_UTSRELEASE_H = "include/generated/utsrelease.h"
_MAX_LINKS = 40
"""Links that the kernel follows for one path (man 7 path_resolution)."""


@frozen
class Headers:
    """Kernel headers that modules can be built with.

    `sources` and `output` are NVIDIA's SYSSRC and SYSOUT: one folder, but for kernels built out of tree
    and for Debian's pair (`-common` and the flavour's). `toolkit` is there where a DTK image holds them.
    """

    sources: Path
    output: Path
    release: str
    toolkit: Optional[ToolkitRelease] = None

    @property
    def uts_version(self) -> Optional[str]:
        """What tells two builds of one release apart, `uname -v` (kernel: init/Makefile); None if unknown."""
        for name in ("utsversion.h", "compile.h"):
            path = self.output / "include/generated" / name
            match = _UTS_VERSION.search(path.read_text(errors="replace")) if path.exists() else None
            if match:
                return match.group(1)
        return None


def find_headers(place: Path, release: Optional[str] = None) -> Headers:
    """The headers at `place`, of kernel `release` where one is asked for.

    Raises HeadersError where there are none or a part is missing, HeadersMismatch where they belong to
    another kernel.
    """
    try:
        return _find_headers(place, release)
    except OSError as error:
        raise HeadersError(
            f"{place} cannot be read: {error.strerror}", hint="is that the name, and may this user read it?"
        ) from error


def _find_headers(place: Path, release: Optional[str]) -> Headers:
    if not place.exists():
        raise HeadersError(
            f"no kernel headers at {place}" + (": a link that leads nowhere" if place.is_symlink() else ""),
            hint=_install_hint(release),
        )
    if (place / RELEASE_FILE).exists() or _looks_like_root(place):
        return _in_toolkit(place, release)
    headers = _build_tree(place.resolve(), None)
    if release is not None and headers.release != release:
        raise HeadersMismatch(
            f"the headers at {place} are of kernel {headers.release}, not {release}",
            hint=_install_hint(release),
        )
    return headers


def _install_hint(release: Optional[str]) -> str:
    name = release or "RELEASE"
    return f"install kernel-devel-{name} (RHEL) or linux-headers-{name} (Debian), or use the kernel's DTK"


def _looks_like_root(place: Path) -> bool:
    return (place / "usr/src").is_dir() and not (place / _UTSRELEASE_H).exists()


def _in_toolkit(root: Path, release: Optional[str]) -> Headers:
    toolkit = read_toolkit_release(root)
    installed = installed_kernels(root)
    wanted = release or _near(toolkit.kernel, installed)
    tree = installed.get(wanted)
    if tree is None:
        rhel = f" of RHEL {toolkit.rhel}" if toolkit.rhel else ""
        raise HeadersMismatch(
            f"the Driver Toolkit{rhel} at {root} has no headers of kernel {wanted}; "
            f"it has {', '.join(sorted(installed)) or 'none'} (its release file says {toolkit.kernel})",
            hint="use the driver-toolkit tag whose name is the node's RHCOS version",
        )
    return _build_tree(tree, toolkit)


def _near(release: str, installed: dict[str, Path]) -> str:
    """Early images leave the architecture out of KERNEL_VERSION."""
    longer = (f"{release}.{machine}" for machine in ("x86_64", "aarch64"))
    return next((name for name in longer if name in installed), release)


def installed_kernels(root: Path) -> dict[str, Path]:
    """The build trees below `root`, by kernel release: what is installed counts, not what a file says."""
    found = {}
    links = (folder / "build" for folder in inside(root, "lib/modules").glob("*"))
    for tree in (*links, *inside(root, "usr/src/kernels").glob("*")):
        place = inside(root, str(tree.relative_to(root)))
        release = _read_release(place)
        if release is not None:
            found[release] = place
    return found


def inside(root: Path, name: str) -> Path:
    """Where `name` leads with `root` as the image's own root: no link leads out of it."""
    place, rest, links = root, list(Path(name).parts[::-1]), 0
    while rest:
        *rest, part = rest
        if part == "..":
            place = place if place == root else place.parent
        elif part == "/":
            place = root
        elif (place / part).is_symlink() and links < _MAX_LINKS:
            links += 1
            rest = [*rest, *(place / part).readlink().parts[::-1]]
        else:
            place = place / part
    return place


def _read_release(tree: Path) -> Optional[str]:
    try:
        match = _UTS_RELEASE.search((tree / _UTSRELEASE_H).read_text(errors="replace"))
    except OSError:
        return None
    return match.group(1) if match else None


def _build_tree(tree: Path, toolkit: Optional[ToolkitRelease]) -> Headers:
    release = _read_release(tree)
    if release is None:
        common = (tree / "Makefile").exists() and not (tree / "include/generated").exists()
        raise HeadersError(
            f"{tree} is no prepared kernel build tree: {_UTSRELEASE_H} is missing or has no UTS_RELEASE",
            hint=f"give the flavour's folder, not {tree.name}" if common else _install_hint(None),
        )
    return Headers(_sources_of(tree), tree, release, toolkit)


def _sources_of(tree: Path) -> Path:
    """Debian's flavour folder and `make O=` have a Makefile that includes that of the sources."""
    try:
        match = _INCLUDED_MAKEFILE.search((tree / "Makefile").read_text(errors="replace"))
    except OSError as error:
        raise HeadersError(f"{tree}/Makefile cannot be read: {error}", hint=_install_hint(None)) from error
    if match is None:
        return tree
    named = Path(match.group(1))
    for candidate in (tree.parent / named.name, named):
        if (candidate / "Makefile").exists():
            return candidate
    raise HeadersError(
        f"{tree} needs {named}, which is neither there nor beside it",
        hint=f"install the package {named.name}",
    )
