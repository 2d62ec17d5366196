"""Messages that people act on: short, with names that mean something to them."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_runs import cli
from fake_toolchain import FakeToolchain

from nvdriver_build.commands import SystemCommands
from nvdriver_build.errors import SourceError
from nvdriver_build.source import open_source


def test_compile_error_names_the_file_of_the_source(tmp_path: Path) -> None:
    """Not the file in a private folder that is gone by then; the log is named, too."""
    rig = FakeToolchain.make(tmp_path)
    rig.program("make", 'cd "$3"; echo "$PWD/nvidia/nv.c:7:3: error: too few arguments"; exit 2')
    words = ("--source", str(rig.source), "--headers", str(rig.headers), "--output", str(tmp_path / "set"))
    done = cli(tmp_path, "build", *words, path=rig.path)
    assert done.returncode == 12, done.stderr
    assert "does not build: nvidia/nv.c:7: too few arguments\n" in done.stderr
    assert f"{tmp_path}/store/logs/" in done.stderr


def test_full_disk_is_told_although_the_log_is_on_it(tmp_path: Path, small_disk: Path) -> None:
    """What make would say of a full disk is cut off with its log: the hint is not that the driver is old."""
    rig = FakeToolchain.make(tmp_path / "rig")
    rig.program("make", 'cat /dev/zero >"$3/all" 2>/dev/null; echo "make: *** Waiting for"; exit 2')
    words = ("--source", str(rig.source), "--headers", str(rig.headers), "--output", str(tmp_path / "set"))
    done = cli(tmp_path, "build", *words, path=rig.path, NVDRIVER_STORE=str(small_disk / "store"))
    assert done.returncode == 12, done.stderr
    assert "hint: no space is left" in done.stderr


def test_damaged_archive_is_named_once(tmp_path: Path) -> None:
    """The message starts with the archive's path and does not repeat it."""
    archive = tmp_path / "source.tar.xz"
    archive.write_text("no archive")
    with pytest.raises(SourceError) as caught:
        open_source(archive, "auto", tmp_path / "work", SystemCommands())
    assert caught.value.message.count(str(archive)) == 1


def test_support_bundle_that_cannot_be_written(tmp_path: Path) -> None:
    """A bad --output is wrong usage, not a bug."""
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "case.tar.gz"
    done = cli(tmp_path, "support-bundle", "--output", place)
    assert done.returncode == 2, done.stderr
    assert f"cannot write {place}" in done.stderr
