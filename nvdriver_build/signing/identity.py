"""What a machine signs with, or what it wants to be signed by, from settings or options."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

from attrs import frozen

from nvdriver_build.errors import UsageError
from nvdriver_build.signing.certificates import Certificate, read_certificate
from nvdriver_build.signing.cms import Signer


@frozen
class Identity:
    """`certificate` is the one that modules are wanted to be signed by; `signer` is None without its key."""

    certificate: Optional[Certificate] = None
    signer: Optional[Signer] = None


def read_identity(key: Optional[str], certificate: Optional[Path], pin_file: Optional[Path]) -> Identity:
    """UsageError for a key without a certificate, SigningError where that cannot be read. No key is read."""
    if certificate is None:
        if key is not None:
            raise UsageError(
                "there is a signing key, and no certificate of it",
                hint="set NVDRIVER_SIGN_CERT, or --sign-cert",
            )
        return Identity()
    found = read_certificate(certificate)
    return Identity(found, None if key is None else Signer(key, found, pin_file))
