"""Detached CMS signatures (RFC 5652), made and checked by the openssl program.

The program works offline, with keys of a PKCS#11 token, and in FIPS mode as the system has it. Two forms
exist, and neither is ever taken for the other: without signed attributes, as the kernel wants modules to be
signed (scripts/sign-file.c), and with them, for documents.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any, Iterator, Optional, Sequence

from attrs import frozen

from nvdriver_build.commands import CommandError, Commands
from nvdriver_build.errors import CannotVerify, SigningError
from nvdriver_build.files import private_folder
from nvdriver_build.signing.certificates import Certificate
from nvdriver_build.signing.keys import TOKEN, token_words

HASHES = ("sha256", "sha384", "sha512")
"""Digests that a signature may have; of the others of the kernel, sha1 and sha224 are weak or rare."""
SIZE_LIMIT = 64 * 1024
"""Bytes that a signature may have; one without certificates has about 500."""
_TIMEOUT = 60.0
"""Seconds for one signature; a token over the network may take some."""


@frozen
class Signer:
    """Who signs: the private key (path or `pkcs11:` URI), its certificate, a file with PIN or passphrase."""

    key: str
    certificate: Certificate
    pin_file: Optional[Path] = None


def sign(
    document: Path, signer: Signer, commands: Commands, *, hash_name: str = "sha256", attributes: bool
) -> bytes:
    """The signature over the bytes of a file, as DER; SigningError where the key cannot be used."""
    with private_place() as private:
        certificate, made = private / "certificate.pem", private / "signature"
        certificate.write_bytes(signer.certificate.pem)
        argv = ["openssl", "cms", "-sign", "-binary", "-nosmimecap", "-nocerts", "-outform", "DER"]
        argv += [] if attributes else ["-noattr"]
        argv += ["-md", hash_name, "-in", str(document), "-signer", str(certificate), "-out", str(made)]
        _openssl([*argv, *_key(signer, commands)], commands, f"{document.name} cannot be signed", _KEY_HINT)
        return made.read_bytes()


_KEY_HINT = (
    "is the key there, readable, that of the certificate, and its PIN or passphrase in the file that "
    "NVDRIVER_SIGN_PIN_FILE (or --pin-file) names?"
)


@contextlib.contextmanager
def private_place() -> Iterator[Path]:
    """A folder for what openssl reads and writes, never a key; one that a killed process left is swept."""
    try:
        with private_folder(Path(tempfile.gettempdir())) as folder:
            yield folder
    except OSError as error:
        raise CannotVerify(
            f"there is no folder to sign or verify in: {error}",
            hint="mount a volume at /tmp, with space left",
        ) from error


def _key(signer: Signer, commands: Commands) -> list[str]:
    """openssl's words for the key; it never asks a terminal for what protects it."""
    words, secret = ["-inkey", signer.key], "pass:" if signer.pin_file is None else f"file:{signer.pin_file}"
    if signer.key.startswith(TOKEN):
        words = [*token_words(commands), *words]
        if signer.pin_file is None:  # an empty one would count as a wrong one: some tokens lock themselves
            raise SigningError(f"no file with the PIN is given for {signer.key}", hint=_KEY_HINT)
    return [*words, "-passin", secret]


def verify(
    document: bytes, signature: bytes, trusted: Sequence[Certificate], commands: Commands, *, attributes: bool
) -> None:
    """SigningError unless `signature` is one of `document` by the key of a trusted certificate.

    The certificate itself has to be among the trusted ones: no chain is followed, and no date is looked at,
    since the clock of a node that boots may be anywhere; who is trusted is changed by configuration.
    """
    require_form(signature, attributes, [each.id for each in trusted])
    names = ", ".join(each.subject for each in trusted)
    with private_place() as private:
        paths = [private / name for name in ("document", "signature", "trusted.pem")]
        for path, content in zip(paths, (document, signature, b"".join(each.pem for each in trusted))):
            path.write_bytes(content)
        argv = ["openssl", "cms", "-verify", "-binary", "-inform", "DER", "-in", str(paths[1])]
        argv += ["-content", str(paths[0]), "-certfile", str(paths[2]), "-nointern", "-noverify"]
        _openssl([*argv, "-out", "/dev/null"], commands, f"it is not one by {names}", None)


def require_form(signature: bytes, attributes: bool, ids: Sequence[bytes]) -> None:
    """One signer of these, detached, a strong digest, the form meant: what openssl alone does not demand."""
    from asn1crypto import cms

    if len(signature) > SIZE_LIMIT:
        raise _bad(f"it has {len(signature)} bytes")
    try:
        content = cms.ContentInfo.load(signature, strict=True)
        _ = content.native  # every part of it is parsed
        why = _against(content["content"], attributes, ids)
    except Exception as error:  # asn1crypto means to raise ValueError, damaged DER brings out many more
        raise _bad(f"it is damaged ({type(error).__name__})") from error
    if why is not None:
        raise _bad(why)


def _against(signed: Any, attributes: bool, ids: Sequence[bytes]) -> Optional[str]:
    """What is not as `sign` makes it; the rest is what the signature itself protects."""
    if signed["encap_content_info"].native != {"content_type": "data", "content": None}:
        return "it is not detached"
    if len(signed["signer_infos"]) != 1:
        return f"it has {len(signed['signer_infos'])} signers"
    info = signed["signer_infos"][0]
    hash_name = info["digest_algorithm"]["algorithm"].native
    if hash_name not in HASHES:
        return f"its digest is {hash_name}"
    if (len(info["signed_attrs"]) > 0) != attributes:
        return "it is of the form that is for modules" if attributes else "it has signed attributes"
    if info["sid"].dump() not in ids:
        return f"it is by {_who(info)}, who is not trusted"
    return None if _plain(signed, info) else "it is not as openssl makes it"


def _who(info: Any) -> str:
    if info["sid"].name != "issuer_and_serial_number":
        return "a key without a name"
    sid = info["sid"].chosen
    return f"certificate {sid['serial_number'].native:x} of {sid['issuer'].human_friendly}"


def _plain(signed: Any, info: Any) -> bool:
    """The fields that no signature protects have the one value that they can have."""
    return (
        (signed["version"].native, info["version"].native) == ("v1", "v1")
        and signed["digest_algorithms"].native == [info["digest_algorithm"].native]
        and info["digest_algorithm"]["parameters"].native is None
        and info["signature_algorithm"].native == {"algorithm": "rsassa_pkcs1v15", "parameters": None}
        and not any(signed[name].native for name in ("certificates", "crls"))
        and not info["unsigned_attrs"].native
    )


def _openssl(argv: list[str], commands: Commands, what: str, hint: Optional[str]) -> None:
    try:
        finished = commands.run(argv, timeout=_TIMEOUT)
    except CommandError as error:
        raise CannotVerify(f"{what}: {error}", hint=error.hint) from error
    if not finished.ok:
        raise SigningError(f"{what}: {_reason(finished.stderr)}", hint=hint)


def _reason(stderr: str) -> str:
    """The reason in the last line that has one: `hex:error:code:library:function:reason:file:line:`."""
    fields = [line.split(":") for line in stderr.splitlines() if ":error:" in line]
    return (
        fields[-1][5]
        if fields and len(fields[-1]) > 5
        else stderr.strip().rpartition("\n")[2] or "no reason given"
    )


def _bad(why: str) -> SigningError:
    return SigningError(f"the signature is not one that can be taken: {why}")
