"""How make is called and what becomes of its end, with a make and a strip that are shell scripts."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import pytest
import structlog
from attrs import evolve
from kernel_trees import CONFIG, RELEASE, RHEL_COMPILER, build_tree
from sample_driver import CORE_OBJECTS, MODULES, make_sample_driver
from trees import write_tree

import nvdriver_build.build as build_room
from nvdriver_build.build import Build, build_modules, make_flags
from nvdriver_build.build.fixed import redirect, wait_by_name
from nvdriver_build.commands import SystemCommands
from nvdriver_build.errors import BuildError, HeadersError
from nvdriver_build.kernel import Compiler, find_headers, target_from_headers
from nvdriver_build.source import OPEN, open_source

MAKE = """#!/bin/sh
for word in "$@"; do printf '%s\\n' "$word"; done > {folder}/argv
env > {folder}/env
while [ "$1" != -C ]; do shift; done
cd "$2"
"""
STRIP = """#!/bin/sh
echo "$@" >> {folder}/strip
[ "$2" != -o ] || echo stripped > "$3"
"""
ALL_BUILT = "for name in nvidia nvidia-uvm nvidia-modeset nvidia-drm; do echo module > $name.ko; done\n"
FOUR = MODULES[:4]
OFA = "/usr/src/ofa_kernel"
NAMING_MOFED = ("conftest.sh", "nvidia-peermem/nvidia-peermem.Kbuild")
OTHER = Compiler("gcc-12", "gcc 12.2.0", same=False, mismatch=True)


class Bench:
    """A build of the sample driver in `folder`, with programs that record how they were called."""

    def __init__(self, folder: Path, source: Path) -> None:
        self.folder, self.work, self.log = folder, folder / "work", folder / "logs" / "build.log"
        self.work.mkdir(parents=True)
        self.programs(ALL_BUILT)
        self.commands = SystemCommands(f"{folder}/bin:/usr/bin:/bin")
        headers = find_headers(write_tree(folder / "headers", build_tree()))
        self.build = Build(
            source=open_source(source, OPEN, folder, self.commands),
            headers=headers,
            target=target_from_headers(headers),
            compiler=Compiler("gcc", RHEL_COMPILER, same=True, mismatch=False),
            modules=FOUR,
            jobs=3,
        )

    def programs(self, make: str, strip: str = "") -> None:
        """Let make end with these lines, which run in the folder that -C names."""
        texts = {"make": MAKE + make, "strip": STRIP + strip}
        for name, text in texts.items():
            write_tree(self.folder / "bin", {name: text.replace("{folder}", str(self.folder))})
            (self.folder / "bin" / name).chmod(0o755)

    def run(self, progress: Optional[Callable[[int, int, float], None]] = None) -> Tuple[Path, ...]:
        return build_modules(self.build, self.work, self.commands, self.log, progress)

    def error(self) -> BuildError:
        with pytest.raises(BuildError) as caught:
            self.run()
        return caught.value

    @property
    def argv(self) -> List[str]:
        return (self.folder / "argv").read_text().splitlines()


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sample_driver(tmp_path_factory.mktemp("sample") / "driver", kind=OPEN)


@pytest.fixture
def bench(sample: Path, tmp_path: Path) -> Bench:
    return Bench(tmp_path, sample)


def files(root: Path) -> Dict[str, Tuple[bytes, int]]:
    """Every file with its bytes and its time of change."""
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(root.rglob("*")) if p.is_file()}


def test_command_line(bench: Bench) -> None:
    """make gets NVIDIA's variables, in the folder of links, and nothing of a shell."""
    modules = bench.run()
    tree = bench.work / "tree"
    headers = bench.build.headers
    placed = " ".join(f"-fmacro-prefix-map={path}/=" for path in (*[headers.output] * 4, tree, tree))
    assert modules == tuple(tree / f"{name}.ko" for name in FOUR)
    assert bench.argv == [
        "-j3",
        "-C",
        str(tree),
        f"SYSSRC={bench.build.headers.sources}",
        f"SYSOUT={bench.build.headers.output}",
        f"KCPPFLAGS={placed}",
        "CC=gcc",
        f"KCFLAGS=-g0 -ftrack-macro-expansion=0 -ffile-prefix-map={tree}/=",
        "CONFIG_DEBUG_INFO_BTF_MODULES=",
        "ARCH=x86_64",
        "NV_EXCLUDE_KERNEL_MODULES=nvidia-peermem",
        "modules",
    ]


