"""Signatures of modules: made here, or made elsewhere and attached here.

They are what scripts/sign-file of the kernel makes, byte by byte: CMS over the whole module without signed
attributes and without certificates, then twelve bytes and a magic line. A module is stripped before
that (by the build), never after.
"""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Mapping

from attrs import evolve

from nvdriver_build.commands import Commands
from nvdriver_build.elf import as_appended, unsigned_bytes
from nvdriver_build.errors import SigningError
from nvdriver_build.files import publish, read_plain
from nvdriver_build.sets import MANIFEST, SIGNATURE, ModuleSet, describe
from nvdriver_build.signing.certificates import Certificate
from nvdriver_build.signing.cms import HASHES, SIZE_LIMIT, Signer, require_form, sign
from nvdriver_build.signing.documents import sign_manifest
from nvdriver_build.signing.genuine import is_genuine

DETACHED = ".p7s"
"""What `sign-file -d` adds to the name of a module."""
_HASH = "sha256"


def kernel_hash(config: Mapping[str, str]) -> str:
    """The digest that a kernel's own modules are signed with, so it has it; sha256 where that is weak."""
    name = config.get("MODULE_SIG_HASH", _HASH)
    return name if name in HASHES else _HASH


def sign_set(
    unsigned: ModuleSet, place: Path, signer: Signer, commands: Commands, hash_name: str
) -> ModuleSet:
    """A copy of a set in the new folder `place`, its modules and its manifest signed; SigningError."""

    def signature(module: Path) -> bytes:
        return sign(module, signer, commands, hash_name=hash_name, attributes=False)

    made = _signed(unsigned, place, signer.certificate, signature)
    publish(place / SIGNATURE, sign_manifest((place / MANIFEST).read_bytes(), signer, commands))
    return made


def attach_signatures(unsigned: ModuleSet, place: Path, certificate: Certificate, folder: Path) -> ModuleSet:
    """A copy of a set in the new folder `place`, with the signatures NAME.ko.p7s of `folder`.

    SigningError where one is not there, not as the kernel wants it, or not of these bytes by `certificate`.
    """

    def signature(module: Path) -> bytes:
        return _made_elsewhere(folder / f"{module.name}{DETACHED}", certificate)

    return _signed(unsigned, place, certificate, signature)


def _made_elsewhere(path: Path, certificate: Certificate) -> bytes:
    try:
        signature = read_plain(path, SIZE_LIMIT + 1)
    except OSError as error:
        raise SigningError(
            f"{path} cannot be read: {error.strerror or error}",
            hint="sign-file -d HASH KEY CERTIFICATE NAME.ko writes it: one for each module is needed",
        ) from error
    try:
        require_form(signature, False, [certificate.id])
    except SigningError as error:
        raise SigningError(
            f"{path}: {error.message}",
            hint="make it with sign-file -d, or openssl cms -sign -binary -noattr -nocerts -nosmimecap",
        ) from error
    return signature


def _signed(
    unsigned: ModuleSet, place: Path, certificate: Certificate, signature: Callable[[Path], bytes]
) -> ModuleSet:
    place.mkdir(parents=True, exist_ok=True)
    manifest = unsigned.manifest
    for path in unsigned.paths:
        module = place / path.name
        module.write_bytes(unsigned_bytes(path))
        made = signature(module)
        with module.open("ab") as file:
            file.write(as_appended(made))
        if is_genuine(module, certificate) is not True:
            raise SigningError(
                f"the signature of {path.name} is not of these bytes by {certificate.subject}",
                hint="do key, certificate and signatures belong together, and are they of these very files?",
            )
    return describe(
        place,
        evolve(manifest.recipe, certificate=certificate.fingerprint),
        manifest.provenance,
        flavour=manifest.flavour,
        vermagic=manifest.vermagic,
        config_digest=manifest.config_digest,
        certificate=certificate.text,
    )
