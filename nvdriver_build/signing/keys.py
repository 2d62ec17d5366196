"""Keys in PKCS#11 tokens (RFC 7512)."""

from __future__ import annotations

from nvdriver_build.commands import CommandError, Commands
from nvdriver_build.errors import SigningError

TOKEN = "pkcs11:"
"""What such a key's URI begins with; every other key is the path of a file."""
_ENGINE = ["-engine", "pkcs11", "-keyform", "engine"]
_PROVIDER = ["-provider", "pkcs11", "-provider", "default"]
_TIMEOUT = 20.0


def token_words(commands: Commands) -> list[str]:
    """What openssl has to be told to use PKCS#11 here: an engine (RHEL 9, Debian 12) or a provider (RHEL 10).

    Which token library is used is the system's to say: p11-kit's modules, or openssl.cnf.
    """
    if _works(["openssl", "engine", "-t", "pkcs11"], commands, "[ available ]"):
        return _ENGINE
    if _works(["openssl", "list", "-providers", *_PROVIDER], commands, "pkcs11"):
        return _PROVIDER
    raise SigningError(
        "openssl cannot use PKCS#11 here: it has neither the engine nor the provider pkcs11",
        hint="install openssl-pkcs11 (RHEL 9), pkcs11-provider (RHEL 10), libengine-pkcs11-openssl (Debian)",
    )


def _works(argv: list[str], commands: Commands, word: str) -> bool:
    try:
        done = commands.run(argv, timeout=_TIMEOUT)
    except CommandError:
        return False
    return done.ok and word in done.stdout
