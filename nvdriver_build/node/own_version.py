"""Whether a pod is for the system that its node runs.

A node that comes back with another RHCOS is chosen by its old label until somebody has changed that. A pod of
the old version would ask the wrong toolkit, or load a set that goes again a moment later.
"""

from __future__ import annotations

from pathlib import Path

import structlog

from nvdriver_build.config import Config
from nvdriver_build.errors import WrongVersion
from nvdriver_build.kernel.os_release import clean_version, node_version

MOUNTED = Path("/host-etc/os-release")
"""Where the GPU Operator's pods and ours have the node's."""
_log = structlog.get_logger()


def require_own_version(config: Config, proc: Path, mounted: Path = MOUNTED) -> None:
    """WrongVersion where RHCOS_VERSION and the node's os-release name different versions.

    Nothing is compared where one of them names none. In the GPU Operator's pod (DRIVER_CONFIG_DIGEST) it is
    only told: its label is NFD's, which may stay behind, and the store may serve the node all the same.
    """
    wanted, found = (
        clean_version(config.rhcos_version),
        node_version((mounted, proc / "1/root/etc/os-release")),
    )
    if wanted is None or found is None or wanted in (found.version, *found.words):
        return
    message = f"this pod is for RHCOS {wanted} (RHCOS_VERSION), and the node runs {found.version}"
    if config.config_digest is not None:
        _log.warning(message)
        return
    raise WrongVersion(
        message,
        hint="this pod goes once the node's label is right, which 'fleet watch' writes, or NFD: do they run?",
    )
