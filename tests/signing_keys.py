"""Keys and certificates for tests, made by openssl.

keys = make_keys(folder, "Build key")     # 0.2 s
keys.key, keys.certificate                # PEM files
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Optional

from attrs import frozen

EXTENSIONS = (
    "basicConstraints=critical,CA:FALSE",
    "keyUsage=digitalSignature",
    "extendedKeyUsage=codeSigning",
)


@frozen
class Keys:
    """A private key and its certificate, as files."""

    key: Path
    certificate: Path


def make_keys(folder: Path, name: str, *, passphrase: Optional[str] = None, bits: int = 2048) -> Keys:
    """A key for modules (RSA, code signing, self-signed, as the kernel's documents ask) in a new folder."""
    folder.mkdir(parents=True)
    keys = Keys(folder / "tls.key", folder / "tls.crt")
    protection = ["-passout", f"pass:{passphrase}"] if passphrase else ["-nodes"]
    extensions = [word for extension in EXTENSIONS for word in ("-addext", extension)]
    openssl(
        *("req", "-x509", "-newkey", f"rsa:{bits}", *protection, "-days", "3650", "-sha256"),
        *("-subj", f"/CN={name}", *extensions, "-keyout", str(keys.key), "-out", str(keys.certificate)),
    )
    return keys


def openssl(*words: str) -> bytes:
    """What openssl says; AssertionError with its words where it fails."""
    done = subprocess.run(["openssl", *words], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout
