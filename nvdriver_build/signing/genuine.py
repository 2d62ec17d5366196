"""Is the signature behind a module one of its bytes, by that certificate? A forecast of what the kernel says.

It is made at each start of a node, so no program is started and nothing is copied: the one value that an RSA
signature over these bytes has once it is opened (RFC 8017, 8.2.2 and 9.2) is compared with what is there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Optional

from nvdriver_build.elf import appended_signature, unsigned_digest
from nvdriver_build.errors import SigningError
from nvdriver_build.signing.certificates import Certificate
from nvdriver_build.signing.cms import require_form

_PREFIXES = {
    "sha256": "3031300d060960864801650304020105000420",
    "sha384": "3041300d060960864801650304020205000430",
    "sha512": "3051300d060960864801650304020305000440",
}
"""The DER in front of a digest (RFC 8017, 9.2, note 1)."""
_MOST_BITS = 16384
"""Of a modulus; the kernel takes 4096 of them. One of a hostile certificate would take minutes."""
_MOST_EXPONENT = 2**32


def is_genuine(module: Path, certificate: Certificate) -> Optional[bool]:
    """Whether the signature is of these bytes by that certificate, in our form; None where there is none.

    ModuleFormatError where the file is damaged.
    """
    from asn1crypto import cms

    der = appended_signature(module)
    if der is None:
        return None
    try:
        require_form(der, False, [certificate.id])
    except SigningError:
        return False
    info = cms.ContentInfo.load(der)["content"]["signer_infos"][0]
    hash_name = info["digest_algorithm"]["algorithm"].native
    told = bytes.fromhex(_PREFIXES[hash_name]) + unsigned_digest(module, hash_name)
    return _is_of(info["signature"].native, told, certificate)


def _is_of(value: bytes, told: bytes, certificate: Certificate) -> bool:
    from asn1crypto import x509

    key = x509.Certificate.load(certificate.der).public_key["public_key"].parsed
    modulus, exponent = int(key["modulus"].native), int(key["public_exponent"].native)
    if modulus.bit_length() > _MOST_BITS or not 2 < exponent < _MOST_EXPONENT:
        return False
    size = (modulus.bit_length() + 7) // 8
    padded = b"\0\1" + b"\xff" * (size - 3 - len(told)) + b"\0" + told
    opened = pow(int.from_bytes(value, "big"), exponent, modulus)
    return len(value) == len(padded) == size and bytes(opened.to_bytes(size, "big")) == padded
