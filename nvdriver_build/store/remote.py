"""What a place outside of the node can be asked for, whatever it is: a registry, a folder of many nodes.

Nothing that it says is believed. Small things come first: who asks looks at manifest and signature before
any module moves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Iterator, Optional, Protocol

from nvdriver_build.errors import SigningError, StoreError
from nvdriver_build.kernel import KernelTarget
from nvdriver_build.sets import SIGNATURE, ModuleSet, Recipe


class Unbelievable(StoreError):
    """An answer that cannot be true: what it was about counts as damaged, other answers may be good."""


def required_signature(found: ModuleSet) -> bytes:
    """The signature of a set's manifest; SigningError where there is none: nobody would take it."""
    signature = found.signature
    if signature is None:
        raise SigningError(
            f"set {found.key[:12]} is not pushed: it has no {SIGNATURE}",
            hint="others take signed manifests only: `sign SET --output NEW --cert C --key K`, and push NEW "
            "(with --signatures no manifest is signed)",
        )
    return signature


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

    def before(self, until: float) -> Remote:
        """The same, which is not waited for after `until` of the monotonic clock: StoreError then."""

    def offer(self, key: str) -> Optional[Offer]:
        """The set of a key; None where there is none, Unbelievable where what is there cannot be one."""

    def candidates(self, recipe: Recipe, target: KernelTarget) -> Iterator[str]:
        """Keys of sets like that of `recipe` but of other kernels, which might fit `target`."""

    def push(self, found: ModuleSet) -> bool:
        """Put a signed set there; False where it is there already, just so. SigningError for an unsigned one.

        Whatever is there under its key is replaced: who may write there without a key to sign with must not
        keep a set from those who take signed ones only.
        """
