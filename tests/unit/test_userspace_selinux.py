"""SELinux of the host, and the label of the device files."""

from __future__ import annotations

from pathlib import Path
from typing import Dict

import pytest
from trees import write_tree

from nvdriver_build.commands import SystemCommands
from nvdriver_build.userspace.selinux import enforced, label_devices

MOUNTS = "sysfs /sys sysfs rw 0 0\nselinuxfs /sys/fs/selinux selinuxfs rw 0 0\n"
ENFORCE = "1/root/sys/fs/selinux/enforce"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"1/mounts": MOUNTS, ENFORCE: "1"}, True),
        ({"1/mounts": MOUNTS, ENFORCE: "0"}, False),
        ({"1/mounts": MOUNTS}, False),
        ({"1/mounts": "sysfs /sys sysfs rw 0 0\n", ENFORCE: "1"}, False),
        ({"1/mounts": "myselinuxfs /x tmpfs rw 0 0\n", ENFORCE: "1"}, False),
        ({}, False),
    ],
    ids=["enforcing", "permissive", "no-enforce", "not-mounted", "like-named", "no-host"],
)
def test_enforced_means_what_the_host_does(tmp_path: Path, files: Dict[str, str], expected: bool) -> None:
    """Process 1 sees selinuxfs, and `enforce` there is 1; permissive or invisible is not enforced."""
    assert enforced(write_tree(tmp_path, files)) is expected


def chcon(folder: Path, script: str) -> SystemCommands:
    (folder / "chcon").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "chcon").chmod(0o755)
    return SystemCommands(f"{folder}:/usr/bin:/bin")


def test_all_device_files_are_labelled(tmp_path: Path) -> None:
    """chcon gets the folder, whatever it is called, and NVIDIA's type."""
    commands = chcon(tmp_path, f'printf "%s\\n" "$@" >{tmp_path}/log')
    assert label_devices(Path("-x /dev"), commands) is None
    words = ["--recursive", "--type=container_file_t", "--", "-x /dev"]
    assert (tmp_path / "log").read_text().splitlines() == words


def test_label_that_is_refused_is_a_sentence(tmp_path: Path) -> None:
    """A chcon that fails, or that is not there, is told and ends nothing."""
    refused = label_devices(Path("/dev"), chcon(tmp_path, "echo chcon: Operation not supported >&2; exit 1"))
    assert refused is not None
    assert refused.endswith("chcon: Operation not supported")
    missing = label_devices(Path("/dev"), SystemCommands("/nowhere"))
    assert missing is not None
    assert "chcon: no such program" in missing
