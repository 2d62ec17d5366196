"""`dtk-build`: the end of the sidecar that runs in the Driver Toolkit container."""

from __future__ import annotations

from pathlib import Path

import click

from nvdriver_build.cli.logs import log_options
from nvdriver_build.cli.signals import StopFlag
from nvdriver_build.commands import SystemCommands
from nvdriver_build.config import read_config
from nvdriver_build.errors import UsageError
from nvdriver_build.obtain import build_ordered
from nvdriver_build.toolkit import Server, Shared


@click.command()
@log_options
def dtk_build() -> None:
    """Build what the driver container asks for in the shared folder NVDRIVER_TOOLKIT_DIR, until a signal."""
    config = read_config()
    if config.toolkit_dir is None:
        raise UsageError(
            "NVDRIVER_TOOLKIT_DIR is not set",
            hint="it names the folder that the driver container and this one share",
        )
    shared = Shared(config.toolkit_dir)
    commands = SystemCommands(config.path, StopFlag().check)
    Server(shared, Path("/"), commands, lambda order, *rest: build_ordered(order, shared, *rest)).serve()
