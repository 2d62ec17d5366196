"""The compiler rule, with compilers that only know their version."""

from __future__ import annotations

from pathlib import Path
from typing import Mapping

import pytest
from kernel_trees import CONFIG, RELEASE, RHEL_COMPILER, build_tree
from trees import Link, write_tree

from nvdriver_build.commands import SystemCommands
from nvdriver_build.errors import CompilerMismatch
from nvdriver_build.kernel import Compiler, find_compiler, find_headers, target_from_headers
from nvdriver_build.kernel.target import KernelTarget

DEBIAN = "gcc-12 (Debian 12.2.0-14+deb12u1) 12.2.0"
CLANG = "clang version 17.0.6 (Red Hat, Inc. 17.0.6-5.el9)"
CROSS = "x86_64-linux-gnu-gcc-12 (Debian 12.2.0-14) 12.2.0"
DEBIAN_CLANG = "Debian clang version 14.0.6"


def kernel(folder: Path, text: str) -> KernelTarget:
    """A kernel that was built with the compiler of that text."""
    config = {**CONFIG, "CC_VERSION_TEXT": f'"{text}"'}
    return target_from_headers(find_headers(write_tree(folder / "kernel", build_tree(config=config))))


def programs(folder: Path, texts: Mapping[str, str]) -> SystemCommands:
    """A PATH with these programs, which print their text."""
    for name, text in texts.items():
        write_tree(folder / "bin", {name: f"#!/bin/sh\ncat <<'END'\n{text}\nCopyright\nEND\n"})
        (folder / "bin" / name).chmod(0o755)
    return SystemCommands(f"{folder}/bin")


def find(folder: Path, wanted: str, texts: Mapping[str, str], *, allow: bool = False) -> Compiler:
    """`find_compiler` where `wanted` built the kernel and `texts` are on PATH."""
    write_tree(folder / "bin", {"cat": Link("/bin/cat")})
    return find_compiler(kernel(folder, wanted), programs(folder, texts), allow_mismatch=allow)


@pytest.mark.parametrize(
    ("wanted", "name"),
    [(RHEL_COMPILER, "gcc"), (DEBIAN, "gcc-12"), (CLANG, "clang"), (CROSS, "x86_64-linux-gnu-gcc-12")],
)
def test_the_kernels_own(tmp_path: Path, wanted: str, name: str) -> None:
    """The program that built the kernel, of the same version, is taken by its name."""
    assert find(tmp_path, wanted, {name: wanted, "cc": "cc 1.2.3"}) == Compiler(name, wanted, True, False)


def test_version_is_the_one_outside_parentheses(tmp_path: Path) -> None:
    """RHEL's text holds a date and a package version too; Debian's command has a number in its name."""
    assert find(tmp_path, RHEL_COMPILER, {"gcc": "gcc (GCC) 11.4.1 20231218 (Red Hat 11.4.1-3)"}).same
    assert not find(tmp_path / "2", DEBIAN, {"gcc-12": "gcc-12 (Debian 12.2.0-14+deb12u1) 12.3.0"}).same


def test_other_minor_version(tmp_path: Path) -> None:
    """Another minor version of the same major one will do, and is not the same."""
    text = "gcc (GCC) 11.5.0 20240719 (Red Hat 11.5.0-2)"
    assert find(tmp_path, RHEL_COMPILER, {"gcc": text}) == Compiler("gcc", text, False, False)


def test_other_major_version(tmp_path: Path) -> None:
    """Another major version is refused; both compilers and the kernel are told."""
    with pytest.raises(CompilerMismatch) as caught:
        find(tmp_path, RHEL_COMPILER, {"gcc": "gcc (Debian 12.2.0-14) 12.2.0"})
    there = "the compiler gcc is 'gcc (Debian 12.2.0-14) 12.2.0'"
    assert str(caught.value) == f"{there}; kernel {RELEASE} was built with {RHEL_COMPILER!r}"
    assert caught.value.exit_code == 10
    assert str(caught.value.hint).startswith("install gcc 11, or set NVDRIVER_COMPILER_MISMATCH=allow")


