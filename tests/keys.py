"""Keys and certificates for tests, made by openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Tuple

from attrs import frozen

from nvdriver_build.signing import Certificate, Signer, read_certificate


@frozen
class Identity:
    """A private key and its self-signed certificate, as files."""

    key: Path
    file: Path

    @property
    def certificate(self) -> Certificate:
        return read_certificate(self.file)

    @property
    def signer(self) -> Signer:
        return Signer(str(self.key), self.certificate)


def make_identity(folder: Path, name: str, *more: str) -> Identity:
    """A new RSA key and a certificate as one signs modules with; `more` are words for `openssl req`."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Identity(folder / f"{name}.key", folder / f"{name}.pem")
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-subj", f"/CN={name}", "-days", "36500"]
    for extension in EXTENSIONS:
        argv += ["-addext", extension]
    argv += ["-keyout", str(made.key), "-out", str(made.file), *(more or ("-nodes",))]
    subprocess.run(argv, check=True, capture_output=True)
    return made


EXTENSIONS: Tuple[str, ...] = (
    "basicConstraints=critical,CA:FALSE",
    "keyUsage=digitalSignature",
    "extendedKeyUsage=codeSigning",
)
