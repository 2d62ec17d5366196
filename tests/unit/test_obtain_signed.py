"""Signed sets: made of unsigned ones, which are obtained as always."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from clusters import NEXT, Cluster
from fake_toolchain import FakeToolchain
from keys import Identity, make_identity
from structlog.testing import capture_logs
from wishes import commands_of, wish_of

from nvdriver_build.errors import HeadersError, NoSigningKey, SigningError
from nvdriver_build.kernel.keyrings import Keyrings
from nvdriver_build.obtain import Obtained, obtain
from nvdriver_build.sets import open_set
from nvdriver_build.signing import KernelTrust, is_genuine
from nvdriver_build.store import Store


@pytest.fixture
def rig(tmp_path: Path) -> FakeToolchain:
    return FakeToolchain.make(tmp_path)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def get(
    rig: FakeToolchain, store: Store, by: Identity, *, key: bool = True, elsewhere: Any = None, **differ: Any
) -> Obtained:
    wish = wish_of(rig, certificate=by.certificate, signer=by.signer if key else None, **differ)
    return obtain(wish, store, commands_of(rig), elsewhere=elsewhere)


def trusting(*identities: Identity) -> KernelTrust:
    """A kernel that takes what these have signed."""
    ids = [each.certificate.key_id or "" for each in identities]
    return KernelTrust(enforced=True, keyrings=Keyrings(dict.fromkeys(ids, ".platform")))


def test_built_once_signed_once(rig: FakeToolchain, store: Store, ours: Identity) -> None:
    """The first time it is built, then signed; afterwards the signed one is found, and no program is run."""
    first = get(rig, store, ours, trust=trusting(ours))
    assert (first.origin, first.fit.fit, first.set.manifest.recipe.certificate) == (
        "built", "exact", ours.certificate.fingerprint
    )  # fmt: skip
    assert all(is_genuine(path, ours.certificate) for path in first.set.paths)
    assert open_set(first.set.folder) == first.set
    assert len(store.entries()) == 2
    again = get(rig, store, ours, trust=trusting(ours), key=False)
    assert (again.origin, again.set, rig.make_calls()) == ("store", first.set, 1)


def test_another_certificate_compiles_nothing(
    rig: FakeToolchain, store: Store, ours: Identity, tmp_path: Path
) -> None:
    """The unsigned set is kept: a new certificate, or none, is a matter of a second."""
    get(rig, store, ours)
    other = make_identity(tmp_path / "other", "Next key")
    assert get(rig, store, other).set.manifest.recipe.certificate == other.certificate.fingerprint
    unsigned = obtain(wish_of(rig), store, commands_of(rig))
    assert unsigned.set.manifest.recipe.certificate is None
    assert (len(store.entries()), rig.make_calls()) == (3, 1)


def test_a_certificate_that_the_kernel_refuses_is_told_before_a_build(
    rig: FakeToolchain, store: Store, ours: Identity
) -> None:
    """Its name, the id that the kernel knows it by, and what enrolls it."""
    with pytest.raises(SigningError, match=f"Build key .subject key id {ours.certificate.key_id}") as caught:
        get(rig, store, ours, trust=trusting())
    assert "mokutil --import" in str(caught.value.hint)
    assert not isinstance(caught.value, NoSigningKey)
    assert rig.make_calls() == 0


def test_where_nothing_is_known_of_the_keyrings_it_goes_on(
    rig: FakeToolchain, store: Store, ours: Identity
) -> None:
    """The kernel decides then."""
    assert get(rig, store, ours, trust=KernelTrust(enforced=True)).origin == "built"


def test_without_a_key_an_enforcing_kernel_gets_nothing(
    rig: FakeToolchain, store: Store, ours: Identity
) -> None:
    """Told before a build: which set was looked for, and that nobody here can sign one."""
    with pytest.raises(NoSigningKey, match=r"no set for driver .* no key here to sign one") as caught:
        get(rig, store, ours, key=False, trust=trusting(ours))
    assert "a machine with the key" in str(caught.value.hint)
    assert rig.make_calls() == 0


def test_without_a_key_other_kernels_get_an_unsigned_set(
    rig: FakeToolchain, store: Store, ours: Identity
) -> None:
    """With a warning."""
    with capture_logs() as logs:
        made = get(rig, store, ours, key=False, trust=KernelTrust(enforced=False))
    assert made.set.manifest.recipe.certificate is None
    warned = [log["event"] for log in logs if log["log_level"] == "warning"]
    assert any("nobody has signed" in event for event in warned)


def test_a_kernel_by_its_configuration(rig: FakeToolchain, store: Store, ours: Identity) -> None:
    """For a kernel with MODULE_SIG_FORCE, which does not run here, it is signed as well."""
    config = rig.headers / ".config"
    config.write_text(config.read_text() + 'CONFIG_MODULE_SIG_FORCE=y\nCONFIG_MODULE_SIG_HASH="sha512"\n')
    with pytest.raises(NoSigningKey, match="takes signed modules only"):
        obtain(wish_of(rig), store, commands_of(rig))
    assert rig.make_calls() == 0
    made = get(rig, store, ours)
    assert {facts.signature and facts.signature.hash for facts in made.set.read()} == {"sha512"}


def test_only_the_unsigned_recipe_goes_to_the_toolkit(
    rig: FakeToolchain, store: Store, ours: Identity, tmp_path: Path
) -> None:
    """What is ordered beside names neither key nor certificate."""
    ordered = []

    def elsewhere(wish: Any, recipe: Any, progress: Any) -> Path:
        ordered.append((wish.certificate, wish.signer, recipe.certificate))
        there = Store(tmp_path / "there")
        return obtain(wish_of(rig), there, commands_of(rig)).set.folder

    made = get(rig, store, ours, headers=None, elsewhere=elsewhere)
    assert ordered == [(None, None, None)]
    assert made.set.manifest.recipe.certificate == ours.certificate.fingerprint


def test_a_set_of_another_kernel_is_signed_as_that(rig: FakeToolchain, store: Store, ours: Identity) -> None:
    """Reused by proof, it says whose kernel it was built for; the signed one is found as such, too."""
    obtain(wish_of(rig), store, commands_of(rig))
    wish = wish_of(rig)
    release = f"{wish.target.release}-next"
    target = evolve(
        wish.target, release=release, vermagic=wish.target.vermagic.replace(wish.target.release, release)
    )
    first = get(rig, store, ours, target=target, reuse=True)
    again = get(rig, store, ours, target=target, reuse=True, key=False)
    assert first.set.manifest.recipe.kernel_release == wish.target.release
    assert (first.fit.fit, again.set, rig.make_calls()) == ("compatible", first.set, 1)


def test_a_key_that_cannot_sign_costs_no_build(rig: FakeToolchain, store: Store, ours: Identity) -> None:
    """The unsigned set stays: the next run, with the right key, only signs."""
    broken = make_identity(rig.root / "broken", "Broken")
    with pytest.raises(SigningError, match="cannot be signed"):
        obtain(
            wish_of(rig, certificate=ours.certificate, signer=evolve(ours.signer, key=str(broken.key))),
            store,
            commands_of(rig),
        )
    assert (get(rig, store, ours).origin, rig.make_calls()) == ("store", 1)


def test_signed_modules_serve_who_only_trusts(tmp_path: Path, ours: Identity) -> None:
    """A node that asks for no signature takes what a trusted certificate has signed, as prebuilds publish it.

    Also for another kernel that it is proven to fit; and it finds it again in its own store.
    """
    cluster = Cluster(tmp_path, ours)
    made, signers = cluster.signed_node("signer").set, (ours.certificate,)
    shutil.rmtree(cluster.offered)  # the same modules, unsigned
    with pytest.raises(HeadersError):
        cluster.node("strict")
    taken = cluster.node("node", signers=signers)
    assert (taken.origin, taken.set.key) == ("registry", made.key)
    other = cluster.node("other", target=cluster.target(NEXT, more=7), signers=signers)
    assert (other.origin, other.fit.fit, other.set.key) == ("registry", "compatible", made.key)
    shutil.rmtree(cluster.shared.root)
    assert cluster.node("node", signers=signers).origin == "store"
    again = cluster.node("other", target=cluster.target(NEXT, more=7), signers=signers)
    assert (again.origin, again.fit.fit) == ("store", "compatible")


def test_a_set_of_a_certificate_that_is_not_trusted_any_more_is_passed_over(
    tmp_path: Path, ours: Identity, theirs: Identity
) -> None:
    """Certificates are changed one after the other: an old set in the own store is in nobody's way."""
    cluster = Cluster(tmp_path, ours)
    old = cluster.signed_node("signer").set
    signers = (ours.certificate, theirs.certificate)
    assert cluster.node("node", signers=signers, trust=trusting(ours)).set.key == old.key
    with pytest.raises(SigningError, match="what is built here is not signed"):  # it has looked everywhere
        cluster.node("node", signers=signers, trust=trusting(theirs))


def test_where_signatures_are_enforced_the_signed_set_comes_first(tmp_path: Path, ours: Identity) -> None:
    """The same modules, unsigned, in the node's own store are in nobody's way."""
    cluster = Cluster(tmp_path, ours)
    made = cluster.signed_node("signer").set
    assert cluster.node("node", headers=True).set.key == cluster.built.key
    taken = cluster.node("node", signers=(ours.certificate,), trust=trusting(ours))
    assert (taken.origin, taken.set.key) == ("registry", made.key)
