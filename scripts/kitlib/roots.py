"""Root file systems of Debian packages, unpacked but not configured: no maintainer script runs.

No ldconfig either, which needs root: Debian's loader knows the folders of Debian's libraries without it.
"""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kitlib.apt import Apt, KitError

_BASE = (
    "base-files base-passwd bash coreutils findutils grep gzip hostname kmod mount openssl procps python3"
    " sed tar util-linux xz-utils zstd"
)
ROOTS = {
    "toolkit": f"{_BASE} binutils gawk gcc-12 libelf-dev make",
    "node": f"{_BASE} libc-bin libglvnd0",
}
"""What is asked of apt: `toolkit` has what the Driver Toolkit has, `node` what a driver image needs."""
_MADE_OF = "etc/kit-packages"
_MERGED = ("bin", "sbin", "lib", "lib64")
"""Folders that are links into /usr, though packages have files in them (Debian's usrmerge)."""
_NAMES = {"awk": "gawk", "cc": "gcc-12", "gcc": "gcc-12", "sh": "bash", "which": "which.debianutils"}
"""What maintainer scripts link in /usr/bin (update-alternatives), or gcc's own package."""


def unpack_root(apt: Apt, role: str, work: Path) -> None:
    """Make the folder `work/ROLE`, which one can chroot into."""
    root, debs = work / role, work / f"{role}.debs"
    apt.download_closure(ROOTS[role].split(), debs)
    for name in _MERGED:
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda deb: _unpack(deb, root), sorted(debs.glob("*.deb"))))
    _configure(root)
    (root / _MADE_OF).write_text(ROOTS[role])


def is_current(root: Path, role: str) -> bool:
    """Whether a root is made of what is asked for today."""
    try:
        return (root / _MADE_OF).read_text() == ROOTS[role]
    except OSError:
        return False


def _unpack(deb: Path, root: Path) -> None:
    """dpkg-deb -x would put a folder in place of a link."""
    tar = ["tar", "-x", "--keep-directory-symlink", "-C", str(root)]
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE) as packed:
        done = subprocess.run(tar, stdin=packed.stdout, capture_output=True, text=True, check=False)
    if packed.returncode or done.returncode:
        raise KitError(f"{deb.name} cannot be unpacked: {done.stderr[-500:]}")


def _configure(root: Path) -> None:
    for name in ("passwd", "group"):
        (root / f"etc/{name}").write_text((root / f"usr/share/base-passwd/{name}.master").read_text())
    for name, target in _NAMES.items():
        if (root / "usr/bin" / target).exists() and not (root / "usr/bin" / name).exists():
            (root / "usr/bin" / name).symlink_to(target)
