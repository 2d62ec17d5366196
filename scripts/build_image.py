"""Build the driver image of one driver version.

    scripts/build-image --driver-version V --run-file F --sha256 S     with NVIDIA's user space
    scripts/build-image --driver-version V --source DIR_OR_TARBALL     kernel modules only

On UBI 9 minimal, which --base replaces. --base-rootfs takes a folder as the base: a root file system with
python3, bash, kmod, mount, prlimit, procps, openssl and zstd, so that nothing is fetched. --toolkit takes a
Driver Toolkit image and gives the image of the one-container way, which builds the modules in itself.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Callable, Iterator, List, Mapping, Optional, Sequence

import bundle

from nvdriver_build import __version__
from nvdriver_build.commands import SystemCommands
from nvdriver_build.errors import NvdriverError, SourceError, UsageError
from nvdriver_build.files import sha256_file
from nvdriver_build.source import OPEN, PROPRIETARY, Source, open_source

ROOT = bundle.ROOT
CONTAINER = ROOT / "container"
FOLDERS = {OPEN: "kernel-open", PROPRIETARY: "kernel"}
"""The folders of an unpacked .run."""


def main() -> int:
    return run("build-image", arguments(), lay_out, build)


def run(
    program: str,
    given: argparse.Namespace,
    lay_out: Callable[[Path, argparse.Namespace], None],
    build: Callable[[Path, Optional[str], argparse.Namespace], None],
) -> int:
    """Lay out a context and build in it; the exit code. Errors are told as of `program`."""
    os.umask(0o022)
    try:
        with tempfile.TemporaryDirectory(prefix="build-image-") as work:
            context = Path(work) / "context"
            lay_out(context, given)
            with base_image(given) as base:
                build(context, base, given)
        print(given.tag)
    except NvdriverError as error:
        print(f"{program}: error: {error.message}", file=sys.stderr)
        print(f"{program}: hint: {error.hint}", file=sys.stderr)
        return error.exit_code
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return 1
    return 0


def arguments() -> argparse.Namespace:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("build-image", description=__doc__, formatter_class=layout)
    parser.add_argument("--driver-version", required=True, metavar="V")
    driver = parser.add_mutually_exclusive_group(required=True)
    driver.add_argument("--run-file", type=Path, metavar="FILE")
    driver.add_argument("--source", type=Path, metavar="DIR", help="NVIDIA's unpacked source, or its tarball")
    parser.add_argument("--sha256", default="", help="of the .run file, which is executed")
    base = parser.add_mutually_exclusive_group()
    base.add_argument("--base", metavar="IMAGE")
    base.add_argument("--base-rootfs", type=Path, metavar="DIR")
    base.add_argument("--toolkit", metavar="IMAGE")
    parser.add_argument("--tag", metavar="T", help="default: localhost/nvdriver-build:V")
    parser.add_argument(
        "--builder", default=default_builder(), metavar="PROGRAM", help="default: %(default)s"
    )
    given = parser.parse_args()
    if bool(given.run_file) != bool(given.sha256):
        parser.error("--run-file and --sha256 belong together: the file is a program that is executed")
    given.tag = given.tag or f"localhost/nvdriver-build:{given.driver_version}"
    return given


def default_builder() -> str:
    return "podman" if shutil.which("podman") or not shutil.which("buildah") else "buildah"


def lay_out(context: Path, given: argparse.Namespace) -> None:
    """The build context: the bundle, the programs, the driver."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    bundle.bundle(context / "bundle", cache / "nvdriver-build/wheels", epoch())
    (context / "bin").mkdir()
    for name in ("nvdriver-build", "nvidia-driver", "ocp_dtk_entrypoint"):
        shutil.copy(CONTAINER / name, context / "bin")
    for path in (*CONTAINER.glob("install-*"), *CONTAINER.glob("Containerfile*"), ROOT / "LICENSE"):
        shutil.copy(path, context)
    (context / "driver").mkdir()
    if given.run_file:
        add_run(given.run_file, given.sha256, context / "driver")
    else:
        add_trees(given.source, given.driver_version, context / "driver")


