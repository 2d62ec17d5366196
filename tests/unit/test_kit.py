"""Which kernels take which role of the kit, and the parts of scripts/kit that need no network."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import List

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from kitlib.apt import KitError, Package  # noqa: E402
from kitlib.offer import Offer  # noqa: E402

OFFERED = {47: "6.1.170-3", 50: "6.1.176-1", 53: "6.1.187-1", 55: "6.1.192-1", 56: "6.1.192-2"}


def packages(*abis: int) -> List[Package]:
    """Headers of these kernels in three flavours, as Debian's lists have them."""
    flavours = (("amd64", "common"), ("cloud-amd64", "common"), ("rt-amd64", "common-rt"))
    return [
        Package(
            f"linux-headers-6.1.0-{abi}-{flavour}",
            OFFERED[abi],
            "amd64",
            f"linux-headers-6.1.0-{abi}-{common} (= {OFFERED[abi]}), linux-kbuild-6.1 (>= {OFFERED[abi]})",
            1,
        )
        for abi in abis
        for flavour, common in flavours
    ]


def chosen(offer: Offer, *roles: str) -> List[str]:
    kernels = (offer.kernel(role) for role in roles)
    return [kernel.release.replace("6.1.0-", "") if kernel else "none" for kernel in kernels]


@pytest.mark.parametrize(
    ("abis", "a", "b", "future", "sibling"),
    [
        ((56, 47, 55, 50, 53), "47-amd64", "50-amd64", "56-amd64", "55-amd64"),
        ((50, 53, 55), "50-amd64", "50-cloud-amd64", "55-amd64", "none"),
        ((47, 50), "47-amd64", "50-amd64", "none", "none"),
    ],
)
def test_roles(abis: List[int], a: str, b: str, future: str, sibling: str) -> None:
    """A is the oldest, B the next that 535 compiles on, else another flavour of A; future the newest."""
    assert chosen(Offer(packages(*abis), {}), "a", "b", "future", "sibling") == [a, b, future, sibling]


def test_earlier_choice_stays() -> None:
    """With an A from before, B is another ABI than that A, also after Debian has dropped A."""
    have = {"a": {"release": "6.1.0-50-amd64", "version": "6.1.176-1"}}
    assert chosen(Offer(packages(47, 50, 53), have), "b") == ["50-cloud-amd64"]
    assert chosen(Offer(packages(47, 50), {"a": {**have["a"], "version": "6.1.170-3"}}), "b") == ["50-amd64"]


def test_nothing_offered_is_told() -> None:
    """A role that no kernel fits is an error that names the role."""
    with pytest.raises(KitError, match="role a"):
        Offer([], {}).kernel("a")


def test_whole_kit_needs_no_apt(tmp_path: Path) -> None:
    """What kit.json names and is there is printed with absolute paths, without a look at apt."""
    (tmp_path / "open").mkdir()
    (tmp_path / "open/source").touch()
    kit = {"schema": 1, "kernels": {"future": None}, "sources": {"open": "open/source"}, "tools": {}}
    (tmp_path / "kit.json").write_text(json.dumps(kit))
    argv = [sys.executable, str(SCRIPTS / "kit"), "--dir", str(tmp_path), "--json", "open", "future"]
    done = subprocess.run(argv, env={"PATH": "", "HOME": str(tmp_path)}, capture_output=True, check=True)
    assert json.loads(done.stdout)["sources"] == {"open": str(tmp_path / "open/source")}
    (tmp_path / "open/source").unlink()
    done = subprocess.run(argv, env={"PATH": "", "HOME": str(tmp_path)}, capture_output=True, check=False)
    assert done.returncode == 1 and b"apt-get is not installed" in done.stderr
