"""Signed manifests: who may feed a node kernel code.

What comes from outside of a node is taken only with a signature over the very bytes of its manifest, which
holds the digest of every module, by a certificate that was configured.
"""

from __future__ import annotations

from typing import Optional

from attrs import frozen

from nvdriver_build.commands import Commands
from nvdriver_build.errors import CannotVerify, SigningError
from nvdriver_build.signing.certificates import Certificate
from nvdriver_build.signing.cms import Signer, private_place, sign, verify

TRUST_HINT = "NVDRIVER_TRUST names the certificates of those who may build for this node"


@frozen
class Trust:
    """The certificates whose manifests are taken; none of them: nothing from outside is."""

    certificates: tuple[Certificate, ...] = ()

    def require(self, manifest: bytes, signature: Optional[bytes], where: str, commands: Commands) -> None:
        """SigningError unless `manifest` is signed by one of them; `where` names what it came from."""
        if not self.certificates:
            raise SigningError(
                f"{where} is not taken: no certificate is configured that could have signed it",
                hint=TRUST_HINT,
            )
        if signature is None:
            raise SigningError(
                f"{where} is not taken: its manifest is not signed",
                hint="sign it where it is built: NVDRIVER_SIGN_KEY and NVDRIVER_SIGN_CERT",
            )
        try:
            verify(manifest, signature, self.certificates, commands, attributes=True)
        except CannotVerify as error:
            raise CannotVerify(f"{where} is not taken: {error.message}", hint=error.hint) from error
        except SigningError as error:
            raise SigningError(
                f"{where} is not taken, its manifest's signature is refused: {error.message}",
                hint=error.hint
                or "was it made by somebody else, or changed on the way? NVDRIVER_TRUST says who may",
            ) from error


def sign_manifest(manifest: bytes, signer: Signer, commands: Commands) -> bytes:
    """The signature over the bytes of a manifest; SigningError where the key cannot be used."""
    with private_place() as private:
        document = private / "manifest.json"
        document.write_bytes(manifest)
        return sign(document, signer, commands, attributes=True)