def test_environment_is_pinned(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of our environment reaches make, where a variable could change the result."""
    monkeypatch.setenv("KCFLAGS", "-DEVIL")
    monkeypatch.setenv("MAKEFLAGS", "-n")
    monkeypatch.setenv("IGNORE_CC_MISMATCH", "1")
    bench.run()
    names = {line.partition("=")[0] for line in (bench.folder / "env").read_text().splitlines()}
    assert names <= {"PATH", "LC_ALL", "LANG", "TMPDIR", "PWD", "OLDPWD", "SHLVL", "_"}
    assert f"TMPDIR={bench.work}" in (bench.folder / "env").read_text().splitlines()


@pytest.mark.parametrize(
    ("change", "more", "less"),
    [
        ({"debug_info": True}, [], ["-g0", "-ftrack"]),
        ({"modules": MODULES[2:]}, ["NV_EXCLUDE_KERNEL_MODULES=nvidia nvidia-uvm"], []),
        ({"modules": MODULES}, ["NV_EXCLUDE_KERNEL_MODULES="], []),
        ({"compiler": OTHER}, ["CC=gcc-12", "IGNORE_CC_MISMATCH=1"], []),
    ],
)  # fmt: skip
def test_flags(bench: Bench, change: Dict[str, Any], more: List[str], less: List[str]) -> None:
    """What was asked for is said to make; `-g0` and refusals that hold are not."""
    flags = make_flags(evolve(bench.build, **change), Path("/t"))
    assert set(more) <= set(flags)
    assert not [flag for flag in flags for word in less if word in flag]
    assert "IGNORE_PREEMPT_RT_PRESENCE=1" not in flags
    assert ("IGNORE_CC_MISMATCH=1" in flags) == ("IGNORE_CC_MISMATCH=1" in more)


def test_preempt_rt_is_asked_for(bench: Bench) -> None:
    """NVIDIA refuses PREEMPT_RT kernels unless its documented switch is given."""
    tree = write_tree(bench.folder / "rt", build_tree(config={**CONFIG, "PREEMPT_RT": "y"}))
    target = target_from_headers(find_headers(tree))
    assert "IGNORE_PREEMPT_RT_PRESENCE=1" in make_flags(evolve(bench.build, target=target), Path("/t"))


def test_source_is_linked_not_written(bench: Bench, sample: Path) -> None:
    """make sees every file of the source as a link; core objects are copies without debug information."""
    before = files(sample)
    bench.programs("echo built > nvidia/new.o\n" + ALL_BUILT)
    bench.run()
    tree = bench.work / "tree"
    for name in bench.build.source.names:
        if name in CORE_OBJECTS:
            assert (tree / name).read_text() == "stripped\n"
        elif name in NAMING_MOFED:
            text = (bench.build.source.root / name).read_text()
            assert (tree / name).read_text() == text.replace(OFA, f"{tree}/outside{OFA}")
        elif name == "Kbuild":  # what waits for conftest, waits by a name
            assert (tree / name).read_bytes() == wait_by_name((bench.build.source.root / name).read_bytes())
        else:
            assert (tree / name).is_symlink()
            assert (tree / name).resolve() == bench.build.source.root / name
    assert files(sample) == before
    strips = (bench.folder / "strip").read_text().splitlines()
    assert [line.split()[0] for line in strips] == ["--strip-debug"] * (len(CORE_OBJECTS) + len(FOUR))
    assert not [line for line in strips if line.split()[-1].startswith(str(sample)) and "-o" not in line]


def test_what_other_modules_export(bench: Bench) -> None:
    """nvidia-peermem's build finds MOFED's exports where conftest.sh looks, below its own folder."""
    bench.build = evolve(bench.build, modules=("nvidia-peermem",), symvers="rows\n")
    bench.programs("echo module > nvidia-peermem.ko\n")
    bench.run()
    symvers = bench.work / f"tree/outside{OFA}/default/Module.symvers"
    assert symvers.read_text() == "rows\n"
    assert f"KBUILD_EXTRA_SYMBOLS={symvers}" in bench.argv
    assert "NV_EXCLUDE_KERNEL_MODULES=nvidia nvidia-uvm nvidia-modeset nvidia-drm" in bench.argv


def test_nothing_of_mofed_in_other_builds(bench: Bench) -> None:
    """Where a build looks for MOFED without being given one, nothing is."""
    bench.run()
    assert not (bench.work / "tree/outside").exists()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("OTHER := /usr/src/other_kernel/$(ARCH)", "/usr/src/other_kernel/$(ARCH)"),
        ("OTHER := $(shell ls /var/lib/dkms/other)", "/var/lib/dkms/other"),
        ("# as in /usr/src/other", None),
        ("OTHER := $(KERNEL)/usr/src/other", None),
        ("OTHER := /usr/src/ofa_kernel/extra", None),
    ],
)
def test_places_that_are_not_known(sample: Path, tmp_path: Path, line: str, told: Optional[str]) -> None:
    """A driver whose build reads another fixed place is told to be such, by file and place."""
    source = Path(shutil.copytree(sample, tmp_path / "source"))
    bench = Bench(tmp_path / "bench", source)
    with (bench.build.source.root / "nvidia/nvidia.Kbuild").open("a") as file:
        file.write(f"{line}\n")
    with structlog.testing.capture_logs() as logs:
        bench.run()
    places = [log["place"] for log in logs if "reads a place outside" in log["event"]]
    assert places == ([told] if told else [])


def test_the_building_machine_is_in_no_module(tmp_path: Path) -> None:
    """NVIDIA's Kbuild looks for /proc/sgi_uv, which no key names: the build looks where nothing is."""
    text = redirect(b"ifneq ($(wildcard /proc/sgi_uv),)\n", tmp_path)
    assert text == f"ifneq ($(wildcard {tmp_path}/outside/proc/sgi_uv),)\n".encode()


def test_debug_info_strips_nothing(bench: Bench) -> None:
    """With debug information nothing is stripped, the core objects neither."""
    bench.build = evolve(bench.build, debug_info=True)
    bench.run()
    assert not (bench.folder / "strip").exists()
    assert all((bench.work / "tree" / name).is_symlink() for name in CORE_OBJECTS)


def test_output_is_in_the_log(bench: Bench) -> None:
    """Both outputs of make go to the log, which starts anew with each build."""
    bench.log.parent.mkdir()
    bench.log.write_text("an older build\n")
    bench.programs("echo out; echo err >&2\n" + ALL_BUILT)
    bench.run()
    assert bench.log.read_text() == "out\nerr\n"


def test_compile_error(bench: Bench) -> None:
    """The first error of the compiler is told with its file in the source, both versions, and the log."""
    bench.programs(
        "echo 'conftest1.c:1:1: error: noise'\n"
        'echo "$PWD/nvidia/nv-pci.c:223:9: error: too few arguments"\n'
        "echo 'make: *** [x] Error 1'; exit 2\n"
    )
    error = bench.error()
    assert str(error) == (
        f"driver 999.10.01 (open) for kernel {RELEASE} does not build: nvidia/nv-pci.c:223: too few arguments"
    )
    assert error.exit_code == 12
    assert f"the whole log: {bench.log}" in str(error.hint)
    assert f"(compiler: {RHEL_COMPILER})" in str(error.hint)


def test_error_without_words(bench: Bench) -> None:
    """Where nothing looks like an error, the exit code and the last lines are told."""
    bench.programs("echo 'something odd'; exit 7\n")
    assert "does not build: make ended with 7: something odd" in str(bench.error())


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("cat: write error: No space left on device", "no space is left where the build runs"),
        ("gcc: fatal error: Killed signal terminated program cc1", "allow fewer jobs than 3"),
    ],
)
def test_hint_by_cause(bench: Bench, line: str, hint: str) -> None:
    """A full disk and a compiler that was killed are not taken for a driver that is too old."""
    bench.programs(f"echo '{line}'; exit 2\n")
    error = bench.error()
    assert hint in str(error.hint)
    assert "too old" not in str(error.hint)


