"""Signed manifests, with the real openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from keys import Identity, make_identity

from nvdriver_build.commands import SystemCommands
from nvdriver_build.errors import SigningError
from nvdriver_build.signing import Signer, Trust, read_certificate, read_certificates, sign_manifest

COMMANDS = SystemCommands()
MANIFEST = b'{"schema": 1}\n'


@pytest.fixture(scope="module")
def signature(ours: Identity) -> bytes:
    return sign_manifest(MANIFEST, ours.signer, COMMANDS)


def refused(trust: Trust, manifest: bytes, signature: object) -> str:
    with pytest.raises(SigningError) as caught:
        trust.require(manifest, signature, "set 1234 of the registry", COMMANDS)  # type: ignore[arg-type]
    assert caught.value.message.startswith("set 1234 of the registry is not taken")
    assert caught.value.hint
    return caught.value.message


def test_what_a_trusted_key_signed_is_taken(ours: Identity, theirs: Identity, signature: bytes) -> None:
    """The signature by any of the configured certificates is enough, in whatever order they stand."""
    Trust((ours.certificate,)).require(MANIFEST, signature, "it", COMMANDS)
    Trust((theirs.certificate, ours.certificate)).require(MANIFEST, signature, "it", COMMANDS)


def test_nothing_is_taken_where_nobody_is_trusted(signature: bytes) -> None:
    """Without a configured certificate even a signed manifest is refused; the hint names the setting."""
    assert "no certificate is configured" in refused(Trust(), MANIFEST, signature)


def test_an_unsigned_manifest_is_refused(ours: Identity) -> None:
    """No signature, no set."""
    assert "is not signed" in refused(Trust((ours.certificate,)), MANIFEST, None)


def test_the_signature_of_somebody_else_is_refused(theirs: Identity, signature: bytes) -> None:
    """A sound signature by a certificate that is not configured names it."""
    assert "of Common Name: Build key, who is not trusted" in refused(
        Trust((theirs.certificate,)), MANIFEST, signature
    )


def test_a_certificate_that_looks_the_same_is_refused(
    ours: Identity, signature: bytes, tmp_path: Path
) -> None:
    """Another key under the same name and serial number does not pass."""
    serial = subprocess.run(
        ["openssl", "x509", "-in", str(ours.file), "-noout", "-serial"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    twin = make_identity(tmp_path, "Build key", "-nodes", "-set_serial", "0x" + serial.partition("=")[2])
    assert "verification failure" in refused(Trust((twin.certificate,)), MANIFEST, signature)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("-noattr",), "of the form that is for modules"),
        (("-nodetach",), "not detached"),
        (("-md", "sha1"), "its digest is sha1"),
    ],
)
def test_other_forms_are_refused(words: tuple[str, ...], why: str, ours: Identity, tmp_path: Path) -> None:
    """A signature as modules have it, with the content in it, or with a weak digest is none of a manifest."""
    (tmp_path / "document").write_bytes(MANIFEST)
    argv = ["openssl", "cms", "-sign", "-binary", "-outform", "DER", "-in", str(tmp_path / "document")]
    argv += ["-signer", str(ours.file), "-inkey", str(ours.key), "-out", str(tmp_path / "made"), *words]
    subprocess.run(argv, check=True, capture_output=True)
    assert why in refused(Trust((ours.certificate,)), MANIFEST, (tmp_path / "made").read_bytes())


def test_a_second_signer_is_refused(ours: Identity, theirs: Identity, tmp_path: Path) -> None:
    """Only one signer is read: nobody can add himself to what somebody else signed."""
    (tmp_path / "document").write_bytes(MANIFEST)
    argv = ["openssl", "cms", "-sign", "-binary", "-outform", "DER", "-in", str(tmp_path / "document")]
    for each in (ours, theirs):
        argv += ["-signer", str(each.file), "-inkey", str(each.key)]
    subprocess.run([*argv, "-out", str(tmp_path / "made")], check=True, capture_output=True)
    assert "it has 2 signers" in refused(
        Trust((ours.certificate,)), MANIFEST, (tmp_path / "made").read_bytes()
    )


@pytest.mark.once
def test_no_changed_byte_passes(ours: Identity, signature: bytes) -> None:
    """A changed byte is refused, wherever it is: in the manifest, and in what no key protects."""
    both = MANIFEST + signature
    number = len(both) - 250  # all the bytes behind it are the RSA signature's: some will do
    for place in (*range(number), *range(number, len(both), 25)):
        changed = bytearray(both)
        changed[place] ^= 0x20
        refused(Trust((ours.certificate,)), bytes(changed[: len(MANIFEST)]), bytes(changed[len(MANIFEST) :]))


def test_a_signature_of_any_size_is_bounded(ours: Identity) -> None:
    """What is larger than any signature is not even parsed."""
    assert "it has 100000 bytes" in refused(Trust((ours.certificate,)), MANIFEST, b"\x30" * 100000)


def test_a_key_that_is_not_the_certificates_cannot_sign(ours: Identity, theirs: Identity) -> None:
    """openssl's own reason is told, with a hint."""
    with pytest.raises(SigningError, match="cannot be signed: ") as caught:
        sign_manifest(MANIFEST, Signer(str(theirs.key), ours.certificate), COMMANDS)
    assert caught.value.hint


def test_certificates_are_read_in_both_forms(ours: Identity, theirs: Identity, tmp_path: Path) -> None:
    """PEM with several certificates, and DER; the fingerprint is that of openssl."""
    (tmp_path / "both.pem").write_bytes(ours.file.read_bytes() + theirs.file.read_bytes())
    (tmp_path / "one.der").write_bytes(ours.certificate.der)
    assert read_certificates(tmp_path / "both.pem") == (ours.certificate, theirs.certificate)
    assert read_certificate(tmp_path / "one.der") == ours.certificate
    argv = ["openssl", "x509", "-in", str(ours.file), "-noout", "-fingerprint", "-sha256"]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert said.partition("=")[2].strip().replace(":", "").lower() == ours.certificate.fingerprint
    assert ours.certificate.key_id is not None and len(ours.certificate.key_id) == 40


def test_what_is_no_certificate_is_told(ours: Identity, tmp_path: Path) -> None:
    """A key, an empty file, noise, a file that is not there: each is a SigningError that names the file."""
    (tmp_path / "noise").write_bytes(b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n")
    (tmp_path / "empty").write_bytes(b"")
    for path in (ours.key, tmp_path / "noise", tmp_path / "empty", tmp_path / "gone"):
        with pytest.raises(SigningError, match=str(path)):
            read_certificates(path)


def test_other_keys_than_rsa_are_refused(tmp_path: Path) -> None:
    """Not every kernel knows them."""
    argv = ["openssl", "req", "-x509", "-newkey", "ed25519", "-nodes", "-subj", "/CN=Ed"]
    argv += ["-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "ed.pem")]
    subprocess.run(argv, check=True, capture_output=True)
    with pytest.raises(SigningError, match="its key is ed25519"):
        read_certificate(tmp_path / "ed.pem")
