"""The keys that the running kernel trusts for modules, by the subject key ids of their certificates.

`keyctl list %:NAME` (keyutils) tells what is in a keyring. Without that program there is /proc/keys
(proc(5); kernel: security/keys/proc.c, crypto/asymmetric_keys/asymmetric_type.c), which names every key that
its reader may see, and no keyring. Both need root, and a /proc that a container runtime has not masked.

A kernel looks for a module's key in .secondary_trusted_keys, which .builtin_trusted_keys and .machine (keys
enrolled by mokutil) are linked to; those of RHEL, Fedora, Debian and Ubuntu also in .platform (the firmware's
db). What is in .blacklist is refused.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Dict, Mapping, Optional

from attrs import frozen

from nvdriver_build.commands import CommandError, Commands

TRUSTED = (".builtin_trusted_keys", ".secondary_trusted_keys", ".machine", ".platform")
REVOKED = ".blacklist"
_LISTED = re.compile(r"^\s*\d+: \S+ +\d+ +\d+ asymmetric: .*: ([0-9a-f]+)\s*$", re.MULTILINE)
_PROC = re.compile(
    r"^[0-9a-f]+ I[^RDUNi ]* +\d+ (?!expd)\S+ [0-9a-f]+ +0 +\d+ asymmetri .*: ([0-9a-f]+): X509\.",
    re.MULTILINE,
)
"""Of root's, and whole: neither revoked, dead, invalid, negative nor expired."""
_SEEN = re.compile(r" keyring +\.builtin_trusted_keys: ")
"""Every kernel that checks signatures has it, and nobody but root sees it."""
_LIMIT = 10.0
"""Seconds that keyctl may take."""


@frozen
class Keyrings:
    """Where a certificate is, by the id that the kernel knows it by; "" where that is not told."""

    trusted: Mapping[str, str]
    revoked: frozenset[str] = frozenset()

    def holds(self, key_id: str) -> bool:
        """Whether the kernel trusts the certificate with this subject key id (hex)."""
        known = kernel_id(key_id)
        return known in self.trusted and known not in self.revoked


def kernel_id(key_id: str) -> str:
    """A subject key id, or a serial number, as the kernel writes it: without a first byte of zero.

    Kernel: crypto/asymmetric_keys/x509_public_key.c, x509_key_preparse.
    """
    return key_id[2:] if key_id.startswith("00") and len(key_id) > 2 else key_id


def read_keyrings(proc: Path, commands: Commands) -> Optional[Keyrings]:
    """The trusted keys of the kernel that runs; None where it does not tell (no root, a masked /proc)."""
    try:
        keys = (proc / "keys").read_text(errors="replace")
    except OSError:
        return None
    if not _SEEN.search(keys):
        return None
    if commands.find("keyctl") is not None:
        listed = {name: _listed(name, commands) for name in (*TRUSTED, REVOKED)}
        if listed[TRUSTED[0]] is not None:
            return _of(listed)
    return Keyrings(dict.fromkeys(_PROC.findall(keys), ""))


def _of(listed: Mapping[str, Optional[str]]) -> Keyrings:
    trusted: Dict[str, str] = {}
    for name in TRUSTED:
        for key_id in _LISTED.findall(listed[name] or ""):
            trusted.setdefault(key_id, name)
    return Keyrings(trusted, frozenset(_LISTED.findall(listed[REVOKED] or "")))


def _listed(name: str, commands: Commands) -> Optional[str]:
    """What is in a keyring; None where there is none of that name."""
    try:
        done = commands.run(["keyctl", "list", f"%:{name}"], timeout=_LIMIT)
    except CommandError:
        return None
    return done.stdout if done.ok else None
