"""Ways to damage a kernel tree of the sample driver (`dest/kernel-open` or `dest/kernel`)."""

from __future__ import annotations

from pathlib import Path
from typing import Tuple

from . import CORE_OBJECTS, replace_text

C_ERROR = ("nvidia-uvm/uvm_va_space.c", "'struct uvm_va_space' has no member named 'no_such_member'")
"""File (in the tree) and message of gcc for what `break_c` puts there."""


def break_c(tree: Path) -> Tuple[str, int, str]:
    """Put a C error into nvidia-uvm; return file, line and gcc's message (with quotes as in the C locale)."""
    file, message = C_ERROR
    good, bad = "\tmutex_init(&va_space->lock);\n", "\tva_space->no_such_member = 1;\n"
    replace_text(tree / file, good, good + bad)
    before = (tree / file).read_text().split(bad)[0]
    return file, before.count("\n") + 1, message


def make_conftest_noisy(tree: Path) -> None:
    """Let the conftest step print the compiler's errors of its tests, though nothing is wrong."""
    replace_text(tree / "conftest.sh", '"$@" > /dev/null 2>&1', '"$@" 1>&2')


def remove_core_objects(tree: Path) -> None:
    """Leave the tree as in the public repository, which has no prebuilt core objects."""
    for core in CORE_OBJECTS:
        (tree / core).unlink()
