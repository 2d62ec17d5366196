"""NVFM_CONFIG_NAME=VALUE: what a setting may be, and where it ends up."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvdriver_build.errors import LoadError, UsageError
from nvdriver_build.userspace.daemons.settings import write_settings

GIVEN = "# Fabric Manager\nLOG_LEVEL=4\nFABRIC_MODE=0\n#FABRIC_MODE=2\nFABRIC_MODE_RESTART=0\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "fabricmanager.cfg"
    path.write_text(GIVEN)
    path.chmod(0o640)
    return path


def test_a_setting_takes_the_place_of_its_line(file: Path) -> None:
    """Its own line only: no comment, and no longer name."""
    write_settings(file, {"FABRIC_MODE": "1"})
    assert file.read_text() == GIVEN.replace("\nFABRIC_MODE=0\n", "\nFABRIC_MODE=1\n")


def test_a_new_setting_comes_last(file: Path) -> None:
    """Also where the file does not end in a newline, and twice is as good as once."""
    file.write_text("A=1")
    for _ in range(2):
        write_settings(file, {"B": "2", "C": ""})
    assert file.read_text() == "A=1\nB=2\nC=\n"


@pytest.mark.parametrize(
    "value", ["$(touch x)", "`id`", "a'b\"c", r"\1 \g<0> \n & | /", "a=b=c", "x; rm -rf .", "ä", " "]
)
def test_a_value_is_data(file: Path, value: str) -> None:
    """Nothing in a value means anything to anybody on the way, whether it replaces a line or is added."""
    write_settings(file, {"FABRIC_MODE": value, "NEW": value})
    lines = file.read_text().splitlines()
    assert f"FABRIC_MODE={value}" in lines
    assert lines[-1] == f"NEW={value}"
    assert len(lines) == len(GIVEN.splitlines()) + 1


@pytest.mark.parametrize("value", ["a\nB=2", "a\rb", "a\0b", "a\tb", "\x1b[2J", "a\u2028b", "\udcff"])
def test_a_value_is_one_line(file: Path, value: str) -> None:
    """A value that would be more than a line, or not text, is refused; the file stays as it was."""
    with pytest.raises(UsageError, match="NVFM_CONFIG_GOOD_ONE is ") as error:
        write_settings(file, {"LOG_LEVEL": "1", "GOOD_ONE": value})
    assert error.value.hint == "it takes one line of printable text"
    assert "\x1b" not in str(error.value)
    assert file.read_text() == GIVEN


@pytest.mark.parametrize("name", ["", "A B", "A=B", "A\nB", "$(id)", ".*"])
def test_a_name_is_a_word(file: Path, name: str) -> None:
    """A name that could not stand before an equals sign is refused."""
    with pytest.raises(UsageError, match="is no name of a setting"):
        write_settings(file, {name: "1"})
    assert file.read_text() == GIVEN


def test_the_file_has_to_be_there(tmp_path: Path) -> None:
    """A setting that nobody would read is an error; without settings the file is not looked at."""
    write_settings(tmp_path / "absent.cfg", {})
    with pytest.raises(LoadError, match=r"NVFM_CONFIG_A cannot be set in .*absent.cfg: No such file"):
        write_settings(tmp_path / "absent.cfg", {"A": "1"})


def test_bytes_that_are_no_text_stay(file: Path) -> None:
    """A comment in another encoding is none of our business."""
    file.write_bytes(b"# \xff\xfe\nA=1\n")
    write_settings(file, {"A": "2"})
    assert file.read_bytes() == b"# \xff\xfe\nA=2\n"
