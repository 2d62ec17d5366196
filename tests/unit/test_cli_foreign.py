"""What is not ours at the edge: names that the system refuses, and texts that would steer a terminal."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any, Callable, List

import pytest
import structlog
from cli_runs import build_words, cli, document, environment
from elf_files import module
from fake_toolchain import FakeToolchain, driver_tree
from trees import write_tree

from nvdriver_build.cli import logs, printable
from nvdriver_build.commands import SystemCommands
from nvdriver_build.errors import HeadersError, SourceError
from nvdriver_build.kernel import find_headers
from nvdriver_build.source import AUTO, open_source

LONG = "x" * 300
STEERING = "\x1b]0;owned\x07\x1b[2J"


@pytest.fixture
def rig(tmp_path: Path) -> FakeToolchain:
    return FakeToolchain.make(tmp_path)


NAMED: List[Any] = [
    (2, lambda rig: build_words(rig, "--source", LONG)),
    (10, lambda rig: build_words(rig, "--headers", LONG)),
    (17, lambda rig: build_words(rig, "--output", LONG)),
    (10, lambda rig: ["verify", rig.root / "modules", "--headers", LONG]),
    (2, lambda rig: ["verify", LONG, "--headers", rig.headers]),
    (2, lambda rig: ["inspect", LONG]),
    (2, lambda rig: ["support-bundle", "--output", LONG]),
]


@pytest.mark.parametrize(("code", "words"), NAMED)
def test_a_name_that_is_too_long_is_no_bug(
    rig: FakeToolchain, code: int, words: Callable[[FakeToolchain], List[object]]
) -> None:
    """The system's own word for a name that cannot be is told with the name, as the user's mistake."""
    done = cli(rig.root, *words(rig), path=rig.path)
    # Where an output cannot be is found by what cannot be looked at (2), or, since Python 3.12, written (17).
    assert done.returncode in {code, 2 if code == 17 else code}
    assert "File name too long" in done.stderr
    assert LONG in done.stderr
    assert "bug" not in done.stderr


def test_a_long_name_does_not_end_doctor(rig: FakeToolchain) -> None:
    """`doctor` tells it in the line of the headers, and goes on."""
    for done in (
        cli(rig.root, "doctor", "--headers", LONG, "--json"),
        cli(rig.root, "doctor", "--json", NVDRIVER_HEADERS=f"/{LONG}"),
    ):
        headers = next(check for check in document(done)["checks"] if check["name"] == "headers")
        assert (headers["ok"], headers["code"]) == (False, 10)
        assert "File name too long" in headers["detail"]


def _as_nobody(question: Callable[[], bool]) -> bool:
    """The answer that a user without rights gets."""
    child = os.fork()
    if child == 0:
        try:
            os.setgid(65534)
            os.setuid(65534)
            os._exit(0 if question() else 1)
        finally:
            os._exit(2)
    return os.waitpid(child, 0)[1] == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_what_a_user_may_not_read_is_no_bug(tmp_path: Path) -> None:
    """Headers in a folder that cannot be searched are told by name."""
    (tmp_path / "shut").mkdir(mode=0o700)

    def told() -> bool:
        with pytest.raises(HeadersError, match="shut/headers cannot be read: Permission denied"):
            find_headers(tmp_path / "shut/headers")
        return True

    assert _as_nobody(told)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_folder_of_path_that_cannot_be_searched_is_passed_over(tmp_path: Path) -> None:
    """As a shell passes over it: the program may be in a later one."""
    (tmp_path / "shut").mkdir(mode=0o700)
    commands = SystemCommands(f"{tmp_path}/shut:/usr/bin")
    assert _as_nobody(lambda: commands.find("env") == "/usr/bin/env")


def test_a_file_that_may_not_be_so_large_is_told(tmp_path: Path) -> None:
    """EFBIG while unpacking names the archive: its source cannot be had, and that is no bug."""
    write_tree(tmp_path / "tree", {**driver_tree(), "nvidia/nv-kernel.o_binary": "x" * 100_000})
    archive = tmp_path / "source.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(tmp_path / "tree", "nvidia-source")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(SourceError, match=r"source\.tar cannot be unpacked: File too large"):
            open_source(archive, AUTO, tmp_path / "work", SystemCommands())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (STEERING, r"\x1b]0;owned\x07\x1b[2J"),
        ("a\nhint: b\r", r"a\nhint: b\r"),
        ("\u202eabc\x9b", r"\u202eabc\x9b"),
        ("\udcff", r"\udcff"),
        ("Grüße, 設定", "Grüße, 設定"),
    ],
)
def test_what_does_not_print_is_escaped(text: str, shown: str) -> None:
    """Control characters, marks of direction and bytes that are no text become escapes; words stay."""
    assert printable(text) == shown


def test_a_module_cannot_steer_the_terminal(rig: FakeToolchain) -> None:
    """Strings of a module and names of files are printed escaped, in a result as in an error."""
    odd = rig.root / f"odd{STEERING}.ko"
    odd.write_bytes(module((f"version=1{STEERING}", "license=GPL", "vermagic=x"), {}).build())
    bad = rig.root / f"bad{STEERING}.ko"
    bad.write_bytes(b"rubbish")
    for words in (["inspect", odd], ["verify", odd, "--headers", rig.headers], ["inspect", bad]):
        done = cli(rig.root, *words)
        assert "\x1b" not in done.stdout + done.stderr
        assert "\x07" not in done.stdout + done.stderr
        assert r"\x1b]0;owned" in done.stdout + done.stderr or words[0] == "verify"


def test_lines_of_a_message_cannot_be_taken_for_ours(rig: FakeToolchain) -> None:
    """The last lines of a program that failed are set in, escaped."""
    rig.program("make", rf"printf 'one\nhint: rm -rf /\n{STEERING}\n' >&2; exit 2".replace("\x1b", r"\033"))
    done = cli(rig.root, *build_words(rig), path=rig.path)
    assert done.returncode == 12
    assert "\n       hint: rm -rf /\n" in done.stderr
    assert "\x1b]0" not in done.stderr


def test_a_log_line_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever is logged is escaped on a console, and stays one line."""
    before = structlog.get_config()
    logs.configure("console", 20)
    try:
        structlog.get_logger().warning(f"one\n{STEERING}", by=STEERING, number=7)
    finally:
        structlog.configure(**before)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.count(r"\x1b]0;owned") == 2 and "number=7" in line
    assert line.isprintable()


def test_a_wrong_word_cannot_steer_the_terminal(tmp_path: Path) -> None:
    """A shell expands `*` to names that others gave; what click says of them is escaped, too."""
    for words in ([f"x{STEERING}"], [f"--{STEERING}"], ["status", STEERING], ["probe", STEERING]):
        done = cli(tmp_path, *words)
        assert (done.returncode, "\x1b" in done.stderr, r"\x1b" in done.stderr) == (2, False, True)


def test_a_current_folder_that_is_gone_is_no_bug(rig: FakeToolchain) -> None:
    """Somebody removed the folder that the shell stands in: told as that, as the user's to mend."""
    words = " ".join(map(str, [sys.executable, "-m", "nvdriver_build", *build_words(rig)]))
    gone = rig.root / "gone"
    gone.mkdir()
    done = subprocess.run(
        ["sh", "-c", f"rmdir {gone} && exec {words}"], env=environment(rig.root, rig.path),
        capture_output=True, text=True, check=False, timeout=60, cwd=gone,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr == (
        "error: the current folder does not exist any more\nhint: change into one that does\n"
    )
