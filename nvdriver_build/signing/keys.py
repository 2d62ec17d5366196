"""Where a signing key is: a file, or in a PKCS#11 token (RFC 7512). The key itself is never read here."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

from nvdriver_build.commands import CommandError, Commands
from nvdriver_build.errors import SigningError, UsageError

TOKEN = "pkcs11:"
_SECRET = "pin-value"
_ENGINE = ["-engine", "pkcs11", "-keyform", "engine"]
_PROVIDER = ["-provider", "pkcs11", "-provider", "default"]
_TIMEOUT = 20.0


def checked_key(name: str, text: str) -> str:
    """A path, made absolute, or a `pkcs11:` URI; UsageError, which does not repeat it, where it has a PIN.

    `name` is that of the setting or option. Everybody who lists processes sees the arguments of openssl.
    """
    if not text.startswith(TOKEN):
        return str(Path(text).absolute())
    if _SECRET in unquote(text).lower():
        raise UsageError(
            f"{name} has a {_SECRET} in it, which everybody on this machine could read",
            hint="take it out, and name a file with the PIN: NVDRIVER_SIGN_PIN_FILE or --pin-file",
        )
    if not text.isprintable():
        raise UsageError(
            f"{name} is no URI of one line", hint="see RFC 7512, such as pkcs11:token=T;object=O"
        )
    return text


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
