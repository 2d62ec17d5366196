"""Make what runs where no pip and no network is: the package with its dependencies, for Python 3.9 and later.

    scripts/bundle [--output DIR]      default: dist/bundle

What it leaves in DIR, whole or not at all:
    nvdriver-build.pyz   one file, for the Driver Toolkit: PYTHON -I nvdriver-build.pyz
                         (made by shiv; it unpacks to SHIV_ROOT)
    site-packages/       the same as a folder, for images: PYTHON -I site-packages/nvdriver_bundle.py

Both hold psutil for x86_64 and aarch64, and nothing else that is compiled: modules that are compressed with
zstd cannot be read with them. container/bundle.lock names every dependency with its sum. Wheels are kept in
the user's cache, so that only the first run needs the package index. Equal sources give equal bytes; their
time is SOURCE_DATE_EPOCH, or 1980.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Dict, List, Sequence

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "container/bundle.lock"
FLEET_LOCK = ROOT / "container/fleet.lock"
START = ROOT / "container/nvdriver_bundle.py"
MACHINES = ("x86_64", "aarch64")
PYTHONS, FLEET_PYTHONS = ("3.9",), ("3.11", "3.12", "3.13")
"""For which wheels are fetched. What is compiled for one Python lies beside what is for another."""
OLDEST_ZIP = 315532800
"""1 January 1980, the first time that a zip file can tell."""


def wheels(house: Path, lock_file: Path = LOCK, pythons: Sequence[str] = PYTHONS) -> List[Path]:
    """The wheels of the lock, fetched into `house` where they are not there yet; the sums are the lock's."""
    house.mkdir(parents=True, exist_ok=True)
    with (house / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sums = [line.split(":")[1].rstrip(" \\\n") for line in lock_file.open() if "--hash=sha256:" in line]
        found = by_sum(house)
        if not all(known in found for known in sums):
            for stranger in found.keys() - set(sums):
                found[stranger].unlink()
            for machine, python in itertools.product(MACHINES, pythons):
                download(house, machine, lock_file, python)
            found = by_sum(house)
    return [found[known] for known in sums]


def by_sum(house: Path) -> Dict[str, Path]:
    return {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in house.glob("*.whl")}


def download(house: Path, machine: str, lock_file: Path, python: str) -> None:
    argv = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--require-hashes"]
    argv += ["--no-deps", "--only-binary=:all:", "--implementation=cp", f"--python-version={python}"]
    argv += [
        f"--platform=manylinux2014_{machine}",
        f"--dest={house}",
        f"--find-links={house}",
        f"--requirement={lock_file}",
    ]
    subprocess.run(argv, check=True, stdout=sys.stderr)


def fill(folder: Path, house: Path) -> None:
    """Lay out site-packages: the package, its dependencies, psutil once for each machine."""
    for wheel in wheels(house):
        machine = next((name for name in MACHINES if name in wheel.name), None)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / "machine" / machine if machine else folder)
    shutil.copytree(
        ROOT / "nvdriver_build", folder / "nvdriver_build", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(START, folder)


def fleet(folder: Path, house: Path, epoch: int) -> None:
    """The same with the extra `fleet`, for the controller's image: Python 3.11 to 3.13, both machines."""
    fill(folder, house)
    for wheel in wheels(house / "fleet", FLEET_LOCK, FLEET_PYTHONS):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    settle(folder, epoch)


def settle(folder: Path, epoch: int) -> None:
    """The same modes and times, whoever made it and when."""
    for path in sorted(folder.rglob("*"), reverse=True):
        path.chmod(0o755 if path.is_dir() else 0o644)
        os.utime(path, (epoch, epoch))
    os.utime(folder, (epoch, epoch))


def one_file(folder: Path, file: Path, epoch: int) -> None:
    argv = [sys.executable, "-m", "shiv.cli", "--site-packages", str(folder), "--output-file", str(file)]
    argv += ["--entry-point", "nvdriver_bundle:main", "--python", "/usr/bin/python3 -I"]
    argv += ["--compressed", "--reproducible"]
    subprocess.run(argv, check=True, stdout=sys.stderr, env={**os.environ, "SOURCE_DATE_EPOCH": str(epoch)})


def bundle(output: Path, house: Path, epoch: int) -> None:
    """Make both in a folder beside, then put each in its place."""
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=output) as private:
        folder, file = Path(private) / "site-packages", Path(private) / "nvdriver-build.pyz"
        fill(folder, house)
        settle(folder, epoch)
        one_file(folder, file, epoch)
        if (output / folder.name).exists():
            (output / folder.name).rename(Path(private) / "old")
        folder.rename(output / folder.name)
        file.rename(output / file.name)


def main() -> int:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--output", type=Path, default=ROOT / "dist/bundle", help="default: dist/bundle")
    given = parser.parse_args()
    os.umask(0o022)
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH") or OLDEST_ZIP)
    try:
        bundle(given.output.absolute(), cache / "nvdriver-build/wheels", epoch)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"bundle: error: {error}", file=sys.stderr)
        return 1
    print(given.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
