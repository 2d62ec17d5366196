"""Sets that others have built: taken only with a manifest signed by a configured certificate."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any, Dict, Optional

import pytest
from attrs import evolve
from clusters import NEXT, Cluster
from keys import Identity
from structlog.testing import capture_logs

from nvdriver_build.commands import SystemCommands
from nvdriver_build.config import read_config
from nvdriver_build.errors import HeadersError, SigningError, StoreError
from nvdriver_build.node.stores import trust
from nvdriver_build.obtain import Outside, Wish, modules_to_build, vouching
from nvdriver_build.sets import FOREIGN, MANIFEST, SIGNATURE
from nvdriver_build.signing import KernelTrust, Trust, sign_manifest
from nvdriver_build.source import open_source
from nvdriver_build.store import SharedStore, Store


def reasons(cluster: Cluster, name: str = "node", **differ: Any) -> str:
    """Why a node that can build nothing itself takes nothing."""
    with capture_logs() as logs, pytest.raises(HeadersError):
        cluster.node(name, **differ)
    assert Store(cluster.root / name).entries() == ()
    return " ".join(str(log.get("reason", log.get("event"))) for log in logs if log["log_level"] == "warning")


def test_a_signed_set_is_taken(cluster: Cluster) -> None:
    """It comes into the node's own store, says where it is from, and is found there the next time."""
    taken = cluster.node("node")
    assert (taken.origin, taken.fit.fit, taken.set.key) == ("registry", "exact", cluster.built.key)
    assert taken.set.foreign == str(cluster.shared.root)
    assert [path.read_bytes() for path in taken.set.files] == [
        path.read_bytes() for path in cluster.built.files
    ]
    shutil.rmtree(cluster.shared.root)
    assert cluster.node("node").origin == "store"
    assert cluster.toolchain.make_calls() == 1


def test_a_signed_set_of_another_kernel_is_taken(cluster: Cluster) -> None:
    """Where every symbol is the same; it is told whose it is."""
    taken = cluster.node("node", target=cluster.target(NEXT, more=7))
    assert (taken.origin, taken.fit.fit) == ("registry", "compatible")
    assert "printk is not the same" not in reasons(
        cluster, "other", target=cluster.target(NEXT, printk=0xBAD)
    )


def test_the_index_of_others_is_not_believed(cluster: Cluster) -> None:
    """Named for a kernel whose symbols differ, a set is refused by its manifest, before any module moves."""
    target = cluster.target(NEXT, printk=0xBAD)
    (entry,) = (cluster.shared.root / "index").glob("*/*")
    entry.write_text("")
    (cluster.offered / "nvidia.ko").unlink()
    assert "printk is not the same in" in reasons(cluster, target=target)


def test_a_set_of_another_driver_is_never_a_stand_in(cluster: Cluster) -> None:
    """An older driver, well signed and for this very kernel, is not taken for the one that is meant."""
    target = cluster.target(NEXT)
    (entry,) = (cluster.shared.root / "index").glob("*/*")
    (cluster.toolchain.source / "nvidia" / "nv.c").write_text('MODULE_LICENSE("Dual MIT/GPL"); // newer\n')
    family = cluster.node("scratch", Trust(), headers=True).set
    (other,) = (cluster.root / "scratch" / "index").glob("*/*")
    place = cluster.shared.root / "index" / other.parent.name / entry.name
    place.parent.mkdir()
    shutil.copyfile(entry, place)
    assert family.key != cluster.built.key
    assert "has source_digest" in reasons(cluster, target=target)


def test_nothing_is_asked_for_where_nobody_is_trusted(cluster: Cluster) -> None:
    """Without a configured certificate the place is refused, with a hint; the node builds."""
    assert "no certificate is configured" in reasons(cluster, builders=Trust())
    with capture_logs() as logs:
        assert cluster.node("own", Trust(), headers=True).origin == "built"
    assert any("NVDRIVER_TRUST" in str(log.get("hint")) for log in logs)


@pytest.mark.parametrize("who", ["nobody", "somebody else"])
def test_what_is_not_signed_by_the_trusted_is_refused(who: str, cluster: Cluster, theirs: Identity) -> None:
    """An unsigned set, and one signed by another certificate: told, and the node builds for itself."""
    cluster.push(None if who == "nobody" else theirs.signer)
    why = reasons(cluster)
    assert ("is not signed" if who == "nobody" else "Other key, who is not trusted") in why
    assert cluster.node("own", headers=True).origin == "built"


