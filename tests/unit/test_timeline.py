"""docs/upgrade.svg and the tables in docs/upgrade.md are what the code does now."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("lightkube", reason="the extra 'fleet' is for Python 3.11 and later")

pytestmark = pytest.mark.once
ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "docs/upgrade.svg"
SVG = "{http://www.w3.org/2000/svg}"
LARGEST = 30_000


def test_the_picture_and_the_tables_are_of_now(tmp_path: Path) -> None:
    """`scripts/timeline.py` draws the committed bytes, and prints the tables that upgrade.md shows."""
    drawn = tmp_path / "upgrade.svg"
    argv = [sys.executable, str(ROOT / "scripts/timeline.py"), str(drawn)]
    tables = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip().split("\n\n")
    assert drawn.read_bytes() == COMMITTED.read_bytes(), "run scripts/timeline.py, look at it, and commit it"
    document = (ROOT / "docs/upgrade.md").read_text()
    assert len(tables) == 2
    for table in tables:
        assert f"\n{table}\n```\n" in document, table


def test_the_picture_can_be_read_by_everybody() -> None:
    """It has a title and a description, each lane says what it shows, nothing in it is executed or fetched;
    it is small, and has a ground of its own, so that it can stand on any.
    """
    assert COMMITTED.stat().st_size < LARGEST
    root = ElementTree.parse(COMMITTED).getroot()
    assert root.get("role") == "img"
    assert all(root.findtext(f"{SVG}{name}") for name in ("title", "desc"))
    assert {each.get("id") for each in root if each.get("id")} == set(root.get("aria-labelledby", "").split())
    kinds = {each.tag.removeprefix(SVG) for each in root.iter()}
    assert kinds == {"svg", "title", "desc", "style", "rect", "g", "text", "path"}
    assert all(lane.findtext(f"{SVG}title") for lane in root.iter(f"{SVG}g"))
    style = root.findtext(f"{SVG}style") or ""
    assert "sans-serif" in style and "url(" not in style and "@" not in style
    ground = root.find(f"{SVG}rect")
    assert ground is not None and ground.get("width") == root.get("width")
