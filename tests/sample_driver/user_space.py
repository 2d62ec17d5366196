"""The user space of the sample driver: what a `.run` holds beside kernel trees, as stubs that say so."""

from __future__ import annotations

import hashlib
from pathlib import Path

from attrs import frozen

from sample_driver import VERSION, make_sample_driver
from sample_driver.archives import pack_run

FLAGS_FILE = "usr/share/nvidia/installer-flags"
"""Below the root that the installer ran in: its flags, one a line."""
_INSTALLER = """\
#!/bin/sh
# Stands in for nvidia-installer: writes down its flags and installs what stands in for user space.
version=@VERSION@
case " $* " in
*" --print-recommended-kernel-module-type "*) echo open; exit 0 ;;
*" --silent "*) ;;
*) echo "the sample's installer asks nobody" >&2; exit 1 ;;
esac
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p /usr/share/nvidia /tmp/null "/lib/firmware/nvidia/$version"
printf '%s\\n' "$@" >/@FLAGS@
cp "$here/nvidia-smi" "$here/nvidia-installer" /usr/bin/
cp "$here"/firmware/*.bin "/lib/firmware/nvidia/$version/"
echo "installed" >/var/log/nvidia-installer.log
"""
_SMI = """\
#!/bin/sh
echo "This stands in for nvidia-smi of the sample driver @VERSION@"
[ -e /sys/module/nvidia/refcnt ]
"""


@frozen
class RunFile:
    """A look-alike of NVIDIA's .run file, with user space and firmware."""

    path: Path
    version: str
    sha256: str


def make_run_file(folder: Path) -> RunFile:
    """The sample driver as a .run in a folder that is there."""
    tree = add_user_space(make_sample_driver(folder / "sample"), VERSION)
    path = pack_run(tree, folder / f"NVIDIA-Linux-x86_64-{VERSION}.run", VERSION)
    return RunFile(path, VERSION, hashlib.sha256(path.read_bytes()).hexdigest())


def add_user_space(root: Path, version: str) -> Path:
    """Put an installer, an nvidia-smi and a licence into a sample driver's tree; return it."""
    for name, text in (("nvidia-installer", _INSTALLER), ("nvidia-smi", _SMI)):
        (root / name).write_text(text.replace("@VERSION@", version).replace("@FLAGS@", FLAGS_FILE))
        (root / name).chmod(0o755)
    (root / "LICENSE").write_text("The licence of the sample driver.\n")
    return root
