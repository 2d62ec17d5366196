"""What is damaged outside, by loss or by who may write there: it hides nothing else, and a push mends it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest
from clusters import NEXT, Cluster
from hostile_registry import Handler, Hostile
from module_sets import recipe
from oci_registry import OciRegistry
from oci_sets import write_signed
from structlog.testing import capture_logs

from nvdriver_build.errors import StoreError
from nvdriver_build.obtain import Outside
from nvdriver_build.registry import Registry, compression, hints
from nvdriver_build.registry.artifacts import (
    MANIFEST_TYPE,
    MODULE_TYPE,
    NOTHING,
    SIGNATURE_TYPE,
    Artifact,
    Blob,
    blob_of,
    note,
    parse_artifact,
)
from nvdriver_build.registry.session import PUSH
from nvdriver_build.registry.turns import MarkerBoard, Turns, Waits
from nvdriver_build.sets import MANIFEST, ModuleSet, open_set
from nvdriver_build.signing import Trust

LARGE = note("application/vnd.other", {"x": "a" * 1_500_000})
"""What registries take, and nobody reads."""


@pytest.fixture
def made(tmp_path: Path) -> ModuleSet:
    return write_signed(tmp_path / "made", recipe(driver_version="7"), None, size=50_000)


def taken(registry: Registry, made: ModuleSet, place: Path) -> bool:
    """Whether a node can have the set."""
    try:
        offer = registry.offer(made.key)
        if offer is None:
            return False
        offer.fetch(place)
    except StoreError:
        return False
    return open_set(place).manifest == made.manifest


def layers(registry: Registry, made: ModuleSet) -> Artifact:
    document = registry.content.document(f"set-{made.key}")
    assert document is not None
    return parse_artifact(document)


def lose(registry: Registry, blob: Blob) -> None:
    registry.session.ask("DELETE", f"blobs/{blob.digest}", scope=PUSH, wanted=(202,))


def lose_a_layer(registry: Registry, made: ModuleSet) -> None:
    lose(registry, layers(registry, made).modules["nvidia.ko"])


def lose_the_config(registry: Registry, made: ModuleSet) -> None:
    lose(registry, layers(registry, made).config)


def tag_another_layer(registry: Registry, made: ModuleSet) -> None:
    """With the genuine manifest and signature."""
    rubbish = b"rubbish"
    blob = blob_of(rubbish, MODULE_TYPE, "nvidia.ko")
    there = layers(registry, made)
    there = Artifact(there.config, there.signature, {**there.modules, "nvidia.ko": blob})
    registry.content.publish(f"set-{made.key}", there.document(), [(blob, rubbish)])


def tag_what_is_too_large(registry: Registry, made: ModuleSet) -> None:
    registry.content.publish(f"set-{made.key}", LARGE, NOTHING)


DAMAGES = (lose_a_layer, lose_the_config, tag_another_layer, tag_what_is_too_large)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_push_mends_a_damaged_set(
    damage: Callable[[Registry, ModuleSet], None], server: OciRegistry, made: ModuleSet, tmp_path: Path
) -> None:
    """What a node could not take is not 'already in': it is replaced, and the next push leaves it alone."""
    registry = server.open(f"damaged/{damage.__name__}")
    assert registry.push(made)
    damage(registry, made)
    assert not taken(registry, made, tmp_path / "damaged")
    assert registry.push(made)
    assert taken(registry, made, tmp_path / "mended")
    assert not registry.push(made)


def test_many_mend_a_set_at_once(server: OciRegistry, made: ModuleSet, tmp_path: Path) -> None:
    """Whoever comes last leaves it whole, too."""
    registry = server.open("damaged/many")
    registry.push(made)
    tag_another_layer(registry, made)
    threads = [threading.Thread(target=server.open("damaged/many").push, args=(made,)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert taken(registry, made, tmp_path / "mended")
    assert not registry.push(made)


def test_a_set_that_another_zstd_has_packed(
    server: OciRegistry, made: ModuleSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is replaced by one that is as good; whoever pushed the first one then sends no module again."""
    registry = server.open("damaged/packed")
    registry.push(made)
    first = layers(registry, made)
    with monkeypatch.context() as patch:
        patch.setattr(compression, "_LEVEL", "--no-check")
        assert registry.push(made)
        assert layers(registry, made) != first
        assert taken(registry, made, tmp_path / "other")
        assert not registry.push(made)
    before = len([line for line in server.log.splitlines() if '"POST ' in line])
    assert registry.push(made)
    assert layers(registry, made) == first
    assert len([line for line in server.log.splitlines() if '"POST ' in line]) == before


