"""The linters, as tests: ruff and mypy find nothing in the package, the tests and the scripts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import List

ROOT = Path(__file__).parents[2]


def python_scripts() -> List[str]:
    """The Python programs of scripts/, whether their names end in .py or not."""
    return [
        str(path)
        for path in sorted((ROOT / "scripts").iterdir())
        if path.suffix == ".py" or (path.is_file() and path.read_bytes().split(b"\n")[0].endswith(b"python3"))
    ]


def run(*words: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        (sys.executable, "-m", *words),
        cwd=cwd,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def test_scripts_are_found() -> None:
    """A Python program without a suffix is linted, too; one for the shell is not."""
    names = [Path(path).name for path in python_scripts()]
    assert "kit" in names
    assert "quickstart" not in names


def test_names_of_test_files() -> None:
    """pytest takes two files of one name for one, wherever they are; but for those of the package `vm`."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py") if path.parent.name != "vm"]
    assert sorted(set(names)) == sorted(names)


def test_ruff() -> None:
    """`ruff check` finds nothing."""
    done = run("ruff", "check", "--output-format", "concise", ".", *python_scripts())
    assert done.returncode == 0, done.stdout


def test_format() -> None:
    """`ruff format` would change nothing."""
    done = run("ruff", "format", "--check", ".", *python_scripts())
    assert done.returncode == 0, done.stdout


def test_mypy() -> None:
    """`mypy --strict` finds nothing; started in tests/, whose helpers are imported by their bare names."""
    paths = [".", "../nvdriver_build", "../scripts/kitlib", *python_scripts()]
    done = run(
        *("mypy", "--strict", "--config-file", "../pyproject.toml", "--cache-dir", "../.mypy_cache"),
        *("--explicit-package-bases", *paths),
        cwd=ROOT / "tests",
        MYPYPATH="..:../scripts",
    )
    assert done.returncode == 0, done.stdout
