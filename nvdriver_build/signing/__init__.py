"""Signatures: of modules, by keys that a kernel trusts, and of manifests, by those that a node trusts."""

from nvdriver_build.signing.certificates import (
    Certificate,
    parse_certificate,
    parse_certificates,
    read_certificate,
    read_certificates,
)
from nvdriver_build.signing.cms import Signer
from nvdriver_build.signing.documents import TRUST_HINT, Trust, sign_manifest
from nvdriver_build.signing.genuine import is_genuine
from nvdriver_build.signing.identity import Identity, read_identity
from nvdriver_build.signing.kernel_trust import ENROLL, NOT_KNOWN, KernelTrust, signing_certificate, who
from nvdriver_build.signing.modules import attach_signatures, kernel_hash, sign_set

__all__ = [
    "ENROLL",
    "NOT_KNOWN",
    "TRUST_HINT",
    "Certificate",
    "Identity",
    "KernelTrust",
    "Signer",
    "Trust",
    "attach_signatures",
    "is_genuine",
    "kernel_hash",
    "parse_certificate",
    "parse_certificates",
    "read_certificate",
    "read_certificates",
    "read_identity",
    "sign_manifest",
    "sign_set",
    "signing_certificate",
    "who",
]
