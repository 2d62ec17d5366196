"""Kernels of the kit, the fake GPU, and a VM for each test that boots one."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import pytest

from . import fakegpu as fakegpu_source
from .kit import Kit, KitKernel, load_kit
from .machine import Machine

Boot = Callable[..., Machine]


@pytest.fixture(scope="session")
def kit() -> Kit:
    return load_kit("a", "b", "busybox")


@pytest.fixture(scope="session")
def kernel_a(kit: Kit) -> KitKernel:
    return kit.kernel("a")


@pytest.fixture(scope="session")
def kernel_b(kit: Kit) -> KitKernel:
    return kit.kernel("b")


@pytest.fixture(scope="session")
def fakegpu(kernel_a: KitKernel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fakegpu.ko for kernel A."""
    return fakegpu_source.build(kernel_a, tmp_path_factory.mktemp("fakegpu"))


@pytest.fixture
def boot(kit: Kit, tmp_path: Path) -> Boot:
    """`with boot(kernel_a, append="") as vm`: a VM in the test's own folder, one a test."""
    return lambda kernel, append="": Machine(kernel, kit.busybox, tmp_path, append)
