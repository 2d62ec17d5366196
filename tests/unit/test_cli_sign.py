"""`sign` and `build --sign-key`, as people run them; and that no secret is ever to be seen."""

from __future__ import annotations

import contextlib
import shutil
import tarfile
from pathlib import Path
from typing import Dict

import pytest
from cli_runs import build_words, cli, document
from fake_toolchain import FakeToolchain
from keys import Identity, made_elsewhere, make_identity
from softtoken import PIN, make_token

from nvdriver_build.sets import SIGNATURE, open_set
from nvdriver_build.signing import is_genuine

PASSPHRASE = "correct horse battery staple"
LOGGING = '#!/bin/sh\necho "$@" >>{log}; env >>{log}\nexec {program} "$@"\n'
"""A program that writes down its arguments and its environment."""


@pytest.fixture
def rig(tmp_path: Path) -> FakeToolchain:
    return FakeToolchain.make(tmp_path)


def build(rig: FakeToolchain, *more: object) -> Path:
    done = cli(rig.root, *build_words(rig, *more), path=rig.path)
    assert done.returncode == 0, done.stderr
    return rig.root / "out"


def test_build_signs(rig: FakeToolchain, ours: Identity) -> None:
    """By options, and by settings; the folder has the signed manifest's signature, too."""
    place = build(rig, "--sign-key", ours.key, "--sign-cert", ours.file)
    made = open_set(place)
    assert all(is_genuine(path, ours.certificate) for path in made.paths)
    assert (place / SIGNATURE).is_file()
    settings = {"NVDRIVER_SIGN_KEY": str(ours.key), "NVDRIVER_SIGN_CERT": str(ours.file)}
    done = cli(rig.root, *build_words(rig, "--json"), path=rig.path, **settings)
    assert (document(done)["key"], document(done)["from"]) == (made.key, "store")
    build(rig)
    assert open_set(place).manifest.certificate is None
    assert not (place / SIGNATURE).exists(), "an unsigned set takes the place of a signed one as a whole"


def test_half_of_an_identity_is_wrong_usage(rig: FakeToolchain, ours: Identity) -> None:
    """A key without a certificate, or the other way round, is told before anything is built."""
    for words in (["--sign-key", ours.key], ["--sign-cert", ours.file]):
        done = cli(rig.root, *build_words(rig, *words), path=rig.path)
        assert (done.returncode, "key and certificate are needed" in done.stderr) == (2, True)
    assert rig.make_calls() == 0


def test_sign_with_a_key(rig: FakeToolchain, ours: Identity) -> None:
    """`sign` writes a copy; what it was made of stays as it is."""
    place = build(rig)
    before = open_set(place)
    words = ["sign", place, "--output", rig.root / "signed", "--cert", ours.file, "--key", ours.key]
    done = cli(rig.root, *words, "--hash", "sha512")
    assert done.returncode == 0, done.stderr
    assert f"signed by Common Name: Build key (subject key id {ours.certificate.key_id})" in done.stdout
    made = open_set(rig.root / "signed")
    assert {facts.signature and facts.signature.hash for facts in made.read()} == {"sha512"}
    assert open_set(place) == before
    again = cli(rig.root, *words, "--json")
    assert document(again) == {
        "schema": 1,
        "key": made.key,
        "output": str(rig.root / "signed"),
        "certificate": ours.certificate.fingerprint,
    }


def test_sign_with_signatures_made_elsewhere(rig: FakeToolchain, ours: Identity) -> None:
    """Attached and checked; one that does not belong ends it with 14, and nothing is written."""
    place = build(rig)
    made = made_elsewhere(open_set(place), ours, rig.root / "signatures")
    words = ["sign", place, "--output", rig.root / "signed", "--cert", ours.file, "--signatures", made]
    assert cli(rig.root, *words).returncode == 0
    assert is_genuine(open_set(rig.root / "signed").paths[0], ours.certificate)
    shutil.rmtree(rig.root / "signed")
    shutil.copy(made / "nvidia-uvm.ko.p7s", made / "nvidia.ko.p7s")
    done = cli(rig.root, *words)
    assert (done.returncode, "the signature of nvidia.ko is not of these bytes" in done.stderr) == (14, True)
    assert not (rig.root / "signed").exists()


def test_who_signs_has_to_be_told(rig: FakeToolchain, ours: Identity) -> None:
    """Either a key or signatures, not both and not none."""
    place = build(rig)
    words = ["sign", place, "--output", rig.root / "signed", "--cert", ours.file]
    for more in ([], ["--key", ours.key, "--signatures", place]):
        assert cli(rig.root, *words, *more).returncode == 2
    assert cli(rig.root, *words[:-1], rig.root / "gone", "--key", ours.key).returncode == 14


def test_the_passphrase_of_a_key_by_setting(rig: FakeToolchain, tmp_path: Path) -> None:
    """NVDRIVER_SIGN_PIN_FILE serves a key that an option names, too, as the hint has it."""
    place, identity = (
        build(rig),
        make_identity(tmp_path / "keys", "Build key", "-passout", f"pass:{PASSPHRASE}"),
    )
    (tmp_path / "pin").write_text(f"{PASSPHRASE}\n")
    words = ["sign", place, "--output", rig.root / "signed", "--cert", identity.file, "--key", identity.key]
    done = cli(rig.root, *words)
    assert (done.returncode, "NVDRIVER_SIGN_PIN_FILE" in done.stderr) == (14, True)
    assert cli(rig.root, *words, NVDRIVER_SIGN_PIN_FILE=str(tmp_path / "pin")).returncode == 0