def test_make_killed(bench: Bench) -> None:
    """A make that is killed is told as that, not by the last lines of its log."""
    bench.programs("echo '  CC [M]  nvidia/nv.o'; kill -9 $$\n")
    error = bench.error()
    assert "killed by SIGKILL" in str(error)
    assert "out-of-memory" in str(error.hint)
    assert "too old" not in str(error.hint)


def test_make_hangs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A make that does not end is ended, with all that it started, and told as that."""
    monkeypatch.setattr(build_room, "BUILD_LIMIT", 2)
    bench.programs(f"sleep 1234.5 & echo $! > {bench.folder}/child; echo waiting; wait\n")
    error = bench.error()
    assert "not done after 2 s" in str(error)
    assert f"the whole log: {bench.log}" in str(error.hint)
    assert not _runs(int((bench.folder / "child").read_text()))


def test_no_make(bench: Bench) -> None:
    """A machine without make is told so."""
    bench.commands = SystemCommands(f"{bench.folder}/bin")
    (bench.folder / "bin/make").unlink()
    error = bench.error()
    assert "make: no such program on PATH" in str(error)
    assert "install the package" in str(error.hint)


def test_nothing_built(bench: Bench) -> None:
    """A make that succeeds without a module has failed; the missing ones are named."""
    bench.programs("echo module > nvidia.ko\n")
    assert str(bench.error()) == "make succeeded, but left no nvidia-uvm.ko, nvidia-modeset.ko, nvidia-drm.ko"


def test_strip_fails(bench: Bench) -> None:
    """A strip that fails is told by what it says."""
    bench.programs(ALL_BUILT, strip="echo 'strip: nvidia.ko: No space left on device' >&2; exit 1\n")
    assert "strip failed: strip: nvidia.ko: No space left" in str(bench.error())


@pytest.mark.parametrize("odd", [*" :#$%'(,=;&*~", '"', "\\", "\n"])
def test_paths_that_make_misreads(sample: Path, tmp_path: Path, odd: str) -> None:
    """A folder to build in whose path make, the shell or gcc would take apart is refused at once."""
    bench = Bench(tmp_path / f"a{odd}b", sample)
    error = bench.error()
    assert repr(odd) in str(error)
    assert error.hint == "choose another store"
    assert not (bench.folder / "argv").exists()
    assert not (bench.work / "tree").exists()


def test_headers_at_an_odd_path(bench: Bench) -> None:
    """Kernel headers at such a path are refused too, and what to do is another thing."""
    odd = write_tree(bench.folder / "my headers", build_tree())
    bench.build = evolve(bench.build, headers=find_headers(odd))
    assert bench.error().hint == "move the kernel headers"


def test_headers_without_scripts(bench: Bench) -> None:
    """Debian's headers without their linux-kbuild are told as that, not as a driver that is too old."""
    (bench.build.headers.sources / "scripts/Makefile.build").unlink()
    (bench.build.headers.sources / "scripts/Makefile.build").symlink_to(
        "/no/such/linux-kbuild/Makefile.build"
    )
    with pytest.raises(HeadersError, match=r"scripts/Makefile\.build is not there") as caught:
        bench.run()
    assert "install linux-kbuild" in str(caught.value.hint)


