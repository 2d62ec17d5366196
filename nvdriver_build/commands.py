"""The only door to other programs.

A program gets a pinned environment (PATH as handed in, LC_ALL=C, nothing else of ours), no terminal, an
empty standard input, its output in files, and a process group of its own, so that it and all its
children can be ended together. It decides nothing: what an exit code means is the caller's to say.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import time
from pathlib import Path
from typing import IO, Any, Callable, Mapping, Optional, Protocol, Sequence

from attrs import frozen

from nvdriver_build.errors import NvdriverError

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
OUTPUT_LIMIT = 16 * 1024 * 1024
"""Bytes of captured output that are kept; a program that writes more is cut there."""
_ALIKE = 0.1
"""Seconds in which a signal for all processes of a container reaches us, too."""
GRACE = 0.7
"""Seconds between SIGTERM and SIGKILL of a process group."""

_PR_SET_PDEATHSIG = 1
"""Linux include/uapi/linux/prctl.h."""

Tick = Callable[[], None]


@frozen
class Finished:
    """A program that ran to its end: `seconds` is wall time."""

    argv: tuple[str, ...]
    exit_code: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether the exit code is 0."""
        return self.exit_code == 0

    @property
    def output(self) -> str:
        """Standard output and standard error, one after the other."""
        return self.stdout + self.stderr


class CommandError(NvdriverError):
    """A program that could not be started, was killed, or ran out of time.

    `cause` is one of `not-found`, `cannot-start`, `signal` and `timeout`.
    """

    def __init__(self, message: str, *, cause: str, hint: Optional[str] = None) -> None:
        super().__init__(message, hint=hint)
        self.cause = cause


class Commands(Protocol):
    """Starts programs. Tests hand in programs of their own by another PATH."""

    @property
    def check(self) -> Tick:
        """To be called several times a second in long work: raises Stopped once it is time to end."""

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        cwd: Optional[Path] = None,
        env: Optional[Mapping[str, str]] = None,
        log: Optional[Path] = None,
        tick: Optional[Tick] = None,
    ) -> Finished:
        """Run `argv` to its end, at most `timeout` seconds; raise CommandError where there is no exit code.

        With `log`, both outputs go to that file and are not returned. `tick` is called about four
        times a second meanwhile; whatever it raises ends the program's whole process group.
        """

    def find(self, program: str) -> Optional[str]:
        """The path of a program, or None."""


@frozen
class SystemCommands:
    """The programs of this machine, found by `path`.

    `check` is called again and again while a program runs; what it raises (Stopped) ends the program.
    """

    path: str = DEFAULT_PATH
    check: Tick = lambda: None

    def find(self, program: str) -> Optional[str]:
        """The path of a program, or None. A name with a slash is looked up as it is.

        What is relative on PATH, the empty word too, is passed over: it would mean the current folder.
        """
        folders = [Path(folder) for folder in self.path.split(":") if folder.startswith("/")]
        for candidate in [Path(program)] if "/" in program else [folder / program for folder in folders]:
            if os.access(candidate, os.X_OK) and candidate.is_file():  # is_file alone may raise
                return str(candidate)
        return None

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        cwd: Optional[Path] = None,
        env: Optional[Mapping[str, str]] = None,
        log: Optional[Path] = None,
        tick: Optional[Tick] = None,
    ) -> Finished:
        """See `Commands.run`."""
        program = self.find(argv[0])
        if program is None:
            raise CommandError(
                f"{argv[0]}: no such program on PATH ({self.path})",
                cause="not-found",
                hint=f"install the package that holds {Path(argv[0]).name}",
            )
        environment = {"PATH": self.path, "LC_ALL": "C", "LANG": "C", **(env or {})}
        started = time.monotonic()
        with _outputs(log) as (out, err):
            process = self._start(program, argv, environment, cwd, out, err)
            exit_code = _wait(process, argv, started + timeout, timeout, (self.check, tick or self.check))
            stdout, stderr = ("", "") if log else (_text(out), _text(err))
        return Finished(tuple(argv), exit_code, stdout, stderr, time.monotonic() - started)

    def _start(
        self,
        program: str,
        argv: Sequence[str],
        environment: Mapping[str, str],
        cwd: Optional[Path],
        out: IO[bytes],
        err: IO[bytes],
    ) -> Any:
        import sh

        options: dict[str, Any] = {
            "_env": dict(environment),
            "_out": out,
            "_err": err,
            "_cwd": str(cwd) if cwd else None,
            "_bg": True,
            "_bg_exc": False,
            "_new_group": True,
            "_new_session": False,
            "_tty_out": False,
            "_return_cmd": True,
            "_preexec_fn": _dies_with_us(),
        }
        with Path(os.devnull).open("rb") as nothing:
            try:
                return sh.Command(program)(*argv[1:], _in=nothing, **options)
            except (OSError, sh.ForkException, sh.CommandNotFound) as error:
                why = str(error).strip().rpartition("\n")[2]  # a ForkException is the child's traceback
                raise CommandError(
                    f"{pasteable(argv)}: cannot start: {why}",
                    cause="cannot-start",
                    hint="is it for this machine's architecture, and are memory and processes left?",
                ) from error


