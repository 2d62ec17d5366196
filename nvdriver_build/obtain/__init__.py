"""Where modules come from, in order: the store, its sets of other kernels, a registry, a build.

What is loaded already stays: `node`. Every way ends in the same `check_fit` against the kernel, and none
falls back to package repositories.
"""

from nvdriver_build.obtain.fitting import UNENFORCED, require_fit, unfit
from nvdriver_build.obtain.outside import Outside, vouching
from nvdriver_build.obtain.prebuilding import Prebuilt, prebuild
from nvdriver_build.obtain.ways import build_ordered, obtain
from nvdriver_build.obtain.wish import Elsewhere, Obtained, Wish, modules_to_build, opened_source

__all__ = [
    "UNENFORCED",
    "Elsewhere",
    "Obtained",
    "Outside",
    "Prebuilt",
    "Wish",
    "build_ordered",
    "modules_to_build",
    "obtain",
    "opened_source",
    "prebuild",
    "require_fit",
    "unfit",
    "vouching",
]