def test_other_major_version_allowed(tmp_path: Path) -> None:
    """On request it is taken, and marked."""
    text = "gcc (Debian 12.2.0-14) 12.2.0"
    found = find(tmp_path, RHEL_COMPILER, {"gcc": text}, allow=True)
    assert found == Compiler("gcc", text, False, True)


@pytest.mark.parametrize("allow", [False, True])
def test_the_right_one_under_another_name(tmp_path: Path, allow: bool) -> None:
    """Where gcc is another major version and gcc-11 is there too, gcc-11 is taken."""
    right = "gcc-11 (Debian 11.3.0-12) 11.3.0"
    texts = {"gcc": "gcc (Debian 12.2.0-14) 12.2.0", "gcc-11": right}
    assert find(tmp_path, RHEL_COMPILER, texts, allow=allow) == Compiler("gcc-11", right, False, False)


def test_cc_is_the_last_resort(tmp_path: Path) -> None:
    """A compiler that is there as cc only is found."""
    assert find(tmp_path, RHEL_COMPILER, {"cc": "cc (GCC) 11.4.1"}).command == "cc"


@pytest.mark.parametrize(
    ("wanted", "there", "name"),
    [
        (DEBIAN_CLANG, "gcc (Debian 14.2.0-19) 14.2.0", "clang 14"),
        ("gcc (GCC) 14.1.0", DEBIAN_CLANG, "gcc 14"),
    ],
)
def test_gcc_and_clang_do_not_mix(tmp_path: Path, wanted: str, there: str, name: str) -> None:
    """Major versions of gcc and clang may be equal; they are still different compilers."""
    with pytest.raises(CompilerMismatch) as caught:
        find(tmp_path, wanted, {"cc": there})
    assert f"install {name}," in str(caught.value.hint)


@pytest.mark.parametrize("name", ["clang-14", "clang"])
def test_clang_built_kernel(tmp_path: Path, name: str) -> None:
    """A kernel built with clang gets clang, though the text does not start with its name."""
    assert find(tmp_path, DEBIAN_CLANG, {name: DEBIAN_CLANG, "gcc": DEBIAN}).command == name


def test_no_compiler(tmp_path: Path) -> None:
    """Where there is none, it is told what was looked for."""
    with pytest.raises(CompilerMismatch, match="looked for gcc, gcc-11, cc on PATH") as caught:
        find(tmp_path, RHEL_COMPILER, {})
    assert RHEL_COMPILER in str(caught.value.hint)


def test_broken_compiler_is_none(tmp_path: Path) -> None:
    """A program that fails or says nothing is no compiler."""
    write_tree(tmp_path / "bin", {"gcc": "#!/bin/sh\nexit 1\n", "gcc-11": "#!/bin/sh\n"})
    for name in ("gcc", "gcc-11"):
        (tmp_path / "bin" / name).chmod(0o755)
    with pytest.raises(CompilerMismatch, match="no compiler found"):
        find_compiler(kernel(tmp_path, RHEL_COMPILER), SystemCommands(f"{tmp_path}/bin"))


@pytest.mark.parametrize("text", ["", "a compiler of mine"])
def test_unknown_wish(tmp_path: Path, text: str) -> None:
    """A kernel that does not say its compiler's version takes what is there."""
    assert not find(tmp_path, text, {"gcc": DEBIAN}).mismatch


@pytest.mark.parametrize(
    "name", ["gcc;touch${IFS}EVIL", "$(touch EVIL)", "`touch EVIL`", "./evil", "TMP/evil", ".."]
)
def test_hostile_name_is_not_started(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name in a configuration is only ever the name of a program on PATH."""
    monkeypatch.chdir(tmp_path)
    evil = write_tree(tmp_path, {"evil": f"#!/bin/sh\n: > {tmp_path}/EVIL\n"}) / "evil"
    evil.chmod(0o755)
    text = name.replace("TMP", str(tmp_path))
    found = find(tmp_path, f"{text} 12.1.0", {"gcc": "gcc (GCC) 12.1.0"})
    assert found.command == "gcc"
    assert not list(tmp_path.rglob("EVIL"))
