"""`prebuild`: sets for kernels that do not run here, before the first node runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

import click

from nvdriver_build.cli import emit, say
from nvdriver_build.cli.building import ORIGINS
from nvdriver_build.cli.logs import log_options
from nvdriver_build.cli.progress import BuildProgress
from nvdriver_build.cli.signals import StopFlag
from nvdriver_build.commands import SystemCommands
from nvdriver_build.config import Config, read_config
from nvdriver_build.errors import NvdriverError, UsageError
from nvdriver_build.kernel import find_headers, target_from_headers
from nvdriver_build.node.look import module_kind, source_place
from nvdriver_build.node.stores import outside, own_store
from nvdriver_build.obtain import Prebuilt, Wish, modules_to_build, opened_source
from nvdriver_build.obtain import prebuild as prebuild_one
from nvdriver_build.signing import read_identity
from nvdriver_build.source import Source

_PATH = click.Path(path_type=Path)
_PROOF = "not compared: the modules are for a kernel that does not run here"


@click.command()
@click.option("--source", type=_PATH, help="NVIDIA's tree, an archive of it, or a .run. Default: as `run`.")
@click.option(
    "--headers",
    "places",
    type=_PATH,
    multiple=True,
    required=True,
    help="As of build; repeat it: / in a DTK.",
)
@click.option("--kernel-release", help="The kernel that is meant, where the headers hold several.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
@log_options
def prebuild(
    source: Optional[Path], places: tuple[Path, ...], kernel_release: Optional[str], as_json: bool
) -> None:
    """Have a set for each of these kernels, in the store and, signed, at NVDRIVER_REGISTRY."""
    config = read_config()
    if config.registry and not config.sign_key:
        raise UsageError(
            "there is no key to sign with, and nobody takes from NVDRIVER_REGISTRY what is not signed",
            hint="set NVDRIVER_SIGN_KEY and NVDRIVER_SIGN_CERT; without NVDRIVER_REGISTRY it stays here",
        )
    commands = SystemCommands(config.path, StopFlag().check)
    store = own_store(config, commands)
    opened = opened_source(
        source or source_place(config), module_kind(config, commands), store, commands, config.run_sha256
    )
    rows, errors = [], []
    with opened as tree, BuildProgress() as progress:
        for headers in places:
            made: Optional[Prebuilt] = None
            try:
                wish = _wish(config, tree, headers, kernel_release)
                made = prebuild_one(wish, store, commands, outside(config, commands), progress)
            except NvdriverError as error:  # the other kernels can still be served
                errors.append(error)
            rows.append(_row(headers, made, None if made else errors[-1]))
            if not as_json:
                _print(rows[-1])
    if as_json:
        emit({"sets": rows})
    if errors:
        raise click.exceptions.Exit(errors[0].exit_code)


def _wish(config: Config, source: Source, place: Path, release: Optional[str]) -> Wish:
    headers = find_headers(place, release)
    identity = read_identity(config.sign_key, config.sign_cert, config.sign_pin_file)
    return Wish(
        source=source,
        target=target_from_headers(headers),
        headers=headers,
        proof=_PROOF,
        modules=modules_to_build(source),
        jobs=config.jobs,
        job_memory=config.job_memory,
        allow_compiler_mismatch=config.compiler_mismatch,
        reuse=config.reuse,
        certificate=identity.certificate,
        signer=identity.signer,
    )


def _row(place: Path, made: Optional[Prebuilt], error: Optional[NvdriverError]) -> dict[str, Any]:
    recipe = made.set.manifest.recipe if made else None
    return {
        "headers": str(place),
        "kernel_release": made.kernel_release if made else None,
        "key": made.set.key if made else None,
        "from": made.origin if made else None,
        "fit": made.fit if made else None,
        "built_for": recipe.kernel_release if recipe else None,
        "why": made.why if made else None,
        "published": made.published if made else None,
        "seconds": round(made.seconds, 3) if made else None,
        "error": error.document() if error else None,
    }


def _print(row: dict[str, Any]) -> None:
    error = row["error"]
    if error:
        say(f"{row['headers']}: error: {error['message']}", err=True)
        say(f"  hint: {error['hint'] or '-'}", err=True)
        return
    say(f"{row['kernel_release']}: {ORIGINS[row['from']]} in {row['seconds']:.1f} s; key {row['key'][:12]}")
    say(f"  why: {row['why']}")
    if row["published"] is not None:
        say("  published: others can take it")
