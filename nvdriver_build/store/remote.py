"""What a place outside of the node can be asked for, whatever it is: a registry, a folder of many nodes.

Nothing that it says is believed. Small things come first: who asks looks at manifest and signature before
any module moves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Iterator, Optional, Protocol

from nvdriver_build.kernel import KernelTarget
from nvdriver_build.sets import ModuleSet, Recipe


class Offer(Protocol):
    """A set that a place says it has. `signature` is that of the bytes of the manifest, if there is one."""

    @property
    def manifest(self) -> bytes:
        """The bytes of its manifest.json."""

    @property
    def signature(self) -> Optional[bytes]:
        """The bytes of its manifest.p7s."""

    def fetch(self, place: Path) -> None:
        """Fill the empty folder `place` with the set; StoreError where what comes is not what was offered."""


class Remote(Protocol):
    """The place. `str()` of it names it. Each method raises StoreError where the place does not serve."""

    def offer(self, key: str) -> Optional[Offer]:
        """The set of a key; None where there is none."""

    def candidates(self, recipe: Recipe, target: KernelTarget) -> Iterator[str]:
        """Keys of sets like that of `recipe` but of other kernels, which might fit `target`."""

    def push(self, found: ModuleSet) -> bool:
        """Put a signed set there; False where it is there already."""
