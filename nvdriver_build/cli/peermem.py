"""`peermem`: nvidia-peermem in a container of its own beside the driver's, and that container's probe."""

from __future__ import annotations

import logging
import os

import click

from nvdriver_build import readiness
from nvdriver_build.cli import say
from nvdriver_build.config import host_modules, read_config, run_dir
from nvdriver_build.loader.host import Host


@click.group()
def peermem() -> None:
    """nvidia-peermem, in a container of its own beside the driver's."""


@peermem.command()
def reload() -> None:
    """Load nvidia-peermem once MOFED and the driver are ready, and again whenever it is gone."""
    # The probe is started every few seconds, and need not wait for what this takes to import.
    from nvdriver_build.cli.logs import configure
    from nvdriver_build.cli.signals import StopFlag
    from nvdriver_build.commands import SystemCommands
    from nvdriver_build.kernel import RunningKernel
    from nvdriver_build.loader.kernel_log import KernelLog
    from nvdriver_build.node.peermem import MofedPlace, Patience, Peermem

    config, flag = read_config(), StopFlag()
    configure(config.log_format or "console", logging.INFO)
    host = Host(lib_modules=host_modules())
    kernel = RunningKernel.read(host.proc, os.uname().machine)
    Peermem(
        place=MofedPlace(host, on_host=config.host_mofed),
        readiness=readiness.Readiness(config.run_dir),
        arch=kernel.arch,
        release=kernel.release,
        commands=SystemCommands(config.path, flag.check),
        journal=KernelLog().follow,
        patience=Patience(flag.check),
        driver_root=config.driver_root,
    ).run()


@peermem.command()
def probe() -> None:
    """Exit 0 or 1, with one line why: where MOFED is loaded, nvidia-peermem has to be."""
    verdict = readiness.peermem(readiness.Readiness(run_dir()), Host())
    say(verdict.why)
    if not verdict.ok:
        raise click.exceptions.Exit(1)
