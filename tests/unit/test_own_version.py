"""A pod that is for another RHCOS version than its node runs ends before it builds or loads anything."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import pytest
import structlog
from trees import write_tree

from nvdriver_build.config import read_config
from nvdriver_build.errors import WrongVersion
from nvdriver_build.kernel.os_release import clean_version
from nvdriver_build.node.own_version import require_own_version

OLD, NEW = "416.94.202408260940-0", "9.6.20260616-0"
RHCOS = f'NAME="Red Hat Enterprise Linux CoreOS"\nVERSION="{NEW}"\nOSTREE_VERSION=\'{NEW}\'\n'


def required(root: Path, version: str, **more: str) -> None:
    config = read_config({"PATH": "/bin", "RHCOS_VERSION": version, **more})
    require_own_version(config, root / "proc", root / "host-etc/os-release")


@pytest.mark.parametrize("place", ["host-etc/os-release", "proc/1/root/etc/os-release"])
def test_another_version(tmp_path: Path, place: str) -> None:
    """Both are named, with what mends it; it does not matter which of the two places says it."""
    write_tree(tmp_path, {place: RHCOS})
    required(tmp_path, NEW)
    with pytest.raises(WrongVersion) as caught:
        required(tmp_path, OLD)
    assert OLD in caught.value.message and NEW in caught.value.message
    assert caught.value.exit_code == 10 and "label" in str(caught.value.hint)


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        "ID=debian\nVERSION_ID=12\n",
        "OSTREE_VERSION=\n",
        "OSTREE_VERSION='unknown'\n",
        "#OSTREE_VERSION=1.2.3\n",
        f"OSTREE_VERSION={OLD}; reboot\n",
        "\0\xff\n" * 9,
    ],
)
def test_nothing_to_compare(tmp_path: Path, content: Optional[str]) -> None:
    """No file, no such line, or junk in it: nothing is compared."""
    if content is not None:
        write_tree(tmp_path, {"host-etc/os-release": content})
    required(tmp_path, NEW)


@pytest.mark.parametrize("version", [f"'{NEW}'", f'"{NEW}"', f" {NEW} ", "junk", "a b"])
def test_quotes_and_junk(tmp_path: Path, version: str) -> None:
    """Quotes around the pod's version do not count, and what is no version is not compared."""
    write_tree(tmp_path, {"host-etc/os-release": RHCOS})
    required(tmp_path, version)


def test_the_version_of_the_image(tmp_path: Path) -> None:
    """A layered image may have a version of its own in OSTREE_VERSION: what the node's osImage names counts,
    too.
    """
    write_tree(
        tmp_path,
        {"host-etc/os-release": f'PRETTY_NAME="A CoreOS {OLD} (Plow)"\nOSTREE_VERSION={NEW}\n'},
    )
    required(tmp_path, OLD)


def test_the_operators_pod(tmp_path: Path) -> None:
    """Its label is NFD's, which may stay behind: it is told, and the store may serve."""
    write_tree(tmp_path, {"host-etc/os-release": RHCOS})
    with structlog.testing.capture_logs() as logs:
        required(tmp_path, OLD, DRIVER_CONFIG_DIGEST="2768893512")
    assert [each["log_level"] for each in logs] == ["warning"]


def test_clean_versions() -> None:
    """Every shape that RHCOS, SCOS and FCOS have."""
    for version in (OLD, NEW, "416.9.202411211032-0", "39.20240210.3.0"):
        assert clean_version(f"'{version}'") == version
    assert clean_version(None) is clean_version("416") is clean_version("x") is None
