"""Signatures: of modules, by keys that a kernel trusts, and of manifests, by those that a node trusts."""

from nvdriver_build.signing.certificates import (
    Certificate,
    parse_certificate,
    read_certificate,
    read_certificates,
)
from nvdriver_build.signing.cms import Signer
from nvdriver_build.signing.documents import TRUST_HINT, Trust, sign_manifest

__all__ = [
    "TRUST_HINT",
    "Certificate",
    "Signer",
    "Trust",
    "parse_certificate",
    "read_certificate",
    "read_certificates",
    "sign_manifest",
]
