"""Which of the kernels and sources that apt offers takes which role of the kit."""

from __future__ import annotations

import re
from typing import Any, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from kitlib.apt import KitError, Package

WITH_IMAGE = ("a", "b", "arm64")
BREAKS_535 = (6, 1, 187)  # tried: 6.1.176 compiles, 6.1.187 does not
_FLAVOURS = {"rt": "rt-amd64", "cloud": "cloud-amd64", "arm64": "arm64"}


class Kernel(NamedTuple):
    """A kernel that apt offers; `upstream` is (6, 1, 170) for the package version 6.1.170-3."""

    release: str
    upstream: Tuple[int, ...]
    headers: Package


def numbers(version: str) -> Tuple[int, ...]:
    """For comparing versions of one package of Debian's, which differ in numbers only."""
    return tuple(int(n) for n in re.findall(r"\d+", version))


def upstream(version: str) -> Tuple[int, ...]:
    return numbers(version.split("-")[0])


class Offer:
    """`have` is the part `kernels` of kit.json: a role chosen earlier stays, whatever apt offers today."""

    def __init__(self, packages: Sequence[Package], have: Mapping[str, Any]) -> None:
        self._packages = packages
        self._have = {role: entry for role, entry in have.items() if entry}

    def newest(self, name: str, arch: str = "amd64", branch: str = "") -> Package:
        """The newest version of a package whose version starts with `branch`; KitError if there is none."""
        fits = [p for p in self._packages if p.name == name and p.arch in (arch, "all")]
        fits = [p for p in fits if p.version.startswith(branch)]
        if not fits:
            raise KitError(f"apt offers no {name} {branch} for {arch}")
        return max(fits, key=lambda p: numbers(p.version))

    def kernel(self, role: str) -> Optional[Kernel]:
        """The kernel for a role, None if nothing fits one that may be empty."""
        plain = self._kernels("6.1", "amd64")
        if role == "a":
            return self._first(plain, role)
        if role == "b":
            later = [k for k in plain if self._upstream("a") < k.upstream < BREAKS_535]
            return self._first(later or self._like_a("cloud-amd64"), role)
        if role == "future":
            return next((k for k in plain[-1:] if k.upstream >= BREAKS_535), None)
        if role == "sibling":
            return next((k for k in plain if self.sibling_of(k)), None)
        if role == "new":
            return self._first(self._kernels("6.12", "amd64")[::-1], role)
        flavour = _FLAVOURS[role]
        return self._first(self._like_a(flavour) or self._kernels("6.1", flavour), role)

    def parts(self, role: str, kernel: Kernel) -> List[Package]:
        """The packages of a role: headers, what they need (tools of this machine), perhaps the image."""
        needs = re.findall(r"linux-(?:headers-\S+-common(?:-rt)?|kbuild-[^\s,]+)", kernel.headers.depends)
        found = [kernel.headers, *(self.newest(name) for name in needs)]
        if role in WITH_IMAGE:
            found.append(self.newest(f"linux-image-{kernel.release}", kernel.headers.arch))
        return found

    def sibling_of(self, kernel: Kernel) -> Optional[str]:
        """The role whose kernel has the same upstream version and another release, which is not A's."""
        for role in ("b", "future"):
            taken = (self._release(role), self._release("a"))
            if self._upstream(role) == kernel.upstream and kernel.release not in taken:
                return role
        return None

    def _kernels(self, series: str, flavour: str) -> List[Kernel]:
        """Oldest first."""
        pattern = re.compile(rf"linux-headers-({re.escape(series)}\.[\d.+a-z]+(?:-\d+)?-{flavour})")
        matches = ((pattern.fullmatch(p.name), p) for p in self._packages)
        found = [Kernel(m[1], upstream(p.version), p) for m, p in matches if m]
        return sorted(found, key=lambda k: numbers(k.headers.version))

    def _like_a(self, flavour: str) -> List[Kernel]:
        return [k for k in self._kernels("6.1", flavour) if k.upstream == self._upstream("a")]

    def _upstream(self, role: str) -> Tuple[int, ...]:
        if role in self._have:
            return upstream(self._have[role]["version"])
        kernel = self.kernel(role)
        return kernel.upstream if kernel else ()

    def _release(self, role: str) -> str:
        if role in self._have:
            return str(self._have[role]["release"])
        kernel = self.kernel(role)
        return kernel.release if kernel else ""

    @staticmethod
    def _first(kernels: Sequence[Kernel], role: str) -> Kernel:
        if not kernels:
            raise KitError(f"apt offers no kernel for the role {role}")
        return kernels[0]
