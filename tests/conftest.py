"""What tests of several folders share: kernels and sources of the kit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import List

import pytest
from hypothesis import HealthCheck, settings
from real_build import RealBuild, build_real, unpacked
from vm.kit import KitKernel, load_kit

# CI judges a change by the same examples each time; at a desk every run looks for new ones. These machines
# are too uneven for time limits, on an example or on its making.
settings.register_profile("desk", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("desk"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "desk")


def pytest_itemcollected(item: pytest.Item) -> None:
    """A file that boots machines, starts containers or builds the real source does so in one worker, once."""
    heavy = any(item.get_closest_marker(name) for name in ("vm", "podman", "real"))
    if heavy and item.get_closest_marker("xdist_group") is None:
        item.add_marker(pytest.mark.xdist_group(item.path.stem))


def pytest_collection_modifyitems(items: List[pytest.Item]) -> None:
    """The longest chains first: what one worker has to do one after the other must not begin at the end."""
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)


def _kernel(role: str) -> KitKernel:
    """A kernel of the kit; the test is skipped where apt offers none for that role."""
    kit = load_kit(role)
    if kit.document["kernels"][role] is None:
        pytest.skip(f"apt offers no kernel for the role {role}")
    return kit.kernel(role)


@pytest.fixture(scope="session")
def kernel_a() -> KitKernel:
    """The kernel that most tests build for; it has image, modules and headers."""
    return _kernel("a")


@pytest.fixture(scope="session")
def kernel_b() -> KitKernel:
    """A kernel of another ABI than A; it has image, modules and headers."""
    return _kernel("b")


@pytest.fixture(scope="session")
def kernel_rt() -> KitKernel:
    """The PREEMPT_RT kernel of A's version; headers only."""
    return _kernel("rt")


@pytest.fixture(scope="session")
def kernel_cloud() -> KitKernel:
    """The cloud kernel of A's version, with another configuration; headers only."""
    return _kernel("cloud")


@pytest.fixture(scope="session")
def kernel_future() -> KitKernel:
    """A kernel that the real driver is too old for; headers only."""
    return _kernel("future")


@pytest.fixture(scope="session")
def kernel_sibling() -> KitKernel:
    """A kernel of the same upstream version as `kernel_future`; headers only."""
    return _kernel("sibling")


@pytest.fixture(scope="session")
def kernel_arm64() -> KitKernel:
    """A's version for arm64; it has modules and headers."""
    return _kernel("arm64")


@pytest.fixture(scope="session")
def kernel_new() -> KitKernel:
    """A 6.12 kernel; headers only."""
    return _kernel("new")


@pytest.fixture(scope="session")
def open_tarball() -> Path:
    """Debian's tarball of NVIDIA's open kernel modules, with core objects."""
    return load_kit("open").source("open")


@pytest.fixture(scope="session")
def proprietary_tarball() -> Path:
    """Debian's tarball of NVIDIA's proprietary kernel modules."""
    return load_kit("proprietary").source("proprietary")


@pytest.fixture(scope="session")
def real_source(open_tarball: Path) -> Path:
    """The real open driver as an unpacked tree."""
    return unpacked(open_tarball)


@pytest.fixture(scope="session")
def real_build_a(open_tarball: Path, kernel_a: KitKernel) -> RealBuild:
    """The real open driver, built for kernel A through the command line, in a store and in a folder."""
    return build_real(open_tarball, kernel_a)


@pytest.fixture(scope="session")
def real_build_b(open_tarball: Path, kernel_b: KitKernel) -> RealBuild:
    """The same for kernel B."""
    return build_real(open_tarball, kernel_b)
