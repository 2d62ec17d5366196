"""Build the controller's image, in which `nvdriver-build fleet watch` runs.

    scripts/build-fleet-image --tag registry.example.com/gpu/nvdriver-build-fleet:0.1

On UBI 9 minimal with Python 3.12, which --base replaces: any image with Python 3.11 to 3.13, or with a
package manager that has it. --base-rootfs takes a folder as the base, which has Python and openssl: nothing
is fetched.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import Optional

import bundle
from build_image import CONTAINER, ROOT, build_with, default_builder, epoch, revision, run

from nvdriver_build import __version__


def main() -> int:
    return run("build-fleet-image", arguments(), lay_out, build)


def arguments() -> argparse.Namespace:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("build-fleet-image", description=__doc__, formatter_class=layout)
    base = parser.add_mutually_exclusive_group()
    base.add_argument("--base", metavar="IMAGE")
    base.add_argument("--base-rootfs", type=Path, metavar="DIR")
    tag = f"localhost/nvdriver-build-fleet:{__version__}"
    parser.add_argument("--tag", metavar="T", default=tag, help="default: %(default)s")
    parser.add_argument(
        "--builder", default=default_builder(), metavar="PROGRAM", help="default: %(default)s"
    )
    given = parser.parse_args()
    given.toolkit = None
    return given


def lay_out(context: Path, given: argparse.Namespace) -> None:
    """The build context: the package with its dependencies, and what installs it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    context.mkdir(parents=True)
    bundle.fleet(context / "site-packages", cache / "nvdriver-build/wheels", epoch())
    for name in ("Containerfile.fleet", "install-fleet"):
        shutil.copy(CONTAINER / name, context)
    shutil.copy(ROOT / "LICENSE", context)


def build(context: Path, base: Optional[str], given: argparse.Namespace) -> None:
    values = {"BASE_IMAGE": base, "VERSION": __version__, "REVISION": revision()}
    build_with(given, context, "Containerfile.fleet", values)


if __name__ == "__main__":
    sys.exit(main())
