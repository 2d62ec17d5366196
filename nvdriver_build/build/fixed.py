"""What is changed in NVIDIA's build files: fixed places that they read behind one's back, and slow ways.

nvidia-peermem.Kbuild and conftest.sh look for MOFED at /usr/src/ofa_kernel and below /var/lib/dkms, newer
drivers (595) for Tegra's sources too, and Kbuild for /proc/sgi_uv, to look for devices in another way there.
What lies there would be in the modules and not in their key. The build sees copies of these files that look
below its own folder, where only what we put is.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Iterator

MOFED = "/usr/src/ofa_kernel"
FIXED = (MOFED, "/var/lib/dkms/mlnx-ofed-kernel", "/usr/src/nvidia/nvidia-public", "/proc/sgi_uv")
_OUTSIDE = "outside"
_BUILD_FILE = re.compile(r"(^|/)(conftest\.sh|Makefile|Kbuild|[^/]+\.(Kbuild|mk))$")
_PLACE = re.compile(
    r"^[^#\n]*?((?<![\w)}])/(?:usr/src|var/lib)/(?:[\w./*-]|\$\(\w+\)|\$\{\w+\})*)", re.MULTILINE
)

_ASKS = re.compile(rb"^NV_CONFTEST_CFLAGS[ \t]*=", re.MULTILINE)
_ONCE = b"""
NVDRIVER_CONFTEST_CFLAGS := $(value NV_CONFTEST_CFLAGS)
NV_CONFTEST_CFLAGS = $(eval NV_CONFTEST_CFLAGS := $(NVDRIVER_CONFTEST_CFLAGS))$(NV_CONFTEST_CFLAGS)
"""
"""As GNU make's manual has it for a variable that is expanded when it is first used, and then no more."""

_WAITS = (
    (b"$(addprefix $(obj)/,$(NV_OBJECTS_DEPEND_ON_CONFTEST)):", b" | ", b"$(NV_CONFTEST_HEADERS)", b"ready"),
    (b"$(obj)/conftest/compile-tests/%.h: $(NV_CONFTEST_SCRIPT)", b" ", b"$(NV_CONFTEST_HEADER)", b"found"),
)
"""A rule of NVIDIA's Kbuild file, what joins it to what it waits for, and a name for that."""
_NAMED = b"\n.PHONY: $(obj)/conftest/%s\n$(obj)/conftest/%s: %s\n%s | $(obj)/conftest/%s\n"


def place_in(tree: Path, path: str) -> Path:
    """Where the build folder `tree` has what the driver looks for at the absolute `path`."""
    return tree / _OUTSIDE / path.lstrip("/")


def is_build_file(name: str) -> bool:
    """Whether make or the shell read this file of a driver's source."""
    return bool(_BUILD_FILE.search(name))


def adapt(text: bytes, tree: Path) -> bytes:
    """The text of a build file for a build in the folder `tree`; equal where nothing is to be changed."""
    return wait_by_name(once(redirect(text, tree)))


def redirect(text: bytes, tree: Path) -> bytes:
    """The text of a build file with every fixed place moved into `tree`; equal where it names none."""
    for path in FIXED:
        text = text.replace(path.encode(), str(place_in(tree, path)).encode())
    return text


def once(text: bytes) -> bytes:
    """The text of a Kbuild file in which the flags of conftest are found once, instead of before each test.

    They hold three questions to the compiler (cc-option), which make asks one after the other.
    """
    return text + _ONCE if _ASKS.search(text) else text


def wait_by_name(text: bytes) -> bytes:
    """The text of a Kbuild file whose objects and tests wait for conftest's headers by phony names.

    Kbuild makes every file a secondary one (`.SECONDARY:` in scripts/Kbuild.include). GNU make walks through
    these anew on each path that leads to them (check_dep in its remake.c), from each of 200 objects through
    300 tests and 100 headers: more than 10 s of a build. Through a phony name it walks less often.
    """
    for rule, join, awaited, name in _WAITS:
        named = b"\n" + _NAMED % (name, name, awaited, rule, name)
        text = text.replace(b"\n" + rule + join + awaited + b"\n", named)
    return text


def unknown_places(text: bytes) -> Iterator[str]:
    """Other fixed places that lines of a build file name, comments aside."""
    for match in _PLACE.finditer(text.decode("utf-8", "replace")):
        if not match.group(1).startswith(FIXED):
            yield match.group(1)