def test_a_trust_that_ends_ends_for_what_was_taken_before(cluster: Cluster, theirs: Identity) -> None:
    """A set that was taken is asked for its signature at each use; the node's own sets are not."""
    cluster.node("node")
    shutil.rmtree(cluster.shared.root)
    trust = Trust((theirs.certificate,))
    with capture_logs() as logs:
        assert cluster.node("node", trust, headers=True).origin == "built"
    assert "a set that nobody vouches for is dropped from the store" in [log["event"] for log in logs]
    assert cluster.node("node", Trust()).origin == "store"
    assert Store(cluster.root / "node").entries()[0].set is not None


def test_where_openssl_is_missing_a_set_is_left_alone(cluster: Cluster) -> None:
    """Nothing is known of it then: neither used nor dropped, it serves again once it can be looked at."""
    cluster.node("node")
    shutil.rmtree(cluster.shared.root)
    trust = Trust((cluster.identity.certificate,))
    blind = Store(cluster.root / "node", vouching(trust, SystemCommands("/nowhere")))
    with capture_logs() as logs:
        assert blind.find(cluster.built.manifest.recipe) is None
    assert [log["event"] for log in logs] == ["a set that cannot be looked at is left alone"]
    assert cluster.node("node").origin == "store"
    target = cluster.target(NEXT, more=7)
    wanted = evolve(cluster.built.manifest.recipe, kernel_release=NEXT, symvers_sha256=target.symvers_sha256)
    assert list(blind.fitting(wanted, target)) == []
    assert cluster.node("node", target=target).origin == "store"
    with blind.workspace() as work:
        shutil.copytree(cluster.built.folder, work / "set")
        made = blind.add(work / "set", cluster.built.key)
    assert made.foreign is None


def test_a_set_that_says_to_be_foreign_needs_somebody_who_vouches(cluster: Cluster) -> None:
    """A store that was opened without a word on trust hands out no set of others."""
    taken = cluster.node("node")
    assert (taken.set.folder / FOREIGN).exists()
    assert Store(cluster.root / "node").find(taken.set.manifest.recipe) is None


def changes(data: bytes) -> Dict[str, Optional[bytes]]:
    """The ways to change a file; None takes it away."""
    half = len(data) // 2
    return {
        "first byte": bytes([data[0] ^ 1]) + data[1:],
        "middle": data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :],
        "last byte": data[:-1] + bytes([data[-1] ^ 1]),
        "cut": data[:-1],
        "longer": data + b"\0",
        "empty": b"",
        "gone": None,
    }


@pytest.mark.parametrize("name", [MANIFEST, SIGNATURE, "nvidia.ko", "nvidia-uvm.ko"])
def test_tampering_is_refused(name: str, cluster: Cluster) -> None:
    """Each file of what is offered, changed in each way: never taken, always told why."""
    path = cluster.offered / name
    for how, changed in changes(path.read_bytes()).items():
        good = path.read_bytes()
        path.unlink()
        if changed is not None:
            path.write_bytes(changed)
        why = reasons(cluster)
        assert why or (name, how) == (MANIFEST, "gone")  # there is no such set then
        path.write_bytes(good)
    path.unlink()
    os.mkfifo(path)
    assert reasons(cluster)
    assert cluster.node("own", headers=True).origin == "built"


def test_the_manifest_of_another_set_is_refused(cluster: Cluster) -> None:
    """A set that is signed, put under the name of another one, is told by both keys."""
    other = cluster.node("builder", headers=True, modules=("nvidia",)).set
    (other.folder / SIGNATURE).write_bytes(
        sign_manifest(other.manifest_bytes, cluster.identity.signer, cluster.commands)
    )
    shutil.rmtree(cluster.offered)
    shutil.copytree(other.folder, cluster.offered)
    assert f"is another one, {other.key[:12]}" in reasons(cluster)


def test_a_set_replayed_for_another_kernel_is_refused(cluster: Cluster) -> None:
    """An old set under the key of a kernel that has other symbols, or another configuration, is not taken."""
    target = cluster.target(NEXT, printk=0xBAD)
    source = open_source(cluster.toolchain.source, "auto", cluster.toolchain.root, cluster.commands)
    wish = Wish(source, target, None, "a test", modules_to_build(source), reuse=True)
    cluster.offered.rename(cluster.offered.parent / wish.recipe().key)
    assert "is another one" in reasons(cluster, target=target)


