"""Source and kernel headers to module files.

The build happens in a folder of links to the source, which is never written to. The core objects' debug
information, 160 MB of it, is dropped before linking instead of after: the same modules, less to move.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from pathlib import Path
from typing import Callable, Optional

import structlog
from attrs import frozen

from nvdriver_build.build.ask import Places
from nvdriver_build.build.fixed import MOFED, adapt, is_build_file, place_in, unknown_places
from nvdriver_build.build.jobs import JOB_MEMORY, Capacity, measure
from nvdriver_build.build.kept import Answers, open_answers
from nvdriver_build.build.log import Failure, Follower, count_steps, first_failure, tail
from nvdriver_build.commands import CommandError, Commands
from nvdriver_build.errors import BuildError, HeadersError
from nvdriver_build.files import publish, remove
from nvdriver_build.kernel import Compiler, Headers, KernelTarget
from nvdriver_build.source import Source

__all__ = [
    "JOB_MEMORY",
    "Build",
    "Capacity",
    "Progress",
    "build_modules",
    "first_failure",
    "make_flags",
    "measure",
]

BUILD_LIMIT = 3600.0
"""Seconds after which a build counts as hung."""
_STRIP_LIMIT = 120.0
_FULL = 1024 * 1024
"""Bytes below which a disk counts as full: the log that would say so may have found no space either."""

_ODD = re.compile(r"[^\w./+@-]")
"""What make, the shell or gcc (`-Wp,`, prefix map) take for more than a part of a path."""

Progress = Callable[[int, int, float], None]
"""Called with steps done, steps in total (an estimate), and seconds since the start."""

_log = structlog.get_logger()


@frozen
class Build:
    """What is to be built: `modules` by NVIDIA's names, in load order.

    `symvers` is text of Module.symvers: what other modules export, beside the kernel's. nvidia-peermem needs
    MOFED's and nvidia's (mofed.Peers.symvers).
    """

    source: Source
    headers: Headers
    target: KernelTarget
    compiler: Compiler
    modules: tuple[str, ...]
    jobs: int
    debug_info: bool = False
    symvers: Optional[str] = None


def build_modules(
    build: Build,
    work: Path,
    commands: Commands,
    log: Path,
    progress: Optional[Progress] = None,
    kept: Optional[Path] = None,
) -> tuple[Path, ...]:
    """Build in the empty folder `work`; the modules' paths. The output of make goes to `log`.

    What the compiler answers is kept as the file `kept`, for later builds; answers that lie beside it, and
    that nothing has changed since, are not asked for again. The modules are the same without.

    Raises BuildError with the first real error, HeadersError for headers that nothing can be built with; the
    whole process group of make is gone before anything is raised.
    """
    tree = work / "tree"
    _require_plain_path(work, "choose another store")
    for path in (build.headers.sources, build.headers.output):
        _require_plain_path(path, "move the kernel headers")
    _require_scripts(build.headers)
    try:
        places = Places(tree, build.headers.sources, build.headers.output)
        answers = None
        if kept:
            answers = open_answers(kept, work / "answers", places, build.source, build.compiler, commands)
        try:
            return _build(build, places, commands, log, progress, answers)
        except BuildError as error:
            if answers is None or not answers.used:
                raise
            _log.warning("built anew, without what was kept of earlier builds", why=error.message)
            remove(tree)
            return _build(build, places, commands, log, progress, None)
    except OSError as error:
        raise BuildError(
            f"cannot build in {work}: {error}", hint="is there space left, and is it writable?"
        ) from error


def _build(
    build: Build,
    places: Places,
    commands: Commands,
    log: Path,
    progress: Optional[Progress],
    answers: Optional[Answers],
) -> tuple[Path, ...]:
    _link_sources(build, places.tree, commands)
    command = build.compiler.command
    if answers is not None:
        command = answers.take(command, objects=not build.debug_info)
    _make(build, places, commands, log, progress, command)
    modules = tuple(places.tree / f"{name}.ko" for name in build.modules)
    _require(modules, log)
    if answers is not None:
        answers.keep()
    if not build.debug_info:
        _strip(modules, commands)
    return modules


def _require_plain_path(path: Path, hint: str) -> None:
    odd = "".join(sorted(set(_ODD.findall(str(path)))))
    if odd:
        raise BuildError(f"cannot build with {path}: make and the shell do not take {odd!r} in it", hint=hint)


def _require_scripts(headers: Headers) -> None:
    scripts = headers.sources / "scripts/Makefile.build"
    if not scripts.is_file():
        raise HeadersError(
            f"{scripts} is not there (in Debian's headers a link leads to it): nothing can be built",
            hint="install linux-kbuild of this version (Debian), or the whole of kernel-devel (RHEL)",
        )


def make_flags(build: Build, tree: Path) -> tuple[str, ...]:
    """The words after `make` that decide about the result, but for paths (contracts.md, The build key).

    `-g0` and the prefix map make two builds equal. Without debug information gcc need not track where in a
    macro something stands, a tenth of its time. CONFIG_DEBUG_INFO_BTF_MODULES is off since no toolkit
    has the vmlinux that .BTF needs. NVIDIA's conftest.sh (preempt_rt_sanity_check) refuses PREEMPT_RT else.
    """
    debug = "" if build.debug_info else "-g0 "
    if debug and "clang" not in build.compiler.text:
        debug += "-ftrack-macro-expansion=0 "
    excluded = [name for name in build.source.modules if name not in build.modules]
    flags = [
        f"CC={build.compiler.command}",
        f"KCFLAGS={debug}-ffile-prefix-map={tree}/=",
        "CONFIG_DEBUG_INFO_BTF_MODULES=",
        f"ARCH={build.target.arch}",
        f"NV_EXCLUDE_KERNEL_MODULES={' '.join(excluded)}",
    ]
    if build.target.flavour == "rt":
        flags.append("IGNORE_PREEMPT_RT_PRESENCE=1")
    if build.compiler.mismatch:
        flags.append("IGNORE_CC_MISMATCH=1")
    if build.symvers is not None:
        flags.append(f"KBUILD_EXTRA_SYMBOLS={_symvers(tree)}")
    return tuple(flags)


def _symvers(tree: Path) -> Path:
    """Where NVIDIA's conftest.sh looks, last of all, for what MOFED exports."""
    return place_in(tree, MOFED) / "default" / "Module.symvers"


