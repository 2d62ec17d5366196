"""The keys that a kernel trusts, from keyctl or from /proc/keys."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_keyrings import BUILTIN, key_line, write_keyctl, write_proc_keys

from nvdriver_build.commands import SystemCommands
from nvdriver_build.kernel.keyrings import Keyrings, read_keyrings

OURS, THEIRS = "157bc1b1cda93e69ab6e334143bb8a086328a8bd", "e3e342dcbfafdeb1cab6c79b9aef532ba9835d98"
NOTHING = SystemCommands("/nowhere")


def read(proc: Path, commands: SystemCommands = NOTHING) -> Keyrings:
    found = read_keyrings(proc, commands)
    assert found is not None
    return found


def test_proc_names_the_keys(tmp_path: Path) -> None:
    """Without keyctl /proc/keys tells which keys there are, though not where."""
    write_proc_keys(tmp_path, [OURS])
    found = read(tmp_path)
    assert found.trusted == {BUILTIN: "", OURS: ""}
    assert (found.holds(OURS), found.holds(THEIRS)) == (True, False)


@pytest.mark.parametrize("line", [
    key_line(THEIRS, flags="IR-----"),
    key_line(THEIRS, flags="I-D----"),
    key_line(THEIRS, flags="-------"),
    key_line(THEIRS, uid=1000),
    key_line(THEIRS)[:-40],
])  # fmt: skip
def test_keys_that_do_not_count(line: str, tmp_path: Path) -> None:
    """A key that is revoked, dead, not there yet, or somebody's own is none that the kernel trusts."""
    write_proc_keys(tmp_path, [OURS], line)
    assert not read(tmp_path).holds(THEIRS)


def test_what_is_masked_is_not_known(tmp_path: Path) -> None:
    """No /proc/keys, an empty one (a container's), or one of a user who sees no keyring: None, not 'no'."""
    assert read_keyrings(tmp_path, NOTHING) is None
    for text in ("", key_line(OURS, uid=1000)):
        (tmp_path / "keys").write_text(text)
        assert read_keyrings(tmp_path, NOTHING) is None


def test_keyctl_names_the_keyring(tmp_path: Path) -> None:
    """With keyctl only the keyrings that modules are checked with count; one that is not there is none."""
    write_proc_keys(tmp_path, [OURS, THEIRS])
    path = write_keyctl(tmp_path, {".builtin_trusted_keys": [BUILTIN], ".platform": [OURS]})
    found = read(tmp_path, SystemCommands(path))
    assert found.trusted == {BUILTIN: ".builtin_trusted_keys", OURS: ".platform"}
    assert not found.holds(THEIRS)


def test_what_is_revoked_is_not_trusted(tmp_path: Path) -> None:
    """The keyring .blacklist outweighs the others."""
    write_proc_keys(tmp_path, [OURS])
    rings = {".builtin_trusted_keys": [BUILTIN], ".platform": [OURS], ".blacklist": [OURS]}
    assert not read(tmp_path, SystemCommands(write_keyctl(tmp_path, rings))).holds(OURS)


def test_a_keyctl_that_fails_is_no_reason_to_know_nothing(tmp_path: Path) -> None:
    """Where the system call is forbidden, /proc/keys still tells."""
    write_proc_keys(tmp_path, [OURS])
    assert read(tmp_path, SystemCommands(write_keyctl(tmp_path, {}))).holds(OURS)


def test_a_first_byte_of_zero_is_left_out(tmp_path: Path) -> None:
    """The kernel writes ids without it."""
    write_proc_keys(tmp_path, [OURS[2:]])
    assert read(tmp_path).holds("00" + OURS[2:])