def test_a_damaged_set_hides_no_other_one(hostile: Hostile, cluster: Cluster, tmp_path: Path) -> None:
    """The own one and the first that might fit cannot be sets; the next one fits, and is taken."""
    target = cluster.target(NEXT, more=7)
    wanted = cluster.wish(target).recipe()
    tag = hints.wanted_tag(wanted, target)
    assert tag is not None
    hostile.hold(cluster.built, tmp_path / "held")
    lost = Artifact(Blob(MANIFEST_TYPE, "sha256:" + "0" * 64, 10), blob_of(b"", SIGNATURE_TYPE))
    hostile.documents[f"set-{wanted.key}"] = LARGE
    hostile.documents["set-" + "1" * 64] = lost.document()
    keys = ",".join(("1" * 64, cluster.built.key))
    hostile.documents[tag] = note(hints._FIT, {hints._KEYS: keys})
    with capture_logs() as logs:
        found = cluster.node("node", target=target, remote=hostile.open())
    assert (found.origin, found.set.key) == ("registry", cluster.built.key)
    refused = [log["key"] for log in logs if log["event"].endswith("is refused")]
    assert refused == [wanted.key[:12], "1" * 12]


def busy(handler: Handler) -> bool:
    handler.reply(500, b"")
    return True


@pytest.mark.parametrize("what", ["set", "note"])
@pytest.mark.parametrize("document", [b"{}", LARGE], ids=["rubbish", "large"])
def test_what_is_damaged_ends_no_turns(
    what: str, document: bytes, hostile: Hostile, cluster: Cluster
) -> None:
    """Nodes still agree on who builds: whoever does mends it. One that does not answer at all is left."""
    wish = cluster.wish()
    wanted = wish.recipe()
    names: Dict[str, Any] = {"set": f"set-{wanted.key}", "note": hints.wanted_tag(wanted, wish.target)}
    hostile.documents[names[what]] = document
    outside = Outside(hostile.open(), Trust((cluster.identity.certificate,)), cluster.commands)
    store = cluster.store("node", outside.trust)
    with capture_logs() as logs:
        assert outside.take(wish, wanted, store) == (None, True)
    assert [log["log_level"] for log in logs] == ["warning"]
    hostile.hook = busy
    with capture_logs():
        assert outside.take(wish, wanted, store) == (None, False)


def test_a_note_that_cannot_be_one_is_written_over(server: OciRegistry) -> None:
    """Too large to be read, it keeps no set from those that it might fit."""
    content = server.open("damaged/note").content
    content.publish("fit-x", LARGE, NOTHING)
    hints.add(content, ["fit-x"], "1" * 64)
    assert hints.read(content, "fit-x") == ("1" * 64,)


def test_a_turn_that_cannot_be_one_is_written_over(server: OciRegistry) -> None:
    """It keeps nobody from taking turns."""
    content, key = server.open("damaged/turn").content, "1" * 64
    content.publish(f"turn-{key}", LARGE, NOTHING)
    board, seen = MarkerBoard(content, spread=0.05, settle=0.2), []
    with Turns(board, "me", Waits(first=0.05)).turn(key, lambda: None):
        seen.append(board.look(key))
    assert str(seen[0]).count("me-") == 1


def test_a_damaged_folder_hides_no_other_one(cluster: Cluster) -> None:
    """What stands under the own key in a folder of many cannot be read; another set fits, and is taken."""
    target = cluster.target(NEXT, more=7)
    place = cluster.shared.root / "sets" / cluster.wish(target).recipe().key
    (place / MANIFEST).mkdir(parents=True)
    with capture_logs() as logs:
        assert cluster.node("node", target=target).set.key == cluster.built.key
    events: List[str] = [log["event"] for log in logs if log["log_level"] == "warning"]
    assert events == [f"a set of {cluster.shared} is refused"]
