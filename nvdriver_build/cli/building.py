"""`build`: a checked set in a folder, from a source and kernel headers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Optional

import click

from nvdriver_build.cli import emit, say
from nvdriver_build.cli.logs import log_options
from nvdriver_build.cli.output import check_output, write_set
from nvdriver_build.cli.progress import BuildProgress
from nvdriver_build.cli.signals import StopFlag
from nvdriver_build.cli.signing import identity_of
from nvdriver_build.commands import SystemCommands
from nvdriver_build.config import MOST_JOBS, Config, read_config
from nvdriver_build.kernel import find_headers, target_from_headers
from nvdriver_build.node.stores import outside, own_store
from nvdriver_build.obtain import Obtained, Wish, modules_to_build, obtain, opened_source
from nvdriver_build.source import AUTO, OPEN, PROPRIETARY, split_names

_PATH = click.Path(path_type=Path)
ORIGINS = {"built": "built", "store": "taken from the store", "registry": "taken from the registry"}
_ELSEWHERE = "not compared: the modules are for a kernel that was named, not for the one that runs here"


@click.command()
@click.option("--source", type=_PATH, required=True, help="NVIDIA's tree, an archive of it, or a .run file.")
@click.option("--headers", type=_PATH, required=True, help="A build tree, a Debian pair, or a DTK root.")
@click.option("--output", type=_PATH, required=True, help="The folder that the set is written to.")
@click.option("--kernel-release", help="The kernel that is meant, where the headers hold several.")
@click.option("--kind", type=click.Choice([OPEN, PROPRIETARY, AUTO]), default=AUTO, show_default=True)
@click.option("--modules", help="Names, comma-separated. Default: all but nvidia-peermem.")
@click.option(
    "--jobs",
    type=click.IntRange(1, MOST_JOBS),
    help="Compilers at once. Default: what cgroup and memory allow.",
)
@click.option("--debug-info", is_flag=True, help="Keep debug information.")
@click.option("--sign-key", help="Key for the modules: a PEM file, or a pkcs11: URI without a PIN.")
@click.option("--sign-cert", type=_PATH, help="Its certificate, PEM or DER.")
@click.option("--pin-file", type=_PATH, help="The key's passphrase or PIN, on its first line.")
@click.option("--run-sha256", help="What the .run file's sha256 has to be: it is executed.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
@log_options
def build(
    source: Path,
    headers: Path,
    output: Path,
    kernel_release: Optional[str],
    kind: str,
    modules: Optional[str],
    jobs: Optional[int],
    debug_info: bool,
    sign_key: Optional[str],
    sign_cert: Optional[Path],
    pin_file: Optional[Path],
    run_sha256: Optional[str],
    as_json: bool,
) -> None:
    """Build modules, check that they fit, and write them with their manifest.json."""
    started = time.monotonic()
    config = read_config()
    commands = SystemCommands(config.path, StopFlag().check)
    asked = split_names(modules or "")
    place = check_output(output)
    identity = identity_of(config, sign_key, sign_cert, pin_file)
    found = find_headers(headers, kernel_release)
    target = target_from_headers(found)
    store = own_store(config, commands)
    with opened_source(source, kind, store, commands, run_sha256) as tree, BuildProgress() as progress:
        wish = Wish(
            source=tree,
            target=target,
            headers=found,
            proof=_ELSEWHERE,
            modules=modules_to_build(tree, asked),
            jobs=jobs or config.jobs,
            job_memory=config.job_memory,
            debug_info=debug_info,
            allow_compiler_mismatch=config.compiler_mismatch,
            certificate=identity.certificate,
            signer=identity.signer,
        )
        obtained = obtain(wish, store, commands, progress=progress, outside=outside(config, commands))
    write_set(obtained.set, place)
    document = _document(obtained, output, time.monotonic() - started)
    if as_json:
        emit(document)
    else:
        _print(obtained, document, config)


def _document(obtained: Obtained, output: Path, seconds: float) -> dict[str, Any]:
    return {
        "key": obtained.set.key,
        "output": str(output),
        "modules": [{**file.facts, "path": str(output / file.file)} for file in obtained.set.manifest.files],
        "seconds": round(seconds, 3),
        "jobs": obtained.jobs,
        "from": obtained.origin,
    }


def _print(obtained: Obtained, document: dict[str, Any], config: Config) -> None:
    recipe = obtained.set.manifest.recipe
    say(f"driver {recipe.driver_version} ({recipe.kind}) for {recipe.kernel_release} {recipe.arch}")
    for module in obtained.fit.modules:
        say(f"  {module.name:<16} {module.fit}")
    say(
        f"{ORIGINS[obtained.origin]} in {document['seconds']:.1f} s;"
        f" key {recipe.key[:12]}; in {document['output']}"
    )
