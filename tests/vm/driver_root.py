"""The driver image's root file system without podman: the steps of container/Containerfile, by chroot.

driver_root(real_source)     # Path: made once for each state of the code, kept in the user's cache

It holds two drivers, of which DRIVER_VERSION names one: the sample driver from a .run, with its user space,
and the real kernel tree. Its files are hard links to those of the kit: put an overlay over it, never write
to it.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

import filelock
from bundled import ROOT, make_bundle
from real_build import CACHE
from sample_driver import user_space

from .kit import load_kit

REAL_VERSION = "535.261.03"
_MAKERS = (
    "nvdriver_build",
    "container",
    "tests/sample_driver",
    "scripts/bundle.py",
    "tests/vm/driver_root.py",
)
_PROGRAMS = ("nvdriver-build", "nvidia-driver", "ocp_dtk_entrypoint")
_IN_IMAGE = """
mount --rbind /dev "$1/dev"
exec chroot "$1" sh -ec '
sh /context/install-programs /context/driver
mkdir -p /usr/lib/nvdriver-build /usr/libexec/nvdriver-build /usr/local/bin
cp -R /context/bundle/site-packages /usr/lib/nvdriver-build/
cp /context/bundle/nvdriver-build.pyz /context/bin/ocp_dtk_entrypoint /usr/libexec/nvdriver-build/
cp /context/bin/* /usr/local/bin/
sh /context/install-bundle
sh /context/install-driver /context/driver "$1" "$2"
' sh "$2" "$3"
"""
_PERSISTENCED = """\
#!/bin/sh
# Stands in for nvidia-persistenced: goes into the background and writes its pid, as that does.
[ "${1:-}" = --in-background ] || { setsid "$0" --in-background </dev/null >/dev/null 2>&1 & exit 0; }
mkdir -p /var/run/nvidia-persistenced
echo $$ >/var/run/nvidia-persistenced/nvidia-persistenced.pid
trap 'kill $!; exit 0' TERM
while :; do sleep 3600 & wait $!; done
"""


def driver_root(real_source: Path) -> Path:
    """The image's root; AssertionError with what an install script said where one fails."""
    base = load_kit("node").root("node")
    place = CACHE / "roots" / f"driver-{_digest(base, real_source)}"
    place.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{place.parent}/driver.lock"):
        if not place.exists():
            for old in place.parent.glob("driver-*"):
                shutil.rmtree(old)
            with tempfile.TemporaryDirectory(prefix=".new-", dir=place.parent) as private:
                root = Path(private) / "root"
                _link(base, root)
                _install(root, Path(private))
                _add_real(root, real_source)
                root.rename(place)
    return place


def _install(root: Path, private: Path) -> None:
    run = user_space.make_run_file(private)
    context = root / "context"
    made = make_bundle(context / "bundle")
    assert made.returncode == 0, made.stderr
    for folder in ("bin", "driver"):
        (context / folder).mkdir()
    for name in _PROGRAMS:
        shutil.copy(ROOT / "container" / name, context / "bin")
    for path in ROOT.glob("container/install-*"):
        shutil.copy(path, context)
    shutil.copy(run.path, context / "driver")
    argv = ["unshare", "--mount", "sh", "-ec", _IN_IMAGE, "sh", str(root), run.version, run.sha256]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.rmtree(context)


def _add_real(root: Path, source: Path) -> None:
    """As install-driver puts a source tree, and the daemon of its user space."""
    place = root / f"usr/src/nvidia-{REAL_VERSION}/kernel-open"
    place.parent.mkdir()
    _link(source, place)
    daemon = root / "usr/bin/nvidia-persistenced"
    daemon.write_text(_PERSISTENCED)
    daemon.chmod(0o755)


def _link(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-al", str(source), str(target)], check=True)


def _digest(*folders: Path) -> str:
    """Of all that goes into the root."""
    digest = hashlib.sha256()
    for top in _MAKERS:
        place = ROOT / top
        for path in [place] if place.is_file() else sorted(place.rglob("*")):
            if path.is_file() and path.suffix != ".pyc":
                digest.update(str(path).encode() + path.read_bytes())
    marks = [f"{path} {path.stat().st_ino} {path.stat().st_mtime_ns}" for path in folders]
    digest.update("\n".join(marks).encode())
    return digest.hexdigest()[:16]
