"""Other programs: what they get, what they give back, and how each failure is told."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Callable, Dict, List

import pytest
from best_of_three import best_of_three, in_time
from processes import living, nap

from nvdriver_build.commands import CommandError, SystemCommands, end_group, pasteable
from nvdriver_build.errors import Stopped

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
NAP = nap(4711)
TELL = """
import json, os, sys
print(json.dumps([dict(os.environ), sys.argv, os.getcwd(), os.listdir("/proc/self/fd")]))
"""


@pytest.fixture
def programs(tmp_path: Path) -> Callable[[str, str], SystemCommands]:
    """Give `programs(name, script)`: commands whose PATH begins with a folder that has this program."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def make(name: str, script: str) -> SystemCommands:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
        return SystemCommands(f"{folder}:{PATH}")

    return make


def test_outputs_and_exit_code_come_back(programs: Callable[[str, str], SystemCommands]) -> None:
    """Both outputs are apart, an exit code is no error, bytes that are no text are told as such."""
    finished = programs("talk", "echo out; echo err >&2; printf '\\377' >&2; exit 7").run(
        ["talk"], timeout=10
    )
    assert (finished.exit_code, finished.ok) == (7, False)
    assert (finished.stdout, finished.stderr) == ("out\n", "err\n\ufffd")
    assert finished.output == "out\nerr\n\ufffd"
    assert 0 < finished.seconds < 10
    assert SystemCommands(PATH).run(["true"], timeout=10).ok


