"""Starts nvdriver-build from the folder that this file lies in: what scripts/bundle has made.

Only psutil has a compiled part; machine/ holds it once for x86_64 and once for aarch64. Python 3.6
can read this file, so that one that is too old says so.
"""

import platform
import sys
from pathlib import Path

OLDEST = (3, 9)
WRONG_TOOLKIT = 10
"""The exit code of a toolkit that does not fit (docs/contracts.md)."""


def main() -> None:
    """The command line of nvdriver-build; what the system's Python has installed comes after what is here."""
    if sys.version_info < OLDEST:
        version = platform.python_version()
        sys.stderr.write(f"error: this is Python {version}\nhint: 3.9 or later is needed\n")
        sys.exit(WRONG_TOOLKIT)
    here = Path(__file__).resolve().parent
    sys.path[:0] = [str(here), str(here / "machine" / platform.machine())]
    from nvdriver_build.cli import main as command

    command()


if __name__ == "__main__":
    sys.argv[0] = "nvdriver-build"
    main()