def test_a_pin_in_a_uri_is_told_by_the_option_that_has_it(rig: FakeToolchain, ours: Identity) -> None:
    """The key of `sign` is --key, that of `build` is --sign-key."""
    place, uri = build(rig), f"pkcs11:token=t?pin-value={PIN}"
    done = cli(rig.root, "sign", place, "--output", "signed", "--cert", ours.file, "--key", uri)
    assert (done.returncode, done.stderr.startswith("error: --key has a pin-value")) == (2, True)


def test_what_is_no_set_is_not_called_damaged(rig: FakeToolchain, ours: Identity) -> None:
    """A mistyped name, a folder of something else and a file are told as what they are."""
    place, words = build(rig), ["--output", rig.root / "signed", "--cert", ours.file, "--key", ours.key]
    (rig.root / "empty").mkdir()
    for name, told in (
        (rig.root / "nope", "there is no such folder"),
        (place / "nvidia.ko", "there is no such folder"),
        (rig.root / "empty", "it has no manifest.json"),
    ):
        done = cli(rig.root, "sign", name, *words)
        assert (done.returncode, done.stderr.splitlines()[0]) == (
            17,
            f"error: {name} is no module set: {told}",
        )


def test_no_space_for_a_signed_set(rig: FakeToolchain, ours: Identity, small_disk: Path) -> None:
    """A full disk is told as such, whatever was written just then."""
    place = build(rig)
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb") as file:
        while True:
            file.write(b"x" * 4096)
            file.flush()
    done = cli(
        rig.root, "sign", place, "--output", small_disk / "out", "--cert", ours.file, "--key", ours.key
    )
    assert (done.returncode, "no space" in done.stderr.lower()) == (17, True), done.stderr


def test_a_pin_in_a_uri_is_not_repeated(rig: FakeToolchain, ours: Identity) -> None:
    """By option and by setting: exit 2, and the PIN is not on the screen."""
    uri = f"pkcs11:token=t?pin-value={PIN}"
    done = cli(rig.root, *build_words(rig, "--sign-key", uri, "--sign-cert", ours.file), path=rig.path)
    other = cli(rig.root, *build_words(rig), path=rig.path, NVDRIVER_SIGN_KEY=uri)
    for each in (done, other):
        assert (each.returncode, "pin-value" in each.stderr, PIN in each.stdout + each.stderr) == (
            2,
            True,
            False,
        )


def watched(rig: FakeToolchain, path: str) -> str:
    """A PATH whose openssl, make and strip write down what they get."""
    for name in ("openssl", "make", "strip"):
        program = next(Path(folder) / name for folder in path.split(":") if (Path(folder) / name).exists())
        place = rig.root / "watched" / name
        place.parent.mkdir(exist_ok=True)
        place.write_text(LOGGING.format(log=rig.root / "seen", program=program))
        place.chmod(0o755)
    return f"{rig.root}/watched:{path}"


def everything_written(rig: FakeToolchain, keys: Path) -> Dict[str, bytes]:
    """Every file below the rig but the keys' own, and what is in archives."""
    found = {}
    for path in rig.root.rglob("*"):
        if path.is_file() and keys not in path.parents:
            found[str(path)] = path.read_bytes()
        if path.name.endswith(".tar.gz"):
            with tarfile.open(path) as tar:
                for member in tar.getmembers():
                    content = tar.extractfile(member)
                    found[f"{path}/{member.name}"] = content.read() if content else b""
    return found


@pytest.mark.parametrize("in_token", [False, True])
def test_no_secret_is_to_be_seen(rig: FakeToolchain, tmp_path: Path, in_token: bool) -> None:
    """Neither key, passphrase nor PIN is in an argument, an environment, a log, a set, a support bundle."""
    keys = tmp_path / "secret"
    identity = make_identity(keys, "Build key", "-passout", f"pass:{PASSPHRASE}")
    secret, path = PASSPHRASE, rig.path
    (keys / "pin").write_text(f"{PASSPHRASE}\n")
    key, pin_file = str(identity.key), keys / "pin"
    if in_token:
        identity = make_identity(keys / "plain", "Build key")
        token = make_token(keys / "token", identity)
        key, pin_file, secret, path = token.key, token.pin_file, PIN, f"{keys}/token/bin:{rig.path}"
    settings = {
        "NVDRIVER_SIGN_KEY": key,
        "NVDRIVER_SIGN_CERT": str(identity.file),
        "NVDRIVER_SIGN_PIN_FILE": str(pin_file),
    }
    path = watched(rig, path)
    done = cli(rig.root, *build_words(rig, "-v"), path=path, **settings)
    assert done.returncode == 0, done.stderr
    bundle = cli(rig.root, "support-bundle", "--output", rig.root / "b.tar.gz", path=path, **settings)
    assert bundle.returncode == 0, bundle.stderr
    pin_file.write_text("wrong\n" if not in_token else "0000\n")
    shutil.rmtree(rig.root / "store" / "sets")
    failed = cli(rig.root, *build_words(rig, "-v"), path=path, **settings)
    assert failed.returncode == 14, failed.stderr
    texts = everything_written(rig, keys)
    texts["output"] = "".join((done.stdout, done.stderr, failed.stdout, failed.stderr)).encode()
    assert b"cms -sign" in texts[str(rig.root / "seen")], "the watch sees what it is there for"
    key_line = identity.key.read_text().splitlines()[10].encode()
    for place, data in texts.items():
        assert secret.encode() not in data, place
        assert key_line not in data and b"PRIVATE KEY" not in data, place
