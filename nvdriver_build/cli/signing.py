"""`sign`, and what `build` signs with."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import click

from nvdriver_build.cli import emit, say
from nvdriver_build.cli.logs import log_options
from nvdriver_build.cli.output import check_output, write_set
from nvdriver_build.cli.signals import StopFlag
from nvdriver_build.commands import SystemCommands
from nvdriver_build.config import Config, checked_key, read_config
from nvdriver_build.errors import UsageError
from nvdriver_build.files import private_folder
from nvdriver_build.sets import ModuleSet, open_set
from nvdriver_build.signing import (
    Identity,
    attach_signatures,
    read_certificate,
    read_identity,
    sign_set,
    who,
)
from nvdriver_build.signing.cms import HASHES

_PATH = click.Path(path_type=Path)


def identity_of(
    config: Config,
    key: Optional[str],
    certificate: Optional[Path],
    pin_file: Optional[Path],
    option: str = "--sign-key",
) -> Identity:
    """Who signs: as the options say, else as the settings do. `option` is the one that the key came by."""
    if key is None and certificate is None and pin_file is None:
        return read_identity(config.sign_key, config.sign_cert, config.sign_pin_file)
    if key is None or certificate is None:
        raise UsageError(
            "to sign, key and certificate are needed", hint="give both --sign-key and --sign-cert, or none"
        )
    pin_file = config.sign_pin_file if pin_file is None else pin_file.absolute()
    return read_identity(checked_key(option, key), certificate, pin_file)


@click.command()
@click.argument("folder", metavar="SET", type=_PATH)
@click.option("--output", type=_PATH, required=True, help="The folder that the signed set is written to.")
@click.option("--cert", type=_PATH, required=True, help="The certificate, PEM or DER.")
@click.option("--key", help="Its key: a PEM file, or a pkcs11: URI without a PIN.")
@click.option("--pin-file", type=_PATH, help="The key's passphrase or PIN, on its first line.")
@click.option("--signatures", type=_PATH, help="A folder of NAME.ko.p7s, made elsewhere by sign-file -d.")
@click.option("--hash", "hash_name", type=click.Choice(HASHES), default=HASHES[0], show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
@log_options
def sign(
    folder: Path,
    output: Path,
    cert: Path,
    key: Optional[str],
    pin_file: Optional[Path],
    signatures: Optional[Path],
    hash_name: str,
    as_json: bool,
) -> None:
    """Write a copy of SET whose modules are signed: with a key, or by signatures that were made elsewhere."""
    if (key is None) == (signatures is None):
        raise UsageError(
            "who signs is not told",
            hint="give either --key K, or --signatures DIR with what was made elsewhere",
        )
    config = read_config()
    commands = SystemCommands(config.path, StopFlag().check)
    place, certificate, unsigned = check_output(output), read_certificate(cert), open_set(folder)
    with private_folder(place.parent) as private:
        if signatures is not None:
            made = attach_signatures(unsigned, private / "set", certificate, signatures)
        else:
            signer = identity_of(config, key, cert, pin_file, "--key").signer
            assert signer is not None
            made = sign_set(unsigned, private / "set", signer, commands, hash_name)
        write_set(made, place)
    _tell(made, output, who(certificate), as_json)


def _tell(made: ModuleSet, output: Path, signer: str, as_json: bool) -> None:
    if as_json:
        emit({"key": made.key, "output": str(output), "certificate": made.manifest.recipe.certificate})
        return
    say(f"signed by {signer}")
    for file in made.manifest.files:
        say(f"  {file.file}")
    say(f"key {made.key[:12]}; in {output}")
