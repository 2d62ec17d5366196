"""A store is its owner's alone: who can write there decides what the kernel runs."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from nvdriver_build.errors import StoreError


def make_root(root: Path) -> None:
    """Make a store's folder, closed to others, whatever is put in first; raises as `require_own`."""
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    if root.stat().st_uid == os.geteuid() and not any(root.iterdir()):
        root.chmod(0o700)  # a volume that is new, an emptyDir say, is open to all
    require_own(root)


def require_own(root: Path) -> None:
    """StoreError where somebody else could have put in what would be loaded as root."""
    with contextlib.suppress(FileNotFoundError):
        found = root.stat()
        if found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
            raise StoreError(
                f"the store {root} is open to others (owner {found.st_uid}, mode "
                f"{found.st_mode & 0o7777:04o}): what they put there would be loaded into the kernel",
                hint="chown it to this program's user, and chmod 700; NVDRIVER_REGISTRY is for sharing",
            )