def epoch() -> int:
    return int(os.environ.get("SOURCE_DATE_EPOCH") or bundle.OLDEST_ZIP)


def add_run(run_file: Path, expected: str, folder: Path) -> None:
    copy = folder / "driver.run"
    shutil.copyfile(run_file, copy)
    found = sha256_file(copy)
    if found != expected.lower():
        raise SourceError(
            f"{run_file} has the sha256 {found}, not {expected}",
            hint="compare it with the sum that NVIDIA publishes",
        )


def add_trees(place: Path, version: str, folder: Path) -> None:
    """The kernel trees of a source, open and proprietary where both are there, without build products."""
    with tempfile.TemporaryDirectory(prefix="build-image-") as work:
        for source in sources(place, Path(work)):
            if source.version != version:
                raise SourceError(
                    f"{place} is driver {source.version}, not {version}", hint="give its --driver-version"
                )
            for name in source.names:
                copy = folder / FOLDERS[source.kind] / name
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source.root / name, copy)


def sources(place: Path, work: Path) -> Iterator[Source]:
    """What `place` has of the two kinds; the error of opening it where it has none."""
    if place.suffix == ".run":
        raise UsageError(f"{place} is a .run file", hint="give it as --run-file, with its --sha256")
    errors = []
    for kind in FOLDERS:
        try:
            yield open_source(place, kind, work / kind, SystemCommands(os.environ.get("PATH", "")))
        except SourceError as error:
            errors.append(error)
    if len(errors) == len(FOLDERS):
        raise errors[0]


@contextlib.contextmanager
def base_image(given: argparse.Namespace) -> Iterator[Optional[str]]:
    """What the image is built on, None for the default; an imported one has no name afterwards."""
    if not given.base_rootfs:
        yield given.toolkit or given.base
        return
    name = f"localhost/nvdriver-build-base:{os.getpid()}"
    import_root(given.builder, given.base_rootfs, name)
    try:
        yield name
    finally:
        subprocess.run([given.builder, "rmi", name], stdout=subprocess.DEVNULL, check=False)


def import_root(builder: str, root: Path, name: str) -> None:
    """An image of a root file system: podman import takes a tar, buildah none."""
    if Path(builder).name != "podman":
        raise UsageError(f"{builder} cannot import a root file system", hint="use --builder podman")
    pack = ["tar", "--numeric-owner", "-C", str(root), "-c", "."]
    with subprocess.Popen(pack, stdout=subprocess.PIPE) as tar:
        subprocess.run([builder, "import", "-q", "-", name], stdin=tar.stdout, stdout=sys.stderr, check=True)
    if tar.returncode:
        raise subprocess.CalledProcessError(tar.returncode, pack)


def build(context: Path, base: Optional[str], given: argparse.Namespace) -> None:
    values = {
        "BASE_IMAGE": base,
        "DRIVER_VERSION": given.driver_version,
        "RUN_SHA256": given.sha256.lower(),
        "VERSION": __version__,
        "REVISION": revision(),
    }
    build_with(given, context, "Containerfile.dtk" if given.toolkit else "Containerfile", values)


def build_with(
    given: argparse.Namespace, context: Path, file: str, values: Mapping[str, Optional[str]]
) -> None:
    """Run the builder; a value that is None is the Containerfile's own."""
    argv = [given.builder, "build", "--timestamp", str(epoch()), "--format", "oci", "--layers=false"]
    argv += ["--file", str(context / file), "--tag", given.tag]
    for name, value in values.items():
        argv += ["--build-arg", f"{name}={value}"] if value is not None else []
    subprocess.run([*argv, *offline(given.base_rootfs), str(context)], check=True, stdout=sys.stderr)


def offline(base_rootfs: Optional[Path]) -> Sequence[str]:
    """A local root file system has all that is needed: no network, and nothing is pulled."""
    return ("--network=none", "--pull=never") if base_rootfs else ()


def revision() -> str:
    argv: List[str] = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    try:
        return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


if __name__ == "__main__":
    sys.exit(main())