def test_where_signatures_are_enforced_an_unsigned_module_is_refused(cluster: Cluster) -> None:
    """A good manifest does not make a kernel take a module: that is judged, too."""
    with capture_logs() as logs, pytest.raises(Exception, match="takes signed modules only"):
        cluster.node("node", trust=KernelTrust(enforced=True))
    assert any("is not signed" in str(log.get("reason")) for log in logs)


def test_a_place_that_does_not_answer_is_told(cluster: Cluster) -> None:
    """A folder that is no folder is a warning, and no more."""
    shutil.rmtree(cluster.shared.root)
    cluster.shared.root.write_text("")
    assert "the shared store cannot be used" in reasons(cluster)
    assert cluster.node("own", headers=True).origin == "built"
    with pytest.raises(StoreError, match="the shared store cannot be used"):
        cluster.shared.push(cluster.built)


def test_giving_ends_nothing(cluster: Cluster) -> None:
    """What was built stays good where it cannot be given to others."""
    outside = Outside(cluster.shared, Trust(), cluster.commands)
    with capture_logs() as logs:
        outside.give(cluster.built)
        shutil.rmtree(cluster.shared.root)
        cluster.shared.root.write_text("")
        outside.give(cluster.built)
    assert ["already in" in logs[0]["event"], "did not take" in logs[1]["event"]] == [True, True]


def test_a_recipe_for_signed_modules_is_another_family(cluster: Cluster) -> None:
    """Modules that have to be signed are not served by a set of unsigned ones of a sibling kernel."""
    recipe = cluster.built.manifest.recipe
    assert evolve(recipe, certificate="0" * 64).family != recipe.family
    assert evolve(recipe, kernel_release="other").family == recipe.family


def test_what_others_built_is_not_signed_here(cluster: Cluster) -> None:
    """Or it would be ours, wherever it is pushed, long after those who built it are trusted no more."""
    assert cluster.node("node").set.foreign
    with capture_logs() as logs:
        signed = cluster.signed_node("node")
    assert (signed.origin, cluster.toolchain.make_calls()) == ("built", 2)
    assert any("has to be built here" in str(log.get("reason")) for log in logs)


def test_an_index_without_end_is_not_followed(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the sets that others name, some are looked at, for some time; then the node helps itself."""
    (entry,) = (cluster.shared.root / "index").glob("*/*")
    for number in range(200):
        shutil.copyfile(entry, entry.with_name(f"{number:064x}"))
    asked = []
    monkeypatch.setattr(SharedStore, "offer", lambda self, key: asked.append(key))
    target = cluster.target(NEXT, more=7)
    assert reasons(cluster, target=target) == ""
    assert len(asked) == 1 + 64
    asked.clear()
    monkeypatch.setattr("nvdriver_build.obtain.outside._SEARCH", 0.0)
    assert "slowly: no more is asked for" in reasons(cluster, "other", target=target)
    assert len(asked) == 2
    asked.clear()
    monkeypatch.setattr("nvdriver_build.store.index._MOST", 0)
    assert reasons(cluster, "third", target=target) == ""
    assert len(asked) == 1


def test_where_only_a_certificate_to_sign_with_is_given_it_alone_is_trusted(
    tmp_path: Path, ours: Identity, theirs: Identity
) -> None:
    """Not what stands behind it in its file: the CA of a chain may have signed for many others."""
    chain = tmp_path / "chain.pem"
    chain.write_bytes(ours.certificate.pem + theirs.certificate.pem)
    config = read_config({"NVDRIVER_SIGN_CERT": str(chain)}, tmp_path)
    assert trust(config).certificates == (ours.certificate,)
    assert len(trust(evolve(config, trust=chain)).certificates) == 2


@pytest.mark.parametrize("name", [FOREIGN, SIGNATURE])
def test_a_set_of_others_that_cannot_be_read_is_dropped(name: str, cluster: Cluster) -> None:
    """Whether it is a disk that fails or a file of another type: told, and the node goes on."""
    path = cluster.node("node").set.folder / name
    path.unlink()
    path.mkdir()
    assert cluster.node("node").origin == "registry"


def test_no_space_to_verify_in_is_told(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A full /tmp: nothing of others is taken, and the node builds."""

    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(
            "nvdriver_build.signing.cms.Path", type("Full", (type(tmp_path),), {"write_bytes": full})
        )
        patch.setattr("tempfile.tempdir", str(tmp_path))
        with pytest.raises(SigningError, match=r"no folder to sign or verify in: .*No space left"):
            Trust((cluster.identity.certificate,)).require(
                b"x", (cluster.built.folder / SIGNATURE).read_bytes(), "it", cluster.commands
            )
