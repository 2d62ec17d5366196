"""The choice of modules, and a set of one's own that is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_runs import build_words, cli, document
from fake_toolchain import FakeToolchain

from nvdriver_build.errors import UsageError
from nvdriver_build.source import split_names


@pytest.fixture
def rig(tmp_path: Path) -> FakeToolchain:
    return FakeToolchain.make(tmp_path)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ()),
        ("nvidia", ("nvidia",)),
        ("nvidia, nvidia-uvm", ("nvidia", "nvidia-uvm")),
        (" nvidia-drm ,nvidia-modeset, nvidia,", ("nvidia-drm", "nvidia-modeset", "nvidia")),
        ("nvidia,nvidia-fs", ("nvidia", "nvidia-fs")),
    ],
)
def test_names_are_split_at_commas(text: str, names: tuple[str, ...]) -> None:
    """Blanks around names do not matter, nor does the order; what nobody knows is the source's to refuse."""
    assert split_names(text) == names


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("nvidia-uvm", "nvidia-uvm cannot be built without nvidia:", "give nvidia,nvidia-uvm"),
        (
            "nvidia,nvidia-drm",
            "nvidia-drm cannot be built without nvidia-modeset:",
            "give nvidia-modeset,nvidia,nvidia-drm",
        ),
        (
            "nvidia-drm",
            "nvidia-drm cannot be built without nvidia and nvidia-modeset:",
            "give nvidia,nvidia-modeset,nvidia-drm",
        ),
    ],
)
def test_a_choice_that_cannot_be_linked_is_refused(text: str, message: str, hint: str) -> None:
    """modpost would end minutes later with undefined symbols: what lacks is named, with the whole list."""
    with pytest.raises(UsageError) as caught:
        split_names(text)
    assert caught.value.message.startswith(message)
    assert caught.value.hint == hint
    split_names(hint[len("give ") :])


def test_it_is_refused_before_make(rig: FakeToolchain) -> None:
    """Before anything is read or built; blanks after commas are fine."""
    done = cli(rig.root, *build_words(rig, "--modules", "nvidia-uvm", "--json"), path=rig.path)
    assert (done.returncode, document(done)["error"]["kind"], rig.make_calls()) == (2, "UsageError", 0)
    done = cli(rig.root, *build_words(rig, "--modules", "nvidia, nvidia-uvm", "--json"), path=rig.path)
    assert [module["name"] for module in document(done)["modules"]] == ["nvidia", "nvidia_uvm"]


def test_too_many_jobs_are_wrong_usage(rig: FakeToolchain) -> None:
    """A number of jobs that would exhaust any machine is a slip."""
    done = cli(rig.root, *build_words(rig, "--jobs", "1025"), path=rig.path)
    assert (done.returncode, "1<=x<=1024" in done.stderr) == (2, True)


def test_a_damaged_set_of_ones_own_is_not_said_to_mend_itself(rig: FakeToolchain) -> None:
    """Only the store drops damaged sets and builds them anew."""
    (rig.root / "modules/manifest.json").write_text("{")
    done = cli(rig.root, "verify", rig.root / "modules", "--headers", rig.headers, "--json")
    error = document(done)["error"]
    assert (error["code"], error["hint"]) == (17, "build it again, or copy it again, whole")
