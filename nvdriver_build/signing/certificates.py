"""X.509 certificates, as values: what they are called, and the digests by which others know them."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any, Optional

from attrs import field, frozen

from nvdriver_build.errors import SigningError

_LIMIT = 1024 * 1024
"""Bytes that a file of certificates may have; one certificate has about a thousand."""


@frozen
class Certificate:
    """One certificate. `subject` is its readable name, `key_id` the subject key identifier in hex or None."""

    der: bytes = field(repr=False)
    subject: str
    key_id: Optional[str]

    @property
    def fingerprint(self) -> str:
        """sha256 of the DER in hex: what recipes name."""
        return hashlib.sha256(self.der).hexdigest()

    @property
    def id(self) -> bytes:
        """Issuer and serial number, as DER: how a signature names its signer (RFC 5652, 10.2.4)."""
        from asn1crypto import cms, x509

        found = x509.Certificate.load(self.der)
        serial = found["tbs_certificate"]["serial_number"]
        named = {"issuer": found.issuer, "serial_number": serial}
        return bytes(cms.IssuerAndSerialNumber(named).dump())

    @property
    def serial(self) -> str:
        """The serial number in hex, as its bytes are in the DER."""
        from asn1crypto import x509

        return bytes(x509.Certificate.load(self.der)["tbs_certificate"]["serial_number"].contents).hex()

    @property
    def text(self) -> str:
        """base64 of the DER: what manifests carry."""
        return base64.b64encode(self.der).decode()

    @property
    def pem(self) -> bytes:
        """What programs read."""
        from asn1crypto import pem

        return bytes(pem.armor("CERTIFICATE", self.der))


def parse_certificate(der: bytes, origin: str) -> Certificate:
    """A certificate from its DER; SigningError, naming `origin`, where it is none, or not of an RSA key.

    The kernel takes RSA from every release on, other keys (ECDSA, since 5.13) not everywhere.
    """
    from asn1crypto import x509

    try:
        found = x509.Certificate.load(der, strict=True)
        subject, algorithm, key_id = found.subject.human_friendly, found.public_key.algorithm, _key_id(found)
    except Exception as error:  # asn1crypto means to raise ValueError, damaged DER brings out many more
        raise _unusable(origin, f"it is damaged ({type(error).__name__})") from error
    if algorithm != "rsa":
        raise _unusable(origin, f"its key is {algorithm}, and has to be rsa")
    return Certificate(der, subject, key_id)


def _key_id(found: Any) -> Optional[str]:
    return found.key_identifier.hex() if found.key_identifier else None


def read_certificates(path: Path) -> tuple[Certificate, ...]:
    """The certificates of a file, PEM (one or more) or DER; SigningError where there is none."""
    try:
        with path.open("rb") as file:
            data = file.read(_LIMIT)
    except OSError as error:
        raise _unusable(str(path), error.strerror or str(error)) from error
    return parse_certificates(data, str(path))


def parse_certificates(data: bytes, origin: str) -> tuple[Certificate, ...]:
    """The same from what such a file holds; `origin` is what an error calls it."""
    from asn1crypto import pem

    data = data[:_LIMIT]
    if not pem.detect(data):
        return (parse_certificate(data, origin),)
    try:
        blocks = [(name, der) for name, _, der in pem.unarmor(data, multiple=True)]
    except Exception as error:
        raise _unusable(origin, f"its PEM is damaged ({error})") from error
    found = tuple(parse_certificate(der, origin) for name, der in blocks if name == "CERTIFICATE")
    if not found:
        raise _unusable(origin, "it holds none")
    return found


def read_certificate(path: Path) -> Certificate:
    """The first certificate of a file: that of a signing key stands first in a chain."""
    return read_certificates(path)[0]


def _unusable(origin: str, why: str) -> SigningError:
    return SigningError(
        f"{origin} cannot be used as a certificate: {why}",
        hint="give an X.509 certificate of an RSA key, PEM or DER",
    )
