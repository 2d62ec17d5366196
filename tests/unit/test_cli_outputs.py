"""The command line where its outputs cannot be written, and where it has a bug."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Optional, Sequence

import pytest
from cli_runs import document, environment
from fake_toolchain import FakeToolchain


@pytest.fixture
def rig(tmp_path: Path) -> FakeToolchain:
    return FakeToolchain.make(tmp_path)


def _into(root: Path, target: Optional[str], *words: object, **more: str) -> subprocess.CompletedProcess[str]:
    """Run with standard output into a shell's redirection."""
    command = " ".join([sys.executable, "-m", "nvdriver_build", *map(str, words)])
    argv = ["bash", "-c", f"{command} {target}; exit ${{PIPESTATUS[0]}}"]
    return subprocess.run(
        argv, env=environment(root, **more), capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [("store", "list", "--json"), ("--help",), ("status",)])
def test_a_full_disk_behind_standard_output_is_told(
    tmp_path: Path, words: Sequence[str], unbuffered: str
) -> None:
    """Where standard output cannot be written, that is told in a line, and exit 1 says it."""
    done = _into(tmp_path, "> /dev/full", *words, PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 1
    assert done.stderr == "error: cannot write to standard output: No space left on device\n"


def test_an_error_survives_a_full_disk(tmp_path: Path) -> None:
    """The exit code and standard error tell the error even where its document cannot be written."""
    done = _into(tmp_path, "> /dev/full", "inspect", tmp_path / "gone.ko", "--json")
    assert (done.returncode, "Traceback" in done.stderr, "error: " in done.stderr) == (13, False, True)


def test_a_reader_that_leaves_is_no_error(rig: FakeToolchain) -> None:
    """`inspect | head -1` ends without a word, as SIGPIPE would end it."""
    words = ["inspect", *([rig.root / "modules"] * 200), "--json"]
    done = _into(rig.root, "| head -c 1", *words)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_closed_outputs_are_borne(rig: FakeToolchain) -> None:
    """With standard output closed a command still does its work."""
    assert _into(rig.root, ">&-", "inspect", rig.root / "modules").returncode == 0


def test_a_bug_is_told_in_lines(tmp_path: Path) -> None:
    """What nobody thought of is exit 1 with the place and a hint; -v shows the traceback."""
    code = """
import sys
from nvdriver_build import cli, config
def bug(*_): raise RuntimeError("what nobody thought of")
config.read_config = bug
cli.main(sys.argv[1:])
"""
    argv = [sys.executable, "-c", code, "store", "list", "--json"]
    done = subprocess.run(argv, env=environment(tmp_path), capture_output=True, text=True, check=False)
    assert (done.returncode, document(done)["error"]["kind"]) == (1, "NvdriverError")
    assert "error: RuntimeError: what nobody thought of (at <string>:4)" in done.stderr
    assert "Traceback" not in done.stderr
    verbose = subprocess.run(
        [*argv, "-v"], env=environment(tmp_path), capture_output=True, text=True, check=False
    )
    assert (verbose.returncode, "Traceback" in verbose.stderr) == (1, True)