def _link_sources(build: Build, tree: Path, commands: Commands) -> None:
    for name in build.source.names:
        link = tree / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if name in build.source.core_objects and not build.debug_info:
            _run(commands, ["strip", "--strip-debug", "-o", str(link), str(build.source.root / name)])
        elif not (is_build_file(name) and _redirected(build.source.root / name, link, tree)):
            link.symlink_to(build.source.root / name)
    if build.symvers is not None:
        publish(_symvers(tree), build.symvers)


def _redirected(file: Path, copy: Path, tree: Path) -> bool:
    """Write a copy of a build file that names fixed places, or asks too often, if it does."""
    text = file.read_bytes()
    moved = adapt(text, tree)
    for place in unknown_places(text):
        _log.warning("the driver's build reads a place outside of it", file=str(file), place=place)
    if moved != text:
        copy.write_bytes(moved)
    return moved != text


def _make(
    build: Build, places: Places, commands: Commands, log: Path, progress: Optional[Progress], compiler: str
) -> None:
    tree = places.tree
    unplaced = " ".join(f"-fmacro-prefix-map={path}/=" for path, _ in places.paths())
    argv = [
        "make",
        f"-j{build.jobs}",
        "-C",
        str(tree),
        f"SYSSRC={build.headers.sources}",
        f"SYSOUT={build.headers.output}",
        f"KCPPFLAGS={unplaced}",  # Kbuild itself keeps paths of headers out of __FILE__ up to 6.13 only
        *(f"CC={compiler}" if flag.startswith("CC=") else flag for flag in make_flags(build, tree)),
        "modules",
    ]
    if build.target.flavour == "rt":
        _log.info("PREEMPT_RT: NVIDIA does not support it; built with IGNORE_PREEMPT_RT_PRESENCE=1")
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"")
    try:
        finished = commands.run(
            argv,
            timeout=BUILD_LIMIT,
            cwd=tree,
            env={"TMPDIR": str(tree.parent)},
            log=log,
            tick=_ticker(build, log, progress),
        )
    except CommandError as error:
        raise _failed(build, tree, log, str(error), f"{error.hint}; the whole log: {log}") from error
    if not finished.ok:
        raise _failed(build, tree, log, f"make ended with {finished.exit_code}: {tail(log, 3)}", None)


def _ticker(build: Build, log: Path, progress: Optional[Progress]) -> Optional[Callable[[], None]]:
    if progress is None:
        return None
    follower, started = Follower(log), time.monotonic()
    total = count_steps(build.source.root, build.modules)

    def tick() -> None:
        progress(min(follower.update(), total), total, time.monotonic() - started)

    return tick


def _failed(build: Build, tree: Path, log: Path, what: str, hint: Optional[str]) -> BuildError:
    """The error for a build; files are named as in the source, since the folder of links is about to go."""
    failure: Optional[Failure] = None
    with contextlib.suppress(OSError):
        failure = first_failure(log)
    cause = str(failure or what).replace(f"{tree}/", "")
    kernel, compiler = build.target.release, build.compiler.text
    return BuildError(
        f"driver {build.source.version} ({build.source.kind}) for kernel {kernel} does not build: {cause}",
        hint=f"{hint or _hint(build, cause, log)} (compiler: {compiler})",
    )


def _hint(build: Build, cause: str, log: Path) -> str:
    if "No space left" in cause or shutil.disk_usage(log.parent).free < _FULL:
        return f"no space is left where the build runs: free some; the whole log: {log}"
    if "Killed signal" in cause:
        return f"out of memory: give more, or allow fewer jobs than {build.jobs}; the whole log: {log}"
    return f"this driver may be too old for this kernel: take a newer one; the whole log: {log}"


def _require(modules: tuple[Path, ...], log: Path) -> None:
    missing = [path.name for path in modules if not path.is_file()]
    if missing:
        raise BuildError(f"make succeeded, but left no {', '.join(missing)}", hint=f"the whole log: {log}")


def _strip(modules: tuple[Path, ...], commands: Commands) -> None:
    """As distributions do: --strip-debug keeps the symbols that the kernel's kallsyms shows."""
    for module in modules:
        _run(commands, ["strip", "--strip-debug", str(module)])


def _run(commands: Commands, argv: list[str]) -> None:
    try:
        finished = commands.run(argv, timeout=_STRIP_LIMIT)
    except CommandError as error:
        raise BuildError(str(error), hint=error.hint) from error
    if not finished.ok:
        raise BuildError(f"{argv[0]} failed: {finished.stderr.strip()}", hint="is there space left?")


def copy_modules(modules: tuple[Path, ...], place: Path) -> None:
    """Put built modules into a set's folder."""
    place.mkdir(parents=True, exist_ok=True)
    for module in modules:
        shutil.copyfile(module, place / module.name)