def _dies_with_us() -> Callable[[], None]:
    """For a new process: SIGTERM once its parent is gone. A killed build leaves no stray compilers."""
    import ctypes

    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def tie() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it went before it could be told
            os.kill(os.getpid(), signal.SIGTERM)

    return tie


def pasteable(argv: Sequence[str]) -> str:
    """The command line as a person can paste it into a shell."""
    return " ".join(shlex.quote(word) for word in argv)


@contextlib.contextmanager
def _outputs(log: Optional[Path]) -> Any:
    if log is not None:
        with log.open("ab") as file:
            yield file, file
        return
    with _memory_file("stdout") as out, _memory_file("stderr") as err:
        yield out, err


def _memory_file(name: str) -> IO[bytes]:
    """A file that needs no disk: a driver can be unloaded where no space is left."""
    return os.fdopen(os.memfd_create(name), "w+b")


def _wait(process: Any, argv: Sequence[str], deadline: float, timeout: float, ticks: Sequence[Tick]) -> int:
    pause = 0.005
    try:
        while process.is_alive():
            if time.monotonic() > deadline:
                raise CommandError(
                    f"{pasteable(argv)}: not done after {timeout:g} s, ended",
                    cause="timeout",
                    hint="the machine is very busy, or what it waits for hangs: `dmesg` may say what",
                )
            for tick in ticks:
                tick()
            time.sleep(pause)
            pause = min(pause * 1.5, 0.2)
    except BaseException:
        end_group(process.pid)
        raise
    code = int(process.process.wait())  # the command's own wait() raises, KeyError for some signals
    if code:  # one signal may have been for all of us: so ends a container that shares the host's processes
        time.sleep(_ALIKE if code < 0 else 0)
        for tick in ticks:
            tick()
    if code < 0:
        end_group(process.pid)  # its children may live on
        raise CommandError(
            f"{pasteable(argv)}: killed by {_signal_name(-code)}", cause="signal", hint=_signal_hint(-code)
        )
    return code


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _signal_hint(number: int) -> str:
    if number == signal.SIGKILL:
        return "often the out-of-memory killer: give more memory, or allow fewer jobs"
    return "somebody ended it, or it crashed: try again; `dmesg` tells of a crash"


def end_group(group: int, grace: float = GRACE) -> None:
    """End a process group: SIGTERM, then SIGKILL after `grace` seconds. Returns when it is gone."""
    for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, grace)):
        try:
            os.killpg(group, number)
        except ProcessLookupError:
            return
        until = time.monotonic() + patience
        while time.monotonic() < until:
            if not _group_alive(group):
                return
            time.sleep(0.01)


def _group_alive(group: int) -> bool:
    """Whether any process of the group still runs; a zombie that nobody has reaped yet does not."""
    import psutil

    return any(_group_of(pid) == group and _runs(pid) for pid in psutil.pids())


def _runs(pid: int) -> bool:
    import psutil

    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _group_of(pid: int) -> Optional[int]:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(OUTPUT_LIMIT).decode("utf-8", "replace")
