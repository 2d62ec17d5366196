"""Build the kernel modules that a Driver Toolkit image is for, in one container on this machine.

    scripts/local-build TOOLKIT --source SOURCE --output DIR [OPTIONS of `nvdriver-build build`]

TOOLKIT is the pull spec of a Driver Toolkit image, or a folder that holds the root of one:

    scripts/local-build "$(oc adm release info --image-for=driver-toolkit VERSION)" --source NVIDIA.run \\
        --run-sha256 SUM --output out

The container has no network and no privileges; it sees the source and this package, both read-only, and DIR:
    set/        the modules and manifest.json
    build.log   what make said
    store/      what a second run takes instead of building

OPTIONS that name other files find none: sign afterwards, with `nvdriver-build sign DIR/set`. Nor do settings
of the environment reach the container; podman's do (REGISTRY_AUTH_FILE).
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import List, Tuple

import bundle

STARTER = bundle.ROOT / "container/nvdriver-build"
SITE_PACKAGES = "/usr/lib/nvdriver-build/site-packages"


def main() -> int:
    given, more = arguments()
    os.umask(0o022)
    began = time.time()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    try:
        given.output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="local-build-") as work:
            bundle.bundle(Path(work), cache / "nvdriver-build/wheels", bundle.OLDEST_ZIP)
            code = run(container(given, Path(work)) + words(given, more))
        keep_log(given.output, began)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"local-build: error: {error}", file=sys.stderr)
        return 1
    return code


def run(argv: List[str]) -> int:
    """podman passes a signal on to the build, which ends its compilers, and then takes the container away."""
    with subprocess.Popen(argv) as process:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: process.terminate())
        return process.wait()


def arguments() -> Tuple[argparse.Namespace, List[str]]:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("local-build", description=__doc__, formatter_class=layout)
    parser.add_argument("toolkit", metavar="TOOLKIT")
    parser.add_argument("--source", type=Path, required=True, help="a tree, a tarball or a .run file")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--podman", default="podman", metavar="PROGRAM", help="default: %(default)s")
    given, more = parser.parse_known_args()
    given.source, given.output = given.source.absolute(), given.output.absolute()
    if not given.source.exists():
        parser.error(f"there is no source at {given.source}")
    if not shutil.which(given.podman):
        parser.error(f"{given.podman} is not installed")
    return given, more


def container(given: argparse.Namespace, work: Path) -> List[str]:
    """The output has one path inside and outside, so that messages that name a file are right."""
    mounts = [
        f"{work / 'site-packages'}:{SITE_PACKAGES}:ro",
        f"{STARTER}:/usr/local/bin/nvdriver-build:ro",
        f"{given.source}:{inside(given.source)}:ro",
        f"{given.output}:{given.output}",
    ]
    argv = [given.podman, "run", "--rm", "--network=none", "--cap-drop=all", "--user=0:0"]
    argv += ["--security-opt=no-new-privileges", "--security-opt=label=disable", "--workdir=/"]
    argv += ["--tty"] if sys.stdin.isatty() and sys.stderr.isatty() else []
    argv += [f"--env=NVDRIVER_STORE={given.output}/store", "--entrypoint=/usr/local/bin/nvdriver-build"]
    argv += [f"--volume={mount}" for mount in mounts]
    return [*argv, *image(given.toolkit)]


def inside(source: Path) -> str:
    """What a file is shows in the end of its name."""
    return f"/source/{source.name}"


def image(toolkit: str) -> Tuple[str, ...]:
    """A folder stays as it is: an overlay takes what the container writes."""
    folder = Path(toolkit)
    return ("--rootfs", f"{folder.absolute()}:O") if folder.is_dir() else (toolkit,)


def words(given: argparse.Namespace, more: List[str]) -> List[str]:
    argv = ["build", "--source", inside(given.source), "--headers", "/"]
    return [*argv, "--output", f"{given.output}/set", *more]


def keep_log(output: Path, began: float) -> None:
    """The store keeps a log for each key; the last one is that of this build, if it came so far."""
    logs = sorted((output / "store").glob("logs/*"), key=lambda path: path.stat().st_mtime)
    if logs and logs[-1].stat().st_mtime >= began:
        shutil.copyfile(logs[-1], output / "build.log")


if __name__ == "__main__":
    sys.exit(main())
