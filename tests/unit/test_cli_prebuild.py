"""`prebuild`: sets for kernels that do not run here, published before the first node runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Mapping, Optional

import pytest
from cli_runs import cli, document
from fake_toolchain import FakeToolchain
from kernel_trees import CONFIG, SYMBOLS, build_tree, symvers_text
from keys import Identity
from trees import write_tree

from nvdriver_build.store import SharedStore

NEXT = "5.14.0-427.99.1.el9_4.x86_64"


@pytest.fixture
def rig(tmp_path: Path) -> FakeToolchain:
    return FakeToolchain.make(tmp_path)


def settings(rig: FakeToolchain, ours: Identity) -> Dict[str, str]:
    return {
        "NVDRIVER_REGISTRY": str(rig.root / "shared"),
        "NVDRIVER_SIGN_KEY": str(ours.key),
        "NVDRIVER_SIGN_CERT": str(ours.file),
    }


def prebuild(
    rig: FakeToolchain, *places: Path, code: int = 0, environment: Optional[Mapping[str, str]] = None
) -> Any:
    words = ["prebuild", "--json", "--source", rig.source]
    for place in places:
        words += ["--headers", place]
    done = cli(rig.root, *words, path=f"{rig.path}:/usr/bin", **(environment or {}))
    assert done.returncode == code, done.stderr
    return document(done)


def kernel(rig: FakeToolchain, symbols: Mapping[str, int] = SYMBOLS) -> Path:
    """Another kernel's headers."""
    place = rig.root / "next"
    write_tree(place, build_tree(NEXT, CONFIG, symvers_text({**SYMBOLS, **symbols})))
    return place


def test_one_call_serves_several_kernels(rig: FakeToolchain, ours: Identity) -> None:
    """One is compiled, the next one whose symbols are equal is not; each says why, and is published."""
    first, second = prebuild(rig, rig.headers, kernel(rig), environment=settings(rig, ours))["sets"]
    assert (first["from"], first["fit"], first["published"], first["error"]) == ("built", "exact", True, None)
    assert first["why"] == "the store is empty"
    assert (second["from"], second["fit"], second["key"]) == ("store", "compatible", first["key"])
    assert (second["kernel_release"], second["built_for"]) == (NEXT, first["kernel_release"])
    assert "the configuration are equal" in second["why"]
    offer = SharedStore(rig.root / "shared").offer(first["key"])
    assert offer is not None and offer.signature is not None
    assert rig.make_calls() == 1


def test_what_is_published_already_is_not_compiled(rig: FakeToolchain, ours: Identity) -> None:
    """On another machine, with a store of its own, it comes from where it was published."""
    (first,) = prebuild(rig, rig.headers, environment=settings(rig, ours))["sets"]
    other = {**settings(rig, ours), "NVDRIVER_STORE": str(rig.root / "other")}
    (again,) = prebuild(rig, rig.headers, environment=other)["sets"]
    assert (again["from"], again["key"], again["published"]) == ("registry", first["key"], True)
    assert again["why"] == "it was in the registry already"
    assert rig.make_calls() == 1


def test_one_kernel_that_fails_does_not_keep_the_others(rig: FakeToolchain) -> None:
    """Its row has the error; the exit code is that of the first failure; the others are there."""
    bad, good = prebuild(rig, rig.root / "nowhere", rig.headers, code=10)["sets"]
    assert (bad["error"]["kind"], bad["key"], good["from"]) == ("HeadersError", None, "built")
    assert (good["error"], good["published"]) == (None, None)


def test_people_are_told(rig: FakeToolchain) -> None:
    """A line for each kernel, one that says why, errors with their hints."""
    words = ["prebuild", "--source", rig.source, "--headers", rig.headers, "--headers", rig.root / "gone"]
    done = cli(rig.root, *words, path=rig.path)
    assert done.returncode == 10
    assert "built in " in done.stdout and "why: the store is empty" in done.stdout
    assert "gone: error: no kernel headers at" in done.stderr and "hint: install" in done.stderr


def test_a_registry_needs_a_key(rig: FakeToolchain) -> None:
    """Nobody would take what is not signed: told before anything is compiled."""
    place = {"NVDRIVER_REGISTRY": str(rig.root / "shared")}
    error = prebuild(rig, rig.headers, code=2, environment=place)["error"]
    assert "no key to sign with" in error["message"] and "NVDRIVER_SIGN_KEY" in error["hint"]
    assert rig.make_calls() == 0


def test_a_registry_that_takes_nothing_is_an_error(rig: FakeToolchain, ours: Identity) -> None:
    """Who prebuilds wants it published: exit 17, and the set stays in the store for the next try."""
    (rig.root / "shared").write_text("")
    (row,) = prebuild(rig, rig.headers, code=17, environment=settings(rig, ours))["sets"]
    assert row["error"]["kind"] == "StoreError"
    (rig.root / "shared").unlink()
    (row,) = prebuild(rig, rig.headers, environment=settings(rig, ours))["sets"]
    assert (row["from"], row["published"], rig.make_calls()) == ("store", True, 1)
