"""Keys and certificates for tests, made by openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Sequence, Tuple

from attrs import frozen

from nvdriver_build.sets import ModuleSet
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


def cms(module: Path, by: Identity, *words: str) -> bytes:
    """A signature made elsewhere."""
    argv = ["openssl", "cms", "-sign", "-binary", "-outform", "DER", "-in", str(module)]
    argv += ["-signer", str(by.file), "-inkey", str(by.key), *words]
    return subprocess.run(argv, capture_output=True, check=True).stdout


PLAIN = ("-noattr", "-nocerts", "-nosmimecap", "-md", "sha256")


def made_elsewhere(unsigned: ModuleSet, by: Identity, folder: Path, words: Sequence[str] = PLAIN) -> Path:
    folder.mkdir()
    for path in unsigned.paths:
        (folder / f"{path.name}.p7s").write_bytes(cms(path, by, *words))
    return folder
