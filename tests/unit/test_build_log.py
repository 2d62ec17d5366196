"""What a build log says: the first real error, and how far the build is."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_driver import MODULES, make_sample_driver
from trees import write_tree

from nvdriver_build.build.log import Failure, Follower, count_steps, first_failure, tail

NOISE = """\
make[1]: Entering directory '/usr/src/linux-headers-6.1.0-9-common'
 CONFTEST: drm/drmP.h
conftest1234.c:1:10: fatal error: drm/drmP.h: No such file or directory
    1 | #include <drm/drmP.h>
compilation terminated.
/work/tree/conftest99.c:3:5: error: implicit declaration of function 'x'
/work/tree/nvidia/nv.c:10:5: warning: unused variable 'error' [-Wunused-variable]
/usr/src/x.h:5:5: note: expected error: none
WARNING: modpost: Symbol info of vmlinux is missing. Unresolved symbol check will be entirely skipped.
nvidia.o: warning: objtool: x()+0x10: call without frame pointer save/setup
  CC [M]  /work/tree/nvidia/error.o
Skipping BTF generation for nvidia.ko due to unavailability of vmlinux
"""
TRAILER = """\
make[3]: *** [/usr/src/scripts/Makefile.build:255: /work/tree/nvidia/nv-pci.o] Error 1
make[2]: *** [/usr/src/Makefile:2065: /work/tree] Error 2
make: *** [Makefile:137: modules] Error 2
"""


def failure(folder: Path, text: str) -> Failure | None:
    return first_failure(write_tree(folder, {"log": text}) / "log")


def test_noise_is_no_error(tmp_path: Path) -> None:
    """Conftest's own tests, warnings, notes and names of files are no errors."""
    assert failure(tmp_path, NOISE) is None


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("/w/nvidia/nv-pci.c:223:9: ", "error: too few arguments to function 'f'"),
        ("/w/conftest/nvidia/nv.c:7: ", "error: x"),
        ("nv.c:1:10: ", "fatal error: nv.h: No such file or directory"),
        ("/tmp/ccX.s:15: ", "Error: no such instruction: `x'"),
    ],
)
def test_compilers_error(tmp_path: Path, place: str, message: str) -> None:
    """The first error of a compiler is found in the noise, with its file and line."""
    found = failure(tmp_path, f"{NOISE}{place}{message}\n{TRAILER}")
    file, line = place.split(":")[:2]
    assert found == Failure(message.partition(": ")[2], file, int(line))


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("ERROR: modpost: ", '"f" [/w/nvidia.ko] undefined!'),
        ("ERROR: modpost: ", "missing MODULE_LICENSE() in /w/x.o"),
        ("/w/nvidia.o: error: ", "objtool: x(): unannotated"),
        ("gcc: ", "fatal error: Killed signal terminated program cc1"),
        ("x86_64-linux-gnu-gcc-12: ", "fatal error: no input files"),
        ("ld: ", "cannot find nv-kernel.o: No such file"),
        ("/usr/bin/ld.bfd: ", "final link failed: No space left on device"),
        ("", "/tmp/ccX.s: Fatal error: can't write 9 bytes: No space left on device"),
        ("", "cat: write error: No space left on device"),
        ("make[1]: *** ", "No rule to make target 'x'.  Stop."),
    ],
)
def test_first_real_error(tmp_path: Path, program: str, message: str) -> None:
    """Without one of a compiler the first error of modpost, linker, objtool or make is found."""
    assert failure(tmp_path, f"{NOISE}{program}{message}\n{TRAILER}") == Failure(message)


def test_conftests_verdict(tmp_path: Path) -> None:
    """What conftest says of the whole machine, between stars, is an error."""
    line = "*** Unable to determine the target kernel version. ***"
    assert failure(tmp_path, f"{NOISE}{line}\n{TRAILER}") == Failure(line.strip("* "))


def test_compiler_comes_before_all(tmp_path: Path) -> None:
    """With several jobs a compiler's error may stand after make's words about another; it is the cause."""
    text = f"{NOISE}ld: cannot find x\n{TRAILER}/w/a.c:1:2: error: first\n/w/b.c:3:4: error: second\n"
    assert failure(tmp_path, text) == Failure("first", "/w/a.c", 1)


def test_errors_read_well() -> None:
    """An error is written as file, line and message, or as its message alone."""
    assert str(Failure("bad", "a.c", 5)) == "a.c:5: bad"
    assert str(Failure("bad")) == "bad"


def test_odd_bytes(tmp_path: Path) -> None:
    """A log may hold any bytes."""
    log = (
        write_tree(tmp_path, {"log": b"\xff\xfe\0\n/w/a.c:1:2: error: \xe2\x80\x98x\xe2\x80\x99 \xff\n"})
        / "log"
    )
    assert first_failure(log) == Failure("\u2018x\u2019 \ufffd", "/w/a.c", 1)


def test_tail(tmp_path: Path) -> None:
    """The last lines are given; of very long ones the end."""
    log = write_tree(tmp_path, {"log": "".join(f"line {n}\n" for n in range(1000))}) / "log"
    assert tail(log, 3).splitlines()[-3:] == ["line 997", "line 998", "line 999"]
    log.write_text("x" * 100_000)
    assert len(tail(log, 3)) <= 600
    log.write_text("")
    assert tail(log) == ""


STEPS = (
    b" CONFTEST: drm/drm.h\n  CC [M]  /w/nv.o\n  LD [M]  /w/nvidia.ko\n CONFTEST headers.h:\n  MODPOST x\n"
)


@given(cuts=st.lists(st.integers(0, len(STEPS * 3)), max_size=8))
def test_follower_counts_each_step_once(tmp_path_factory: pytest.TempPathFactory, cuts: list[int]) -> None:
    """However the log grows, each finished line counts once; what is no step does not."""
    log = tmp_path_factory.mktemp("log") / "log"
    data, follower, before = STEPS * 3, Follower(log), 0
    for cut in [*sorted(cuts), len(data)]:
        log.write_bytes(data[:cut])
        whole = data[: data.rfind(b"\n", 0, cut) + 1]
        assert follower.update() == sum(whole.count(word) for word in (b"CONFTEST:", b"CC [M]", b"LD [M]"))
        assert follower.done >= before
        before = follower.done
    assert follower.done == 9


def test_steps_of_the_sample(tmp_path: Path) -> None:
    """Fewer modules have fewer steps, and each module counts."""
    tree = make_sample_driver(tmp_path / "driver", kind="open") / "kernel-open"
    counts = [count_steps(tree, MODULES[:number]) for number in range(len(MODULES) + 1)]
    assert counts == sorted(set(counts))
    assert counts[0] > 0


@pytest.mark.parametrize("place", ["Kbuild", "header-presence-tests.mk"])
def test_header_tests_are_steps(tmp_path: Path, place: str) -> None:
    """The list of headers is in Kbuild up to branch 535, in a file of its own in 550."""
    text = (
        "A = 1\nNV_HEADER_PRESENCE_TESTS = \\\n asm/system.h \\\n drm/drmP.h \\\n drm/drm_drv.h\n\nB = x.h\n"
    )
    assert count_steps(write_tree(tmp_path, {place: text}), ("nvidia",)) == 2 + 3


def test_steps_of_nothing(tmp_path: Path) -> None:
    """A tree without Kbuild has no steps but those of linking."""
    assert count_steps(tmp_path, ("nvidia",)) == 2
