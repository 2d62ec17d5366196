"""The kernel that runs here, and what it asks of modules (Secure Boot, lockdown, signature enforcement)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Optional

from attrs import frozen

from nvdriver_build.kernel.target import ARCHITECTURES

_SECURE_BOOT = "firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
_LOCKDOWN = re.compile(r"\[(\w+)\]")


@frozen
class RunningKernel:
    """`release` is `uname -r`, `version` is `uname -v`."""

    release: str
    version: str
    arch: str

    @classmethod
    def read(cls, proc: Path, machine: str) -> RunningKernel:
        """Read it from a /proc; `machine` is `uname -m`."""
        kernel = proc / "sys/kernel"
        release = (kernel / "osrelease").read_text().strip()
        version = (kernel / "version").read_text().strip()
        return cls(release, version, ARCHITECTURES.get(machine, machine))


@frozen
class Security:
    """What the running kernel asks of modules; None where it does not tell.

    `sig_enforce` is /sys/module/module/parameters/sig_enforce, `lockdown` the mode of
    /sys/kernel/security/lockdown, `secure_boot` the last byte of the EFI variable SecureBoot.
    """

    sig_enforce: Optional[bool]
    lockdown: Optional[str]
    secure_boot: Optional[bool]

    @property
    def enforces(self) -> bool:
        """Whether an unsigned module is refused (kernel: kernel/module/signing.c, mod_sig_check)."""
        return bool(self.sig_enforce) or self.lockdown in ("integrity", "confidentiality")


def read_security(sys: Path) -> Security:
    """Read the state below a /sys."""
    enforce = _text(sys / "module/module/parameters/sig_enforce")
    mode = _LOCKDOWN.search(_text(sys / "kernel/security/lockdown") or "")
    return Security(
        sig_enforce=None if enforce is None else enforce.strip() == "Y",
        lockdown=mode.group(1) if mode else None,
        secure_boot=_secure_boot(sys / _SECURE_BOOT),
    )


def _text(path: Path) -> Optional[str]:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None


def _secure_boot(path: Path) -> Optional[bool]:
    try:
        return {b"\0": False, b"\1": True}.get(path.read_bytes()[4:])
    except OSError:
        return None