def test_source_at_an_odd_path(tmp_path: Path) -> None:
    """A source may lie anywhere, since make sees links."""
    source = make_sample_driver(tmp_path / "a b:$c#'d\"%e,f=(g)", kind=OPEN)
    bench = Bench(tmp_path / "bench", source)
    assert len(bench.run()) == 4


def test_progress(bench: Bench) -> None:
    """Progress grows, never beyond its total, and ends where make does."""
    seen: List[Tuple[int, int, float]] = []
    steps = "".join(f"echo '  CC [M]  nvidia/{n}.o'; sleep 0.02\n" for n in range(60))
    bench.programs(steps + ALL_BUILT)
    bench.run(lambda *step: seen.append(step))
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert all(0 <= done <= total for done, total, _ in seen)
    assert len({total for _, total, _ in seen}) == 1
    assert seen[-1][0] > 5


def test_progress_that_raises_ends_make(bench: Bench) -> None:
    """What progress raises (a signal came) is passed on, and make is gone by then."""

    class Ended(Exception):
        pass

    def end(done: int, total: int, seconds: float) -> None:
        if child.exists():
            raise Ended

    new, child = bench.folder / "new", bench.folder / "child"
    bench.programs(f"sleep 1234.5 & echo $! > {new}; mv {new} {child}; wait\n")
    with pytest.raises(Ended):
        bench.run(end)
    assert not _runs(int(child.read_text()))


def test_work_that_cannot_be_written(bench: Bench) -> None:
    """A folder to build in that does not take the links is told by its path."""
    bench.work.rmdir()
    bench.work.write_text("in the way")
    assert f"cannot build in {bench.work}" in str(bench.error())


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = subprocess.run(["ps", "-o", "state=", "-p", str(pid)], stdout=subprocess.PIPE, text=True).stdout
    return state.strip() not in ("", "Z")
