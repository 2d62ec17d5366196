"""A PKCS#11 token in files: softhsm2, and an openssl that is told where it is."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from attrs import frozen
from keys import Identity

PIN = "84236117"
_OPENSSL = '#!/bin/sh\nexport SOFTHSM2_CONF={conf}\necho "$@" >>{log}\nexec {openssl} "$@"\n'


@frozen
class Token:
    """`key` is its URI, `path` a PATH with that openssl first, `log` has the arguments that it got."""

    key: str
    pin_file: Path
    path: str
    log: Path


def make_token(folder: Path, identity: Identity) -> Token:
    """A token with the key of `identity` in it; skips the test where softhsm2 or the engine is missing."""
    openssl = shutil.which("openssl")
    engine = subprocess.run(
        ["openssl", "engine", "-t", "pkcs11"], capture_output=True, text=True, check=False
    )
    if shutil.which("softhsm2-util") is None or "[ available ]" not in engine.stdout:
        pytest.skip("needs softhsm2 and libengine-pkcs11-openssl")
    (folder / "tokens").mkdir(parents=True)
    (folder / "bin").mkdir()
    conf, log, program = folder / "softhsm2.conf", folder / "arguments", folder / "bin" / "openssl"
    conf.write_text(f"directories.tokendir = {folder}/tokens\nobjectstore.backend = file\n")
    program.write_text(_OPENSSL.format(conf=conf, log=log, openssl=openssl))
    program.chmod(0o755)
    for words in (
        ["--init-token", "--free", "--label", "nvdriver", "--so-pin", "12345678", "--pin", PIN],
        [
            "--import",
            str(identity.key),
            "--token",
            "nvdriver",
            "--label",
            "modules",
            "--id",
            "01",
            "--pin",
            PIN,
        ],
    ):
        environment = {**os.environ, "SOFTHSM2_CONF": str(conf)}
        subprocess.run(["softhsm2-util", *words], env=environment, capture_output=True, check=True)
    (folder / "pin").write_text(f"{PIN}\n")
    key = "pkcs11:token=nvdriver;object=modules;type=private"
    return Token(key, folder / "pin", f"{folder}/bin:{os.environ['PATH']}", log)
