"""`Recipe`: what decides about the bytes of a set, known before anything is built."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Mapping, Optional, Sequence

from attrs import asdict, frozen

SCHEMA = 1
_OF_THE_KERNEL = ("kernel_release", "symvers_sha256", "config_sha256")
"""What may differ in the recipe of a set that fits: symbols and configuration are compared instead."""


def digest_of(document: Mapping[str, Any]) -> str:
    """sha256 over canonical JSON."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@frozen
class Recipe:
    """What decides about the bytes of a set; two equal recipes give equal modules."""

    driver_version: str
    source_digest: str
    kind: str
    modules: tuple[str, ...]
    kernel_release: str
    arch: str
    symvers_sha256: str
    config_sha256: str
    debug_info: bool = False
    mofed_symvers_sha256: Optional[str] = None
    certificate: Optional[str] = None
    schema: int = SCHEMA

    @property
    def family(self) -> Mapping[str, Any]:
        """What two sets have in common of which one may do for the kernel of the other."""
        return {name: value for name, value in asdict(self).items() if name not in _OF_THE_KERNEL}

    @property
    def key(self) -> str:
        """The name of the set in a store."""
        return digest_of(asdict(self))


def explain_miss(wanted: Recipe, there: Sequence[Recipe]) -> str:
    """Why no set of `there` is the one wanted: the first field that differs from the nearest."""
    if not there:
        return "the store is empty"
    mine = asdict(wanted)
    nearest = min(
        there, key=lambda recipe: sum(mine[name] != value for name, value in asdict(recipe).items())
    )
    for name, value in asdict(nearest).items():
        if mine[name] != value:
            return f"the nearest set, {nearest.key[:12]}, has {name} {value}, wanted is {mine[name]}"
    return "nothing differs"
