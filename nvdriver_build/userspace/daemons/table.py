"""The table of daemons: when each is wanted, how it starts, when it is there.

Programs, arguments and paths are those of NVIDIA's driver container (rhel9/nvidia-driver: `_start_daemons`,
`_unload_driver`). Every daemon here puts itself into the background and writes its pid into a file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Optional

import structlog
from attrs import frozen

from nvdriver_build.errors import UsageError
from nvdriver_build.loader.host import Host

_SUBNET_MANAGER = b"SW_MNG"
"""What the VPD of an NVLink 5 switch's management port says (NVIDIA's `_assert_nvlink5_system`)."""
_log = structlog.get_logger()


@frozen
class Daemon:
    """A row. Paths are relative to the root that the supervisor is given.

    `wanted` is asked once the driver is loaded. `patience` is how many seconds the program may take until
    it is in the background. `config` is a file of NAME=VALUE lines, the last word of its command line.
    Where the image lacks the program, that is an error if it is `required`, else a warning. `log` is its
    own log, `hint` says where to look when it fails.
    """

    program: str
    arguments: tuple[str, ...]
    pid_file: str
    wanted: Callable[[Host], bool]
    required: bool
    hint: str
    patience: float = 120.0
    config: Optional[str] = None
    log: Optional[str] = None

    def command(self, root: Path) -> tuple[str, ...]:
        """What starts it."""
        config = (str(root / self.config),) if self.config else ()
        return (self.program, *self.arguments, *config)


def has_nvswitch(host: Host) -> bool:
    """Whether the driver sees NVSwitches (NVIDIA's `_assert_nvswitch_system`)."""
    return any((host.proc / "driver" / "nvidia-nvswitch" / "devices").glob("*"))


def refuse_nvlink5(host: Host) -> None:
    """UsageError on an NVLink 5 system: its switches need a subnet manager, which is not run here."""
    for file in sorted((host.sys / "class" / "infiniband").glob("*/device/vpd")):
        if _SUBNET_MANAGER in _vpd(file):
            raise UsageError(
                f"this is an NVLink 5 system ({file.parent.parent.name} manages its switches), "
                "which needs NVIDIA's subnet manager",
                hint="that is not supported yet: use NVIDIA's driver container on this node",
            )


def _vpd(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:  # a device whose VPD cannot be read; NVIDIA's grep passes it over, too
        _log.warning(
            "cannot tell whether this is a port of an NVLink 5 switch", file=str(file), why=str(error)
        )
        return b""


DAEMONS = (
    Daemon(
        program="nvidia-persistenced",
        arguments=("--persistence-mode",),
        pid_file="var/run/nvidia-persistenced/nvidia-persistenced.pid",
        wanted=lambda host: True,
        required=False,
        hint="it tells why in the node's journal only: `journalctl -t nvidia-persistenced`",
    ),
    Daemon(
        program="nv-fabricmanager",
        arguments=("-c",),
        config="usr/share/nvidia/nvswitch/fabricmanager.cfg",
        pid_file="var/run/nvidia-fabricmanager/nv-fabricmanager.pid",
        log="var/log/fabricmanager.log",
        wanted=has_nvswitch,
        required=True,
        hint="see /var/log/fabricmanager.log; its version has to be the driver's",
    ),
)
"""In the order in which they start."""
