"""What the kernel that runs makes of signatures: asked of it once, then said of any set before it loads."""

from __future__ import annotations

import base64
from typing import Mapping, Optional

from attrs import frozen

from nvdriver_build.errors import SigningError
from nvdriver_build.fit import Signed
from nvdriver_build.kernel.keyrings import Keyrings
from nvdriver_build.sets import ModuleSet
from nvdriver_build.signing.certificates import Certificate, parse_certificate
from nvdriver_build.signing.genuine import is_genuine


@frozen
class KernelTrust:
    """Whether unsigned modules are refused (`enforced`; None: its configuration says so) and which keys are
    trusted; None where the kernel does not tell, or does not run here."""

    enforced: Optional[bool] = None
    keyrings: Optional[Keyrings] = None

    def holds(self, certificate: Certificate) -> Optional[bool]:
        """Whether the kernel trusts this certificate; None where that is not known."""
        if self.keyrings is None:
            return None
        return self.keyrings.holds(certificate.key_id or certificate.serial)

    def signed(self, module_set: ModuleSet) -> Mapping[str, Signed]:
        """What is known of the signatures of a set's modules, for `check_fit`; ModuleFormatError."""
        certificate = signing_certificate(module_set)
        if certificate is None:
            return {}
        trusted = self.holds(certificate)
        return {
            facts.name: Signed(is_genuine(path, certificate), trusted, who(certificate), meant=True)
            for path, facts in zip(module_set.paths, module_set.read())
        }

    def require(self, certificate: Certificate) -> None:
        """SigningError where the kernel would refuse whatever this certificate signs."""
        if self.enforced and self.holds(certificate) is False:
            raise SigningError(
                f"this kernel does not trust modules that are signed by {who(certificate)}",
                hint=ENROLL,
            )


NOT_KNOWN = KernelTrust()
"""Of a kernel that does not run here."""
ENROLL = (
    "enroll that certificate: `mokutil --import CERTIFICATE.der`, confirmed at the console at the next boot, "
    "or in the firmware's db; it counts only while Secure Boot is on"
)


def who(certificate: Certificate) -> str:
    """A certificate's name and what the kernel calls it."""
    return f"{certificate.subject} (subject key id {certificate.key_id or 'none'})"


def signing_certificate(module_set: ModuleSet) -> Optional[Certificate]:
    """The certificate that a set names, of which `open_set` has seen that it is its recipe's."""
    text = module_set.manifest.certificate
    if text is None:
        return None
    return parse_certificate(base64.b64decode(text), f"the certificate of {module_set.folder}")
