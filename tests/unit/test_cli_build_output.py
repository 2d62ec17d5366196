"""Where `build` writes to: it replaces an older set, and nothing that somebody else has put there."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_runs import build_words, cli, document
from fake_toolchain import FakeToolchain

from nvdriver_build.cli import output as output_folder
from nvdriver_build.errors import StoreError
from nvdriver_build.files import publish_folder
from nvdriver_build.sets import ModuleSet, open_set


@pytest.fixture
def rig(tmp_path: Path) -> FakeToolchain:
    return FakeToolchain.make(tmp_path)


def _built(rig: FakeToolchain) -> Path:
    done = cli(rig.root, *build_words(rig), path=rig.path)
    assert done.returncode == 0, done.stderr
    return rig.root / "out"


def test_a_foreign_manifest_is_not_taken_for_a_set(rig: FakeToolchain) -> None:
    """Many programs have a manifest.json: a folder with one stays as it is."""
    place = rig.root / "out"
    place.mkdir()
    (place / "manifest.json").write_text("{}")
    (place / "thesis").write_text("years of work")
    error = document(cli(rig.root, *build_words(rig, "--json"), path=rig.path))["error"]
    assert (error["code"], error["message"]) == (2, f"{place} exists and is no module set")
    assert (place / "thesis").read_text() == "years of work"
    assert rig.make_calls() == 0


def test_what_lies_beside_a_set_is_not_removed(rig: FakeToolchain) -> None:
    """A set with a file of somebody else's is not replaced; without it, it is."""
    place = _built(rig)
    (place / "notes").write_text("mine")
    error = document(cli(rig.root, *build_words(rig, "--json"), path=rig.path))["error"]
    assert (error["code"], error["message"]) == (2, f"{place} is a module set and holds notes, too")
    assert (place / "notes").read_text() == "mine"
    (place / "notes").unlink()
    assert cli(rig.root, *build_words(rig), path=rig.path).returncode == 0


def test_the_current_folder_is_refused(rig: FakeToolchain) -> None:
    """Replacing the folder that a shell stands in would leave it nowhere."""
    error = document(cli(rig.root, *build_words(rig, "--output", ".", "--json"), path=rig.path))["error"]
    assert (error["code"], error["hint"]) == (2, "name a folder in it")
    assert error["message"].startswith(". is the current folder")


def test_a_link_to_a_set_stays_a_link(rig: FakeToolchain) -> None:
    """The set behind the link is replaced, not the link."""
    place = _built(rig)
    before = place.stat().st_ino
    link = rig.root / "current"
    link.symlink_to(place)
    assert cli(rig.root, *build_words(rig, "--output", link), path=rig.path).returncode == 0
    assert (link.is_symlink(), place.stat().st_ino == before) == (True, False)
    open_set(link)


def test_two_writers_of_one_output_are_told(rig: FakeToolchain, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another process puts something else there meanwhile, that stays, and is told."""
    built = open_set(_built(rig))
    place = rig.root / "other"

    def late(private: Path, there: Path) -> bool:
        there.mkdir()
        (there / "theirs").touch()
        return publish_folder(private, there)

    monkeypatch.setattr(output_folder, "publish_folder", late)
    with pytest.raises(StoreError, match="another process has written there meanwhile"):
        output_folder.write_set(ModuleSet(built.folder, built.manifest), place)
    assert [path.name for path in place.iterdir()] == ["theirs"]


def test_what_lies_beside_a_set_in_the_store_stays_there(rig: FakeToolchain) -> None:
    """The output is what the manifest lists: a file or a folder that somebody put beside is not handed on."""
    place = _built(rig)
    names = {path.name for path in place.iterdir()}
    (kept,) = (rig.root / "store/sets").iterdir()
    (kept / "foreign.ko").write_text("of somebody else")
    (kept / "folder").mkdir()
    again = _built(rig)
    assert {path.name for path in again.iterdir()} == names
