"""What /proc and /sys say of the running kernel."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Optional

import pytest
from trees import write_tree

from nvdriver_build.kernel import RunningKernel, Security, read_security

SECURE_BOOT = "firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
ENFORCE = "module/module/parameters/sig_enforce"
LOCKDOWN = "kernel/security/lockdown"


def test_this_machine() -> None:
    """What is read is what uname says."""
    running, uname = RunningKernel.read(Path("/proc"), os.uname().machine), os.uname()
    assert (running.release, running.version) == (uname.release, uname.version)


@pytest.mark.parametrize(
    ("machine", "arch"), [("x86_64", "x86_64"), ("aarch64", "arm64"), ("riscv64", "riscv64")]
)
def test_architecture_has_the_kernels_name(tmp_path: Path, machine: str, arch: str) -> None:
    """aarch64 is arm64; an unknown machine keeps its name."""
    write_tree(tmp_path, {"sys/kernel/osrelease": "6.1.0\n", "sys/kernel/version": "#1 SMP\n"})
    assert RunningKernel.read(tmp_path, machine) == RunningKernel("6.1.0", "#1 SMP", arch)


def test_nothing_is_told(tmp_path: Path) -> None:
    """A /sys without these files says nothing, and nothing is enforced."""
    assert read_security(tmp_path) == Security(None, None, None)
    assert not read_security(tmp_path).enforces


@pytest.mark.parametrize(("text", "wanted"), [("Y\n", True), ("N\n", False)])
def test_signature_enforcement(tmp_path: Path, text: str, wanted: bool) -> None:
    """sig_enforce is Y or N, and Y enforces."""
    security = read_security(write_tree(tmp_path, {ENFORCE: text}))
    assert (security.sig_enforce, security.enforces) == (wanted, wanted)


@pytest.mark.parametrize(
    ("text", "mode", "enforces"),
    [
        ("[none] integrity confidentiality\n", "none", False),
        ("none [integrity] confidentiality\n", "integrity", True),
        ("none integrity [confidentiality]\n", "confidentiality", True),
        ("", None, False),
        ("none integrity\n", None, False),
    ],
)
def test_lockdown(tmp_path: Path, text: str, mode: Optional[str], enforces: bool) -> None:
    """The mode in brackets holds; all but none refuse an unsigned module."""
    security = read_security(write_tree(tmp_path, {LOCKDOWN: text, ENFORCE: "N\n"}))
    assert (security.lockdown, security.enforces) == (mode, enforces)


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b"\x06\0\0\0\x01", True),
        (b"\x06\0\0\0\0", False),
        (b"", None),
        (b"\x06\0\0\0", None),
        (b"\x06\0\0\0\x02", None),
    ],
)
def test_secure_boot(tmp_path: Path, data: bytes, wanted: Optional[bool]) -> None:
    """The EFI variable has four bytes of attributes and one of state; anything else says nothing."""
    security = read_security(write_tree(tmp_path, {SECURE_BOOT: data}))
    assert security.secure_boot == wanted
    assert not security.enforces  # the firmware does not enforce, the kernel does


def test_unreadable_files_say_nothing(tmp_path: Path) -> None:
    """A file that cannot be read (a folder, here) is as one that is not there."""
    for name in (ENFORCE, LOCKDOWN, SECURE_BOOT):
        (tmp_path / name).mkdir(parents=True)
    assert read_security(tmp_path) == Security(None, None, None)
