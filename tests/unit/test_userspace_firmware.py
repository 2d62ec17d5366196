"""GSP firmware and the kernel's search path; tests/vm/test_firmware.py asks a real kernel."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Dict

import pytest
from crashes import killed_at_each_step
from trees import Link, write_tree

from nvdriver_build.errors import LoadError
from nvdriver_build.files import remove
from nvdriver_build.userspace.firmware import (
    clear_search_path,
    set_search_path,
    stage_firmware,
    unstage_firmware,
)

FILES = {"nvidia/535.1/gsp_ga10x.bin": b"a" * 100_000, "nvidia/535.1/gsp_tu10x.bin": b"b" * 70_000}
FOLDER = "/run/nvidia/driver/lib/firmware"
PATH = "module/firmware_class/parameters/path"


def content(folder: Path) -> Dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_every_file_is_copied_once(tmp_path: Path) -> None:
    """All files come to the same places with their times; what is there already is not copied again."""
    source, target = write_tree(tmp_path / "opt", FILES), tmp_path / "lib" / "firmware"
    os.utime(source / "nvidia/535.1/gsp_tu10x.bin", (1_700_000_000, 1_700_000_000))
    assert stage_firmware(source, target) == 2
    assert content(target) == FILES
    before = (target / "nvidia/535.1/gsp_tu10x.bin").stat()
    assert before.st_mtime == 1_700_000_000
    assert stage_firmware(source, target) == 0
    assert (target / "nvidia/535.1/gsp_tu10x.bin").stat().st_ino == before.st_ino


@pytest.mark.parametrize("wrong", [b"b" * 69_999, b"B" * 70_000, b""], ids=["shorter", "other", "empty"])
def test_wrong_file_is_replaced(tmp_path: Path, wrong: bytes) -> None:
    """A file of another size or time in the place of ours is replaced, and it alone."""
    source, target = write_tree(tmp_path / "opt", FILES), write_tree(tmp_path / "lib", FILES)
    for name in FILES:
        os.utime(target / name, ns=((source / name).stat().st_mtime_ns,) * 2)
    (target / "nvidia/535.1/gsp_tu10x.bin").write_bytes(wrong)
    os.utime(target / "nvidia/535.1/gsp_tu10x.bin", (1, 1))
    assert stage_firmware(source, target) == 1
    assert content(target) == FILES


def test_link_in_the_place_of_a_file_is_replaced(tmp_path: Path) -> None:
    """A link there is not written through."""
    source, outside = write_tree(tmp_path / "opt", FILES), tmp_path / "outside"
    outside.write_text("mine")
    target = write_tree(tmp_path / "lib", {"nvidia/535.1/gsp_tu10x.bin": Link(str(outside))})
    assert stage_firmware(source, target) == 2
    assert content(target) == FILES
    assert outside.read_text() == "mine"


def test_image_without_firmware_is_fine(tmp_path: Path) -> None:
    """Proprietary modules of old GPUs need none."""
    assert stage_firmware(tmp_path / "none", tmp_path / "lib") == 0
    unstage_firmware(tmp_path / "none", tmp_path / "lib")
    assert not (tmp_path / "lib").exists()


def test_killed_at_any_step_no_half_file_stays(tmp_path: Path) -> None:
    """A reader never sees a part of a file, and the next run leaves the files and nothing beside them."""
    source, target = write_tree(tmp_path / "opt", FILES), tmp_path / "lib"
    for _ in killed_at_each_step(lambda: remove(target), lambda: stage_firmware(source, target)):
        whole = {name: data for name, data in content(target).items() if ".part-" not in name}
        assert whole.items() <= FILES.items()
        stage_firmware(source, target)
        assert content(target) == FILES


def test_full_disk_is_told(small_disk: Path, tmp_path: Path) -> None:
    """No room is an error with the path and a hint; no part of a file stays."""
    source = write_tree(tmp_path / "opt", {"nvidia/535.1/gsp.bin": os.urandom(400_000)})
    with pytest.raises(LoadError, match=r"cannot copy the GSP firmware .*No space left") as error:
        stage_firmware(source, small_disk)
    assert error.value.hint
    assert content(small_disk) == {}


def test_what_was_staged_goes_and_nothing_else(tmp_path: Path) -> None:
    """Uninstalling removes our files and the folders left empty, not another driver's."""
    source, other = write_tree(tmp_path / "opt", FILES), {"nvidia/550.1/gsp.bin": b"theirs"}
    target = tmp_path / "lib"
    stage_firmware(source, target)
    unstage_firmware(source, target)
    assert list(target.iterdir()) == []
    write_tree(target, other)
    stage_firmware(source, target)
    unstage_firmware(source, target)
    assert content(target) == other
    assert not (target / "nvidia/535.1").exists()


@pytest.mark.parametrize("empty", ["", "\n", " \n", "\0"])
def test_empty_search_path_is_set(tmp_path: Path, empty: str) -> None:
    """An empty search path becomes ours, without a newline that old kernels would take as part of it."""
    sys = write_tree(tmp_path, {PATH: empty})
    assert set_search_path(sys, FOLDER) is None
    assert (sys / PATH).read_text() == FOLDER
    assert set_search_path(sys, FOLDER) is None


def test_foreign_search_path_is_kept(tmp_path: Path) -> None:
    """What somebody else has set stays, with a warning that names it; clearing leaves it too."""
    sys = write_tree(tmp_path, {PATH: "/opt/fw\n"})
    warning = set_search_path(sys, FOLDER)
    assert warning is not None
    assert "/opt/fw" in warning
    clear_search_path(sys, FOLDER)
    assert (sys / PATH).read_text() == "/opt/fw\n"


def test_search_path_that_cannot_be_set_is_a_warning(tmp_path: Path) -> None:
    """A kernel without the parameter, or one that refuses, costs a warning; the driver may do without."""
    warning = set_search_path(tmp_path, FOLDER)
    assert warning is not None
    assert f"was not set to {FOLDER}" in warning
    clear_search_path(tmp_path, FOLDER)
    (tmp_path / PATH).mkdir(parents=True)
    assert set_search_path(tmp_path, FOLDER) is not None
    clear_search_path(tmp_path, FOLDER)


def test_our_search_path_is_cleared_by_a_string_that_ends_at_once(tmp_path: Path) -> None:
    """Not by a write of nothing, which the kernel does not see."""
    sys = write_tree(tmp_path, {PATH: f"{FOLDER}\n"})
    clear_search_path(sys, FOLDER)
    assert (sys / PATH).read_bytes() == b"\0"
