"""What a node's os-release says of its RHCOS version.

Format: os-release(5); OSTREE_VERSION is rpm-ostree's, on RHCOS and SCOS the version of the whole system,
which PRETTY_NAME holds, too: `Red Hat Enterprise Linux CoreOS 9.6.20260616-0 (Plow)`.
"""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import Iterable, Optional

from attrs import frozen

_LIMIT = 64 * 1024
"""Bytes that are read; a real one has less than 1,000."""
_VERSION = re.compile(r"\d+(?:\.\d+)+(?:-\d+)?", re.ASCII)
_QUOTES = "'\""


@frozen
class NodeVersion:
    """The version by OSTREE_VERSION, and the words of PRETTY_NAME, among which it stands, too."""

    version: str
    words: tuple[str, ...] = ()


def clean_version(text: Optional[str]) -> Optional[str]:
    """A version without the quotes that labels and files have around it; None for what is none."""
    found = (text or "").strip().strip(_QUOTES).strip()
    return found if _VERSION.fullmatch(found) else None


def node_version(places: Iterable[Path]) -> Optional[NodeVersion]:
    """What the first of these files says that names a version; None where none does."""
    for place in places:
        values = _values(_text(place))
        version = clean_version(values.get("OSTREE_VERSION"))
        if version is not None:
            return NodeVersion(version, tuple(values.get("PRETTY_NAME", "").strip(_QUOTES).split()))
    return None


def _values(text: str) -> dict[str, str]:
    lines = (line.strip().partition("=") for line in text.splitlines() if not line.startswith("#"))
    return {name: value for name, separator, value in lines if separator}


def _text(place: Path) -> str:
    try:
        if not stat.S_ISREG(place.stat().st_mode):
            return ""
        with place.open("rb") as file:
            return file.read(_LIMIT).decode("utf-8", "replace")
    except OSError:
        return ""