def test_environment_is_pinned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A program gets PATH as handed in, the C locale and what the caller names; nothing of ours leaks."""
    for name in ("NVDRIVER_SECRET", "LD_PRELOAD_OF_OURS", "MAKEFLAGS", "LANG", "LC_ALL", "PYTHONPATH"):
        monkeypatch.setenv(name, "de_DE.UTF-8")
    commands = SystemCommands(PATH)
    finished = commands.run(
        [sys.executable, "-c", TELL, "a b", "$(x)", "*"], timeout=20, cwd=tmp_path, env={"TMPDIR": "/t"}
    )
    environment, argv, folder, descriptors = json.loads(finished.stdout)
    assert environment == {
        "PATH": PATH,
        "LC_ALL": "C",
        "LANG": "C",
        "TMPDIR": "/t",
        **_added_by_python(environment),
    }
    assert argv[1:] == ["a b", "$(x)", "*"]
    assert folder == str(tmp_path)
    assert len(descriptors) == 4  # three, and that of the listing


def _added_by_python(environment: Dict[str, str]) -> Dict[str, str]:
    return {name: value for name, value in environment.items() if name == "LC_CTYPE"}


def test_open_files_do_not_leak(tmp_path: Path) -> None:
    """Not even a descriptor that was marked as inheritable reaches the program."""
    with (tmp_path / "secret").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        finished = SystemCommands(PATH).run(["ls", "-l", "/proc/self/fd"], timeout=10)
    assert "secret" not in finished.stdout


def test_no_terminal_and_no_input() -> None:
    """Standard input is empty; no output is a terminal."""
    script = "read line && echo got; [ -t 0 ] || [ -t 1 ] || [ -t 2 ] || echo none"
    assert SystemCommands(PATH).run(["sh", "-c", script], timeout=10).stdout == "none\n"


def test_much_output_blocks_nobody() -> None:
    """Megabytes on both outputs come back whole."""
    script = "for i in 0 1 2 3; do head -c 1000000 /dev/zero; head -c 1000000 /dev/zero >&2; done"
    finished = SystemCommands(PATH).run(["sh", "-c", script], timeout=30)
    assert (len(finished.stdout), len(finished.stderr)) == (4_000_000, 4_000_000)


def test_output_goes_to_the_log(tmp_path: Path) -> None:
    """With `log` both outputs are appended there, in their order, and not returned."""
    log = tmp_path / "log"
    log.write_text("before\n")
    finished = SystemCommands(PATH).run(["sh", "-c", "echo a; echo b >&2; echo c"], timeout=10, log=log)
    assert (log.read_text(), finished.output) == ("before\na\nb\nc\n", "")


def test_no_space_is_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Outputs are caught where no temporary file can be made: a driver must be unloadable on a full disk."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nothing"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nothing"))
    assert SystemCommands(PATH).run(["echo", "fine"], timeout=10).stdout == "fine\n"


def test_not_found_names_program_and_path() -> None:
    """A program that is nowhere on PATH is told with PATH and a hint."""
    with pytest.raises(CommandError, match=r"^nvidia-no-such: no such program on PATH \(/usr/sbin") as caught:
        SystemCommands(PATH).run(["nvidia-no-such"], timeout=10)
    assert caught.value.cause == "not-found"
    assert caught.value.hint == "install the package that holds nvidia-no-such"


def test_path_never_means_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty and relative words on PATH are passed over; so are folders and files that cannot be executed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil").write_text("#!/bin/sh\n")
    (tmp_path / "evil").chmod(0o755)
    (tmp_path / "sub" / "plain").mkdir(parents=True)
    (tmp_path / "sub" / "evil").write_text("no program")
    for path in ("", ":", f":{PATH}", f"{PATH}:", f".:{PATH}", f"../{tmp_path.name}", str(tmp_path / "sub")):
        assert SystemCommands(path).find("evil") is None
        assert SystemCommands(path).find("plain") is None
    assert SystemCommands(f"{tmp_path}:{PATH}").find("evil") == str(tmp_path / "evil")


def test_first_on_path_wins(programs: Callable[[str, str], SystemCommands], tmp_path: Path) -> None:
    """The PATH that was handed in decides, not the one of this process."""
    commands = programs("make", "echo mine")
    assert commands.find("make") == str(tmp_path / "bin" / "make")
    assert commands.run(["make"], timeout=10).stdout == "mine\n"


@pytest.mark.parametrize(
    ("script", "argv", "why"),
    [
        (b"no shebang", ["bad"], "Exec format error"),
        (b"#!/no/such/interpreter\n", ["bad"], "No such file"),
        (b"#!/bin/sh\n", ["bad", "a\0b"], "null byte"),
        (b"#!/bin/sh\n", ["bad", "\udcff"], "surrogates not allowed"),
    ],
)
def test_what_cannot_start_is_told_in_a_line(
    tmp_path: Path, script: bytes, argv: List[str], why: str
) -> None:
    """A program that the kernel refuses to start is a CommandError of one line, without a traceback."""
    (tmp_path / "bad").write_bytes(script)
    (tmp_path / "bad").chmod(0o755)
    with pytest.raises(CommandError, match=why) as caught:
        SystemCommands(f"{tmp_path}:{PATH}").run(argv, timeout=10)
    assert caught.value.cause == "cannot-start"
    assert "\n" not in caught.value.message
    assert "Traceback" not in caught.value.message


def test_missing_folder_is_told(tmp_path: Path) -> None:
    """A working folder that is not there is a CommandError."""
    with pytest.raises(CommandError, match="nothing") as caught:
        SystemCommands(PATH).run(["true"], timeout=10, cwd=tmp_path / "nothing")
    assert caught.value.cause == "cannot-start"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGRTMIN + 1])
def test_killed_is_told_by_signal(number: int) -> None:
    """A program that a signal ended is told by the signal; SIGKILL with the likely reason."""
    with pytest.raises(CommandError, match=r"^sh -c 'kill -\d+ \$\$': killed by ") as caught:
        SystemCommands(PATH).run(["sh", "-c", f"kill -{int(number)} $$"], timeout=10)
    assert caught.value.cause == "signal"
    assert ("out-of-memory" in str(caught.value.hint)) == (number == signal.SIGKILL)
    assert caught.value.hint


def test_killed_program_takes_its_children_along() -> None:
    """Where make is killed (by the memory killer, say), the compilers that it started are ended as well."""
    with pytest.raises(CommandError, match="killed by SIGKILL"):
        SystemCommands(PATH).run(["sh", "-c", f"sleep {NAP} & sleep {NAP} & kill -9 $$"], timeout=10)
    assert living(NAP) == []


@best_of_three
def test_timeout_ends_the_whole_group() -> None:
    """A program that takes too long is ended with its children, even those that ignore SIGTERM."""
    script = f"trap '' TERM; sleep {NAP} & (trap '' TERM; while :; do sleep 0.1; done) & wait; wait"
    started = time.monotonic()
    with pytest.raises(CommandError, match=r"not done after 0\.5 s, ended") as caught:
        SystemCommands(PATH).run(["sh", "-c", f": {NAP}; {script}"], timeout=0.5)
    seconds = time.monotonic() - started
    assert caught.value.cause == "timeout"
    assert living(NAP) == []
    in_time(seconds, 0.5 + 2)


@pytest.mark.parametrize("polite", [True, False])
@best_of_three
def test_a_signal_ends_the_whole_group_within_2_s(polite: bool) -> None:
    """What `check` raises, since a signal came, comes through once the program and its children are gone."""
    calls: List[float] = []

    def check() -> None:
        calls.append(time.monotonic())
        if len(calls) > 5:
            raise Stopped(signal.SIGTERM)

    trap = "" if polite else "trap '' TERM; "
    script = f"{trap}(sh -c '{trap} sleep {NAP}; sleep {NAP}') & sleep {NAP}; sleep {NAP}"
    with pytest.raises(Stopped):
        SystemCommands(PATH, check).run(["sh", "-c", script], timeout=30)
    seconds = time.monotonic() - calls[-1]
    assert living(NAP) == []
    in_time(seconds, 2)


@pytest.mark.parametrize("end", ["kill -TERM $$", "exit 2"])
def test_a_signal_for_all_of_us_is_ours(end: str, tmp_path: Path) -> None:
    """Where a program ends by the signal that we got, too, that is no failure of the program."""
    got = tmp_path / "got"

    def check() -> None:
        if got.exists():
            raise Stopped(signal.SIGTERM)

    commands = SystemCommands(PATH, check)
    for _ in range(5):
        got.unlink(missing_ok=True)
        with pytest.raises(Stopped):
            commands.run(["sh", "-c", f"touch {got}; {end}"], timeout=10)
    got.unlink()
    with pytest.raises(CommandError, match="killed by SIGTERM"):
        commands.run(["sh", "-c", "kill -TERM $$"], timeout=10)


def test_tick_is_called_and_may_end_it() -> None:
    """`tick` is called several times a second; any error of it ends the program."""
    calls: List[float] = []

    def tick() -> None:
        calls.append(time.monotonic())
        if time.monotonic() - calls[0] > 2:
            raise OSError("log is gone")

    with pytest.raises(OSError, match="log is gone"):
        SystemCommands(PATH).run(["sleep", NAP], timeout=30, tick=tick)
    assert len(calls) >= 5
    assert living(NAP) == []


def test_a_quick_program_returns_quickly() -> None:
    """A program that takes no time costs a few milliseconds: many are run on the way to ready."""
    commands = SystemCommands(PATH)
    assert any(commands.run(["true"], timeout=10).seconds < 0.1 for _ in range(50))


def test_ending_what_is_gone_is_fine() -> None:
    """A group that has ended already is no error."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        os._exit(0)
    os.waitpid(child, 0)
    end_group(child)


def test_pasteable_quotes() -> None:
    """A command line is told so that a person can paste it."""
    assert pasteable(["make", "CC=a b", "$x"]) == "make 'CC=a b' '$x'"
