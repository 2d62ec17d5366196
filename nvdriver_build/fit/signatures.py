"""The kernel's reasons against the signature of a module.

Kernel: kernel/module/signing.c (module_sig_check: which refusals count only where signatures are enforced),
crypto/asymmetric_keys/pkcs7_verify.c and pkcs7_trust.c (the digest first, then the key, then the signature).
"""

from __future__ import annotations

from typing import Mapping, Optional

from attrs import frozen

from nvdriver_build.elf import ModuleFacts

_SETTINGS = {
    "sha1": "CRYPTO_SHA1",
    "sha224": "CRYPTO_SHA256",
    "sha256": "CRYPTO_SHA256",
    "sha384": "CRYPTO_SHA512",
    "sha512": "CRYPTO_SHA512",
}
"""The setting that gives a kernel a digest (crypto/Kconfig)."""


@frozen
class Signed:
    """What is known of a module's signature that its ELF does not say; None is 'not known'.

    `genuine`: it is of these bytes, by the certificate that the set names. `trusted`: that certificate is one
    of the kernel's. `signer` names it for people. `meant`: the set says that its modules are signed.
    """

    genuine: Optional[bool] = None
    trusted: Optional[bool] = None
    signer: str = "a key"
    meant: bool = False


UNKNOWN = Signed()


def against(module: ModuleFacts, signed: Signed, config: Mapping[str, str], enforced: bool) -> Optional[str]:
    """Why the kernel would refuse the module for its signature, or None."""
    if module.signature is None:
        return _unsigned(signed) if enforced else None
    if enforced and not _has_hash(module.signature.hash, config):
        return f"is signed over a {module.signature.hash} digest, which this kernel does not have"
    if enforced and signed.trusted is False:
        return f"is signed by {signed.signer}, which this kernel does not trust"
    if signed.genuine is False:
        return (
            f"has a signature that is not of these bytes by {signed.signer}: they were changed after signing"
        )
    return None


def _unsigned(signed: Signed) -> str:
    if signed.meant:
        return (
            "is not signed any more, it was stripped after signing, and the kernel takes signed modules only"
        )
    return "is not signed, and the kernel takes signed modules only"


def _has_hash(name: Optional[str], config: Mapping[str, str]) -> bool:
    """Whether the kernel has a digest; a configuration that is not known, and a digest that is not, may."""
    setting = _SETTINGS.get(name or "")
    return setting is None or "MODULE_SIG" not in config or setting in config
