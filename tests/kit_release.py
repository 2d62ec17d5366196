"""Releases of the simulated OpenShift whose kernels and toolkits are real: those of the kit."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

from attrs import frozen
from pod_node import lay_out_module_tree
from upgrade_world import Release
from vm.kit import KitKernel


@frozen
class KitRelease(Release):
    """A release of a kernel of the kit, and of a toolkit for it; `trees` has the kernel's module folder."""

    kit: Optional[KitKernel] = None
    toolkit: Optional[Path] = None
    trees: Optional[Path] = None

    def kernel(self, arch: str) -> str:
        assert self.kit is not None
        return self.kit.release


def kit_release(number: int, kernel: KitKernel, toolkit: Path, folder: Path) -> KitRelease:
    """A release whose module folder is laid out in `folder`, for all nodes."""
    lay_out_module_tree(kernel, folder / str(number) / kernel.release)
    return KitRelease(number, 0, kernel, toolkit, folder / str(number))
