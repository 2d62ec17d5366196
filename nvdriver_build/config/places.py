"""Where things lie if nobody says so: in a container that sees its node, at a desk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Mapping, Optional

_STORE = Path("/var/lib/nvdriver-build")
"""The node's store: it outlives pods and boots."""
_TOOLKIT = Path("/mnt/shared-nvidia-driver-toolkit")
"""Where the GPU Operator mounts what the driver's container shares with the toolkit's."""


def toolkit_beside(root: Path) -> Optional[Path]:
    """The folder shared with the toolkit: who comes in by `oc exec` has not what our entrypoint exports."""
    return _TOOLKIT if (root / _TOOLKIT.relative_to("/")).is_mount() else None


def host_modules(root: Path = Path("/")) -> Path:
    """The node's /lib/modules: the host's where this container sees the host, else what is here."""
    host = root / "proc/1/root"
    return (host if _is_other_root(host, root) else root) / "lib/modules"


def default_store(given: Mapping[str, str], root: Path) -> Path:
    """The host's folder where this is a container that sees the host; a user's cache where not root."""
    if os.geteuid() != 0:
        cache = given.get("XDG_CACHE_HOME", "")
        if not cache.startswith("/"):  # the XDG specification: relative ones are passed over
            cache = f"{given.get('HOME', '')}/.cache"
        return Path(cache) / "nvdriver-build" / "store"
    host = root / "proc/1/root"
    if _STORE.is_mount() or not _is_other_root(host, root):
        return _STORE
    return host / _STORE.relative_to("/")


def _is_other_root(host: Path, root: Path) -> bool:
    try:
        return not os.path.samestat(host.stat(), root.stat())
    except OSError:
        return False
