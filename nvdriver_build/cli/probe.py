"""`probe`: light, since Kubernetes starts it every few seconds."""

from __future__ import annotations

import click

from nvdriver_build import readiness
from nvdriver_build.cli import say
from nvdriver_build.config import read_config
from nvdriver_build.loader.host import Host

_SMI_LIMIT = 20.0


@click.command()
@click.argument("what", type=click.Choice(["startup", "liveness", "readiness"]))
def probe(what: str) -> None:
    """Exit 0 or 1, with one line why."""
    config = read_config()
    features = readiness.Features(rdma=config.rdma)
    files, host = readiness.Readiness(config.run_dir, features=features), Host()
    if what == "startup":
        verdict = readiness.startup(files, host, lambda: _nvidia_smi(config.path))
    elif what == "liveness":
        verdict = readiness.liveness(files)
    else:
        verdict = readiness.readiness(files, host)
    say(verdict.why)
    if not verdict.ok:
        raise click.exceptions.Exit(1)


def _nvidia_smi(path: str) -> bool:
    # Starting programs takes imports that the other probes need not wait for.
    from nvdriver_build.commands import CommandError, SystemCommands

    try:
        return SystemCommands(path).run(["nvidia-smi"], timeout=_SMI_LIMIT).ok
    except CommandError:
        return False
