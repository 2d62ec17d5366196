"""Signatures of modules, with the real openssl: made here, in a token, or elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Sequence

import pytest
from fake_toolchain import MODULES, module_bytes
from keys import PLAIN, Identity, cms, made_elsewhere, make_identity
from module_sets import PROVENANCE, recipe
from softtoken import PIN, make_token

from nvdriver_build.commands import SystemCommands
from nvdriver_build.config import checked_key
from nvdriver_build.elf import appended_signature, read_module, unsigned_bytes
from nvdriver_build.errors import ModuleFormatError, SigningError, UsageError
from nvdriver_build.sets import MANIFEST, SIGNATURE, ModuleSet, describe, open_set
from nvdriver_build.signing import (
    Signer,
    Trust,
    attach_signatures,
    is_genuine,
    kernel_hash,
    read_identity,
    sign_set,
    signing_certificate,
)

COMMANDS = SystemCommands()
PASSPHRASE = "correct horse battery staple"


@pytest.fixture
def unsigned(tmp_path: Path) -> ModuleSet:
    """A set of modules that no kernel would run."""
    folder = tmp_path / "unsigned"
    folder.mkdir()
    for name in MODULES:
        (folder / f"{name}.ko").write_bytes(module_bytes(name))
    of = recipe(modules=MODULES)
    return describe(folder, of, PROVENANCE, flavour="standard", vermagic="6.1 SMP ", config_digest="3" * 64)


@pytest.fixture
def signed(unsigned: ModuleSet, ours: Identity, tmp_path: Path) -> ModuleSet:
    return sign_set(unsigned, tmp_path / "signed", ours.signer, COMMANDS, "sha256")


def test_a_set_is_signed(unsigned: ModuleSet, signed: ModuleSet, ours: Identity) -> None:
    """The modules are the same with a signature behind them; recipe and manifest name the certificate."""
    for before, after in zip(unsigned.paths, signed.paths):
        assert unsigned_bytes(after) == before.read_bytes()
        assert after.read_bytes().startswith(before.read_bytes())
        assert appended_signature(after) == cms(before, ours, *PLAIN)
        assert is_genuine(after, ours.certificate) is True
        facts = read_module(after)
        assert facts.signature is not None and facts.signature.hash == "sha256"
    found = open_set(signed.folder)
    assert found.manifest.recipe.certificate == ours.certificate.fingerprint
    assert found.key != unsigned.key
    assert signing_certificate(found) == ours.certificate
    assert found.manifest.provenance == unsigned.manifest.provenance


def test_its_manifest_is_signed(signed: ModuleSet, ours: Identity) -> None:
    """By the same key, in the form for documents; a copy of the set takes that along."""
    manifest, signature = ((signed.folder / name).read_bytes() for name in (MANIFEST, SIGNATURE))
    Trust((ours.certificate,)).require(manifest, signature, "it", COMMANDS)
    assert {path.name for path in signed.files} == {path.name for path in signed.folder.iterdir()}


def test_signed_anew(signed: ModuleSet, theirs: Identity, unsigned: ModuleSet, tmp_path: Path) -> None:
    """A signature that is there is replaced; there is never one behind another."""
    again = sign_set(signed, tmp_path / "again", theirs.signer, COMMANDS, "sha512")
    for before, after in zip(unsigned.paths, again.paths):
        assert unsigned_bytes(after) == before.read_bytes()
        assert is_genuine(after, theirs.certificate) is True
        facts = read_module(after)
        assert facts.signature is not None and facts.signature.hash == "sha512"


def test_the_digest_is_the_kernels() -> None:
    """CONFIG_MODULE_SIG_HASH says which; where it is none of ours, sha256."""
    assert kernel_hash({"MODULE_SIG_HASH": "sha512"}) == "sha512"
    assert kernel_hash({"MODULE_SIG_HASH": "sha1"}) == kernel_hash({}) == "sha256"


def test_every_changed_byte_is_seen(signed: ModuleSet, ours: Identity) -> None:
    """In the module and in what RSA made of it; a description that is damaged is no module any more."""
    path = signed.paths[0]
    good, end = path.read_bytes(), len(unsigned_bytes(path))
    signature = appended_signature(path)
    assert signature is not None
    last = end + len(signature)
    for place in (*range(0, end, 101), *range(last - 256, last, 17)):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        assert is_genuine(path, ours.certificate) is False
    for place in range(end, last - 256, 3):
        path.write_bytes(good[:place] + bytes([good[place] ^ 0x10]) + good[place + 1 :])
        try:
            assert is_genuine(path, ours.certificate) is False
        except ModuleFormatError as error:
            assert str(path) in error.message


def test_whose_signature_it_is(signed: ModuleSet, unsigned: ModuleSet, theirs: Identity) -> None:
    """That of another certificate is not genuine, and where there is none nothing is said."""
    assert is_genuine(signed.paths[0], theirs.certificate) is False
    assert is_genuine(unsigned.paths[0], theirs.certificate) is None


def test_signatures_made_elsewhere(unsigned: ModuleSet, ours: Identity, tmp_path: Path) -> None:
    """With signatures made elsewhere the set is, byte by byte, the one that the key would have made."""
    made = made_elsewhere(unsigned, ours, tmp_path / "signatures")
    attached = attach_signatures(unsigned, tmp_path / "attached", ours.certificate, made)
    signed = sign_set(unsigned, tmp_path / "signed", ours.signer, COMMANDS, "sha256")
    assert [path.read_bytes() for path in attached.paths] == [path.read_bytes() for path in signed.paths]
    assert (attached.key, open_set(attached.folder)) == (signed.key, attached)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("-nocerts", "-md", "sha256"), "it has signed attributes"),
        ((*PLAIN, "-nodetach"), "not detached"),
        ((*PLAIN[:3], "-md", "sha1"), "its digest is sha1"),
        (("-noattr", "-md", "sha256"), "not as openssl makes it"),
    ],
)
def test_forms_that_the_kernel_refuses(
    words: Sequence[str], why: str, unsigned: ModuleSet, ours: Identity, tmp_path: Path
) -> None:
    """Signed attributes, embedded data, weak digests: told by name of the file, and nothing is attached."""
    made = made_elsewhere(unsigned, ours, tmp_path / "signatures", words)
    with pytest.raises(SigningError, match=f"nvidia.ko.p7s: .*{why}") as caught:
        attach_signatures(unsigned, tmp_path / "attached", ours.certificate, made)
    assert "sign-file -d" in str(caught.value.hint)


def test_signatures_that_do_not_belong(
    unsigned: ModuleSet, ours: Identity, theirs: Identity, tmp_path: Path
) -> None:
    """By somebody else, of other files, or not there at all."""
    made = made_elsewhere(unsigned, theirs, tmp_path / "theirs")
    with pytest.raises(SigningError, match="Other key, who is not trusted"):
        attach_signatures(unsigned, tmp_path / "1", ours.certificate, made)
    made = made_elsewhere(unsigned, ours, tmp_path / "swapped")
    one, two = made / "nvidia.ko.p7s", made / "nvidia-uvm.ko.p7s"
    one.rename(made / "other")
    two.rename(one)
    with pytest.raises(
        SigningError, match=r"the signature of nvidia.ko is not of these bytes by .*Build key"
    ):
        attach_signatures(unsigned, tmp_path / "2", ours.certificate, made)
    with pytest.raises(SigningError, match=r"nowhere/nvidia.ko.p7s cannot be read: No such file"):
        attach_signatures(unsigned, tmp_path / "3", ours.certificate, tmp_path / "nowhere")


def test_a_key_with_a_passphrase(unsigned: ModuleSet, tmp_path: Path) -> None:
    """It comes from a file; without one, and with a wrong one, the hint names the setting."""
    locked = make_identity(tmp_path / "key", "Locked", "-passout", f"pass:{PASSPHRASE}")
    (tmp_path / "right").write_text(f"{PASSPHRASE}\n")
    (tmp_path / "wrong").write_text("wrong\n")
    signer = Signer(str(locked.key), locked.certificate, tmp_path / "right")
    sign_set(unsigned, tmp_path / "signed", signer, COMMANDS, "sha256")
    for number, pin_file in enumerate((None, tmp_path / "wrong", tmp_path / "gone")):
        with pytest.raises(SigningError, match=r"nvidia.ko cannot be signed: ") as caught:
            signer = Signer(str(locked.key), locked.certificate, pin_file)
            sign_set(unsigned, tmp_path / f"no{number}", signer, COMMANDS, "sha256")
        assert "NVDRIVER_SIGN_PIN_FILE" in str(caught.value.hint)


def test_a_key_in_a_token(unsigned: ModuleSet, signed: ModuleSet, ours: Identity, tmp_path: Path) -> None:
    """A PKCS#11 token makes the very signatures that the key as a file makes; its PIN is in no argument."""
    token = make_token(tmp_path / "token", ours)
    signer = Signer(token.key, ours.certificate, token.pin_file)
    made = sign_set(unsigned, tmp_path / "by-token", signer, SystemCommands(token.path), "sha256")
    assert [path.read_bytes() for path in made.paths] == [path.read_bytes() for path in signed.paths]
    assert token.key in token.log.read_text()
    assert PIN not in token.log.read_text()
    token.pin_file.write_text("0000\n")
    with pytest.raises(SigningError, match="cannot be signed") as caught:
        sign_set(unsigned, tmp_path / "wrong-pin", signer, SystemCommands(token.path), "sha256")
    assert PIN not in str(caught.value)


