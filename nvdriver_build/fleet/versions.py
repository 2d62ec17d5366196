"""Version strings of nodes and toolkits, and what names can be made of them.

Shapes seen: RHCOS `416.94.202408260940-0`, 4.19 and later `9.6.20260616-0`, SCOS `416.9.202411211032-0`,
Fedora CoreOS `39.20240210.3.0`; kernels `5.14.0-427.13.1.el9_4.x86_64`, `...+rt`, `...+64k`, older RT ones
with `.rt14.296.`. NFD's labels write `+` as `_`, since a label cannot hold it.
"""

from __future__ import annotations

import hashlib
import re
from typing import Optional

from attrs import frozen

ARCHITECTURES = {"amd64": "x86_64", "x86_64": "x86_64", "arm64": "arm64", "aarch64": "arm64"}
"""Go's and the kernel's names to the one that this package uses."""
PLATFORMS = {"x86_64": "amd64", "arm64": "arm64"}
"""The label kubernetes.io/arch of each."""
_MACHINES = {"x86_64": "x86_64", "arm64": "aarch64"}
_VERSION = r"\d+(?:\.\d+){2,4}(?:-\d+)?"
_OS_IMAGE = re.compile(rf"CoreOS\s+(?:Linux\s+)?({_VERSION})(?=\s|$)", re.ASCII)
_PLAIN = re.compile(r"\d+(?:\.\d+)+-\d+", re.ASCII)
_KERNEL = re.compile(r"\d+\.\d+\.\d+[-\w.+~]*", re.ASCII)
_KERNEL_LIMIT = 64  # the kernel's own (__NEW_UTS_LEN)
_PARTS = re.compile(
    r"(?P<base>.+?)(?:\.(?P<arch>x86_64|aarch64))?(?:[+._-](?P<variant>rt|64k|debug|rt[-_]debug|64k[-_]debug))?",
    re.ASCII,
)
_OLD_RT = re.compile(r"\.rt\d+\.\d+\b")
_LABEL = re.compile(r"[A-Za-z0-9](?:[-\w.]*[A-Za-z0-9])?", re.ASCII)
_LABEL_LIMIT = 63
_NAME_LIMIT = 57
"""A pod is named after its DaemonSet or Job, with six more characters; 63 is the most that a host name
has.
"""
_DIGEST = 8


@frozen
class Kernel:
    """The parts of a kernel release: `base` without architecture and variant."""

    base: str
    arch: Optional[str]
    flavour: str


def os_version(os_image: str) -> Optional[str]:
    """The version in nodeInfo.osImage (`Red Hat Enterprise Linux CoreOS 9.6.20260616-0 (Plow)`); None
    without one.
    """
    found = _OS_IMAGE.search(os_image.strip().strip("'\"").strip())
    return found[1] if found else None


def is_coreos(os_image: str) -> bool:
    """Whether the system is of the CoreOS family, even if its version cannot be read."""
    return "coreos" in os_image.lower()


def is_version(text: str) -> bool:
    """Whether this can be the version of a CoreOS, as a tag or a label gives it."""
    return re.fullmatch(_VERSION, text, re.ASCII) is not None


def rhel_of(version: str) -> Optional[int]:
    """The RHEL that a version is of: 9 for `416.94....` and for `9.6....`; None where that is not told.

    OpenShift's older ones have its own release first, and RHEL's without a dot (SCOS: the major alone).
    """
    words = version.split(".")
    first, second = words[0], words[1] if len(words) > 1 else ""
    if len(first) < 3:
        return int(first) if first.isascii() and first.isdigit() else None
    major = second if second in ("8", "9", "10") else second[:-1]
    return int(major) if major.isascii() and major.isdigit() else None


def is_kernel(text: str) -> bool:
    """Whether this can be a kernel release: junk such as `package kernel-rt-core is not installed` is not."""
    return len(text) <= _KERNEL_LIMIT and _KERNEL.fullmatch(text) is not None


def kernel_of_label(value: str) -> str:
    """The release that NFD's label kernel-version.full means: the `_` before a variant was a `+`."""
    return re.sub(r"_((?:rt|64k)?[-_]?(?:debug)?)$", lambda found: f"+{found[1]}" if found[1] else "_", value)


def parts(kernel: str) -> Kernel:
    """A kernel release in its parts."""
    found = _PARTS.fullmatch(kernel)
    base, arch, variant = found.group("base", "arch", "variant") if found else (kernel, None, None)
    flavour = next((name for name in ("rt", "64k", "debug") if name in (variant or "")), "standard")
    if flavour == "standard" and _OLD_RT.search(base):
        flavour = "rt"
    return Kernel(base, ARCHITECTURES.get(arch or ""), flavour)


def flavour_of(kernel: str) -> str:
    """`standard`, `rt`, `64k` or `debug`, by the name of the kernel alone."""
    return parts(kernel).flavour


def label_value(version: str) -> str:
    """A value for a label that stands for this version and no other, within Kubernetes' limits."""
    if len(version) <= _LABEL_LIMIT and _LABEL.fullmatch(version) and not version.startswith("x-"):
        return version
    return f"x-{digest(version)}"


def object_name(prefix: str, version: str, suffix: str = "") -> str:
    """A DNS label for an object that belongs to this version and to no other.

    Dots become dashes: pods are named after it, and a pod's name is its host name.
    """
    slug = version.replace(".", "-") if _PLAIN.fullmatch(version) else f"x{digest(version)}"
    name = "-".join(part for part in (prefix, slug, suffix) if part)
    if len(name) <= _NAME_LIMIT:
        return name
    return "-".join(part for part in (prefix, f"x{digest(version)}", suffix) if part)


def release(base: str, arch: str, flavour: str) -> str:
    """The kernel release of these parts, as `uname -r` says it; an old RT kernel has its flavour in the
    base.
    """
    variant = "" if flavour == "standard" or _OLD_RT.search(base) else f"+{flavour}"
    return f"{base}.{_MACHINES.get(arch, arch)}{variant}"


def without_rt(base: str) -> str:
    """The base of the standard kernel of which an old RT kernel was made."""
    return _OLD_RT.sub("", base)


def digest(text: str) -> str:
    """Some hex digits that stand for a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST]