def test_a_token_without_a_pin_is_not_asked(unsigned: ModuleSet, ours: Identity, tmp_path: Path) -> None:
    """An empty PIN would count as a wrong one, and some tokens lock themselves."""
    token = make_token(tmp_path / "token", ours)
    with pytest.raises(SigningError, match="no file with the PIN is given for pkcs11:"):
        sign_set(
            unsigned,
            tmp_path / "set",
            Signer(token.key, ours.certificate),
            SystemCommands(token.path),
            "sha256",
        )
    assert "cms" not in token.log.read_text()


def test_no_way_to_a_token_is_told(unsigned: ModuleSet, ours: Identity, tmp_path: Path) -> None:
    """An openssl with neither engine nor provider: which packages would mend it."""
    (tmp_path / "openssl").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "openssl").chmod(0o755)
    signer = Signer("pkcs11:token=t", ours.certificate, tmp_path / "pin")
    with pytest.raises(SigningError, match="openssl cannot use PKCS#11 here") as caught:
        sign_set(unsigned, tmp_path / "set", signer, SystemCommands(str(tmp_path)), "sha256")
    assert "pkcs11-provider" in str(caught.value.hint)


def test_a_provider_is_used_where_there_is_no_engine(
    unsigned: ModuleSet, ours: Identity, tmp_path: Path
) -> None:
    """As in RHEL 10, whose openssl has no engines. The one here says so, and takes the key from its file."""
    program = tmp_path / "bin" / "openssl"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\nKEY = {str(ours.key)!r}\n"
        "import os, sys\n"
        "words = sys.argv[1:]\n"
        "if words[0] == 'engine': sys.exit(1)\n"
        "if words[0] == 'list': sys.exit(print('  pkcs11'))\n"
        "at = words.index('-provider')\n"
        "assert words[at:at + 5] == ['-provider', 'pkcs11', '-provider', 'default', '-inkey'], words\n"
        "words[at:at + 6] = ['-inkey', KEY]\n"
        "os.execv('/usr/bin/openssl', ['openssl', *words])\n"
    )
    program.chmod(0o755)
    (tmp_path / "pin").write_text("1\n")
    signer = Signer("pkcs11:token=t", ours.certificate, tmp_path / "pin")
    made = sign_set(unsigned, tmp_path / "set", signer, SystemCommands(f"{tmp_path}/bin:/usr/bin"), "sha256")
    assert is_genuine(made.paths[0], ours.certificate)


@pytest.mark.parametrize(
    "uri",
    [
        "pkcs11:token=t?pin-value=84236117",
        "pkcs11:token=t;pin-value=84236117",
        "pkcs11:token=t?PIN-Value=84236117",
        "pkcs11:token=t?pin%2dvalue=84236117",
    ],
)
def test_a_pin_in_the_uri_is_refused(uri: str) -> None:
    """Everybody could read it; the refusal does not repeat it."""
    with pytest.raises(UsageError, match="NVDRIVER_SIGN_KEY has a pin-value in it") as caught:
        checked_key("NVDRIVER_SIGN_KEY", uri)
    assert PIN not in f"{caught.value}{caught.value.hint}"


def test_a_key_needs_its_certificate(ours: Identity) -> None:
    """A key alone is a mistake, a certificate alone is a node that takes what others have signed."""
    with pytest.raises(UsageError, match="no certificate of it"):
        read_identity(str(ours.key), None, None)
    found = read_identity(None, ours.file, None)
    assert (found.certificate, found.signer) == (ours.certificate, None)
