"""What builds keep: the compiler's answers: taken where nothing that decides has changed, else asked for."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Callable, Dict, List, Tuple

import pytest
import structlog
from crashes import killed_at_each_step
from trees import write_tree

from nvdriver_build.build.ask import Places
from nvdriver_build.build.fixed import once, wait_by_name
from nvdriver_build.build.inputs import Inputs, compiler_identity
from nvdriver_build.build.kept import MOST, Answers, kept_files
from nvdriver_build.commands import SystemCommands
from nvdriver_build.kernel import Compiler
from nvdriver_build.store import Rules, Store

COMPILER = r"""#!/bin/sh
# Finds "#include <X>" below each -I, and says what gcc would; fails for a text with 'missing' in it.
case $1 in -print-prog-name=*) echo {folder}/bin/cc1; exit ;; esac
echo "$*" >> {folder}/calls
out= deps= noisy= places= last=
for word do
    case $word in
    -Wp,-MMD,*) deps=${word#-Wp,-MMD,} ;;
    -H) noisy=1 ;;
    -I*) places="$places ${word#-I}" ;;
    esac
    [ "$last" = -o ] && out=$word
    last=$word
done
text=$(cat "$last") reads=
for name in $(echo "$text" | sed -n 's/^#include <\(.*\)>$/\1/p'); do
    for place in $places; do
        [ -e $place/$name ] && { reads="$reads $place/$name"; break; }
    done
done
[ -z "$noisy" ] || for read in $reads; do echo ". $read"; done >&2
[ -z "$deps" ] || echo "$out: $last $reads" > "$deps"
case $text in
*missing*) echo "$last:3:1: error: no such thing" >&2; exit 1 ;;
*unreadable*) echo "$last:1:10: fatal error: c.h: Too many open files" >&2; exit 1 ;;
*absent*) echo "$last:1:10: fatal error: c.h: No such file or directory" >&2; exit 1 ;;
*killed*) echo "gcc: fatal error: Killed signal terminated program cc1" >&2; exit 1 ;;
esac
[ -z "$out" ] || { echo "$text"; cat $reads /dev/null | sed '/#define/d'; } > "$out"
"""
MADE = "/*\n * made\n */\n"
AUTOCONF = "include/generated/autoconf.h"
HEADERS = {
    "include/linux/a.h": "#ifdef CONFIG_A\nint a;\n#endif\n",
    "include/linux/b.h": "int b;\n",
    "include/linux/release.h": "#include <generated/utsrelease.h>\n",
    "include/generated/utsrelease.h": '#define UTS_RELEASE "6.1"\n',
    AUTOCONF: f"{MADE}#define CONFIG_A 1\n#define CONFIG_B_MODULE 1\n",
    "include/generated/ticks.h": "#define TICKS (2 * CONFIG_HZ)\n",
    "arch/x86/include/asm/x.h": "",
}
SOURCES = {
    "nvidia/a.c": "#include <linux/a.h>\n#include <generated/autoconf.h>\n",
    "nvidia/b.c": "#include <linux/b.h>\n#include <generated/utsrelease.h>\n",
    "nvidia/v.c": "#include <linux/b.h>\nNV_VERSION_STRING\n",
    "nvidia/t.c": "#include <generated/autoconf.h>\n#include <generated/ticks.h>\nTICKS\n",
    "nvidia/r.c": "#include <generated/utsrelease.h>\nUTS_RELEASE\n",
}
TESTS = {
    "has_a": "#include <linux/a.h>\nint conftest_a;\n",
    "has_b": "#include <linux/b.h>\nmissing\n",
    "has_c": "#include <linux/c.h>\nint conftest_c;\n",
}
EVERYTHING = {*SOURCES, *TESTS, "probe"}
Told = Dict[str, object]


class Builds:
    """Builds, one after the other, of one driver for one kernel, with a compiler that is a script."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.kept = folder, folder / "kept"
        self.headers = write_tree(folder / "headers", dict(HEADERS))
        self.sources, self.version = dict(SOURCES), "535.1"
        self.flags: List[str] = ["-O2", "-g"]
        self.count = 0
        write_tree(folder / "bin", {"gcc": COMPILER.replace("{folder}", str(folder)), "cc1": ""})
        for program in ("gcc", "cc1"):
            (folder / "bin" / program).chmod(0o755)

    def opened(self) -> Tuple[Answers, Path]:
        """The answers of a new build, in a place of its own, and its tree."""
        self.count += 1
        work = self.folder / f"work-{self.count}"
        tree = write_tree(
            work / "tree", {**self.sources, "conftest/headers.h": f"// Kernel version: {work}\n"}
        )
        commands = SystemCommands(f"{self.folder}/bin:/usr/bin:/bin")
        compiler = Compiler("gcc", "gcc 12.2.0", same=True, mismatch=False)
        identity = compiler_identity(compiler, commands)
        inputs = Inputs(Places(tree, self.headers, self.headers), self.version, identity, tuple(self.sources))
        places = Places(tree, self.headers, self.headers)
        return Answers(self.kept / f"{self.count:064}", work / "answers", places, inputs, commands), tree

    def run(self, *, objects: bool = True) -> Tuple[Told, List[str]]:
        """A build: what it was told, and what it had to ask the compiler for."""
        answers, tree = self.opened()
        cc = answers.take("gcc", objects=objects)
        (self.folder / "calls").write_text("")
        told: Told = {}
        for name in self.sources:
            told[name] = self._compile(cc, tree, name)
        for number, (name, text) in enumerate(TESTS.items()):
            told[name] = self._test(cc, tree, f"conftest{self.count}{number}.c", text)
        told["probe"] = self._call(
            cc, tree, ["-E", "-M", *self._flags(tree), "-"], "#include <linux/a.h>\n"
        ).returncode
        answers.keep()
        return told, self._asked()

    def _flags(self, tree: Path) -> List[str]:
        return [*self.flags, f"-DNV_VERSION_STRING={self.version}", f"-I{self.headers}/include", f"-I{tree}"]

    def _compile(self, cc: str, tree: Path, name: str) -> object:
        out = tree / name.replace(".c", ".o")
        deps = out.with_suffix(".d")
        words = [f"-Wp,-MMD,{deps}", *self._flags(tree), "-c", "-o", str(out), str(tree / name)]
        code = self._call(cc, tree, words).returncode
        return code, out.read_text(), self._without_places(deps.read_text(), tree)

    def _without_places(self, text: str, tree: Path) -> str:
        for place in (tree, self.headers, self.headers.resolve()):
            text = text.replace(str(place), "")
        return text

    def _test(self, cc: str, tree: Path, file: str, text: str) -> object:
        (tree / file).write_text(text)
        return self._call(cc, tree, [*self._flags(tree), "-c", file]).returncode

    def _call(
        self, cc: str, tree: Path, words: List[str], text: str = ""
    ) -> subprocess.CompletedProcess[str]:
        quiet = subprocess.DEVNULL
        environment = {"PATH": f"{self.folder}/bin:/usr/bin:/bin", "LC_ALL": "C"}
        return subprocess.run(
            [*cc.split(), *words],
            cwd=tree,
            env=environment,
            input=text,
            stdout=quiet,
            stderr=quiet,
            text=True,
        )

    def _asked(self) -> List[str]:
        """By the last word of a call: conftestNM.c is the test number M."""
        last = [line.split()[-1] for line in (self.folder / "calls").read_text().splitlines()]
        names = list(TESTS)
        found = []
        for word in last:
            if word == "-":
                found.append("probe")
            elif word.startswith("conftest"):
                found.append(names[int(word[-3])])
            else:
                found.append(f"nvidia/{Path(word).name}")
        return sorted(found)


@pytest.fixture
def builds(tmp_path: Path) -> Builds:
    return Builds(tmp_path)


def test_nothing_is_asked_twice(builds: Builds) -> None:
    """A second build, at another place, is told the same, and the compiler is asked nothing."""
    told, asked = builds.run()
    assert set(asked) == EVERYTHING
    assert (told["has_a"], told["has_b"], told["probe"]) == (0, 1, 0)
    assert builds.run() == (told, [])


def test_headers_at_another_place(builds: Builds) -> None:
    """The paths of headers and driver decide nothing; a link to the headers will do, too."""
    told, _ = builds.run()
    builds.headers = builds.headers.rename(builds.folder / "moved")
    assert builds.run() == (told, [])
    (builds.folder / "link").symlink_to(builds.headers)
    builds.headers = builds.folder / "link"
    assert builds.run() == (told, [])


def test_a_folder_whose_name_goes_on(builds: Builds) -> None:
    """What lies beside the headers, in a folder whose name starts alike, is another one."""
    told = []
    for name in ("one", "two"):
        builds.headers = builds.headers.rename(builds.folder / name)
        write_tree(builds.folder / f"{name}-extra", {"extra.h": f"int {name};\n"})
        builds.flags = ["-O2", f"-I{builds.folder}/{name}-extra"]
        builds.sources["nvidia/e.c"] = "#include <extra.h>\n"
        told.append(str(builds.run()[0]["nvidia/e.c"]))
    assert ["int one" in told[0], "int two" in told[1]] == [True, True]


def write(path: str, text: str) -> Callable[[Builds], None]:
    def act(builds: Builds) -> None:
        write_tree(builds.headers, {path: text})

    return act


def source(name: str, text: str) -> Callable[[Builds], None]:
    def act(builds: Builds) -> None:
        builds.sources[name] = text

    return act


def bump(builds: Builds) -> None:
    builds.version = "535.2"


def other(program: str) -> Callable[[Builds], None]:
    def act(builds: Builds) -> None:
        os.utime(builds.folder / "bin" / program, (1, 1))

    return act


def flag(*flags: str) -> Callable[[Builds], None]:
    def act(builds: Builds) -> None:
        builds.flags = list(flags)

    return act


CHANGES = {
    "a header that is read": (
        write("include/linux/b.h", "int other;\n"),
        {"nvidia/b.c", "nvidia/v.c", "has_b"},
    ),
    "a header that nothing reads": (write("include/linux/release.h", "other\n"), set()),
    "an option that is mentioned": (
        write(AUTOCONF, f"{MADE}#define CONFIG_B_MODULE 1\n"),
        {"nvidia/a.c", "has_a", "probe"},
    ),
    "an option that is not": (write(AUTOCONF, f"{MADE}#define CONFIG_A 1\n#define CONFIG_C 1\n"), set()),
    "options that are more than definitions": (
        write(AUTOCONF, "#define CONFIG_A 1\nint x;\n"),
        {"nvidia/a.c", "nvidia/t.c"},
    ),
    "the release": (write("include/generated/utsrelease.h", '#define UTS_RELEASE "6.2"\n'), {"nvidia/r.c"}),
    "a header that was sought": (write("include/linux/c.h", "int c;\n"), {"has_c"}),
    "a header of the name of another": (
        write("arch/x86/include/asm/a.h", ""),
        {"nvidia/a.c", "has_a", "probe"},
    ),
    "a header of a new name": (write("include/linux/d.h", "int d;\n"), set()),
    "a source": (source("nvidia/b.c", "#include <linux/a.h>\n"), {"nvidia/b.c"}),
    "the driver's version": (bump, {"nvidia/v.c"}),
    "the compiler": (other("cc1"), EVERYTHING),
    "what starts the compiler": (other("gcc"), EVERYTHING),
    "an option that another definition is made of": (
        write(AUTOCONF, f"{MADE}#define CONFIG_A 1\n#define CONFIG_B_MODULE 1\n#define CONFIG_HZ 1000\n"),
        {"nvidia/t.c"},
    ),
    "a flag": (flag("-O3", "-g"), EVERYTHING),
    "debug information": (flag("-O2", "-g", "-g0"), set(SOURCES)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_change_asks_for_anew(builds: Builds, name: str) -> None:
    """Only what a change may decide about is asked again; what is told is what it is without answers."""
    change, expected = CHANGES[name]
    builds.run()
    change(builds)
    told, asked = builds.run()
    assert set(asked) == expected
    assert builds.run() == (told, [])
    for file in kept_files(builds.kept):
        file.unlink()
    assert builds.run() == (told, sorted(EVERYTHING))


FIRST = {"include/first.h": "#include <generated/autoconf.h>\n"}
"""Read by -include, as the kernel's flags have it."""


@pytest.mark.parametrize("objects", [True, False])
@pytest.mark.parametrize(
    "changed",
    [
        {AUTOCONF: "#define CONFIG_B 1\n"},
        {AUTOCONF: "int other;\n"},
        {"include/first.h": "#include <generated/autoconf.h>\n#undef CONFIG_A\n"},
    ],
    ids=["an option", "more than options", "a header"],
)
def test_what_the_flags_include(tmp_path: Path, changed: Dict[str, str], objects: bool) -> None:
    """What a real compiler reads first, by its flags, counts for its answers as all else that it reads."""
    builds = Builds(tmp_path)
    (tmp_path / "bin/gcc").unlink()
    (tmp_path / "bin/gcc").symlink_to(shutil.which("gcc") or "gcc")
    write_tree(builds.headers, FIRST)

    def told() -> Tuple[int, int]:
        answers, tree = builds.opened()
        cc = answers.take("gcc", objects=objects)
        flags = [*builds._flags(tree), "-include", f"{builds.headers}/include/first.h"]
        (tree / "conftest1.c").write_text("#ifndef CONFIG_A\n#error none\n#endif\n")
        code = builds._call(cc, tree, [*flags, "-c", "conftest1.c"]).returncode
        answers.keep()
        hits = tree.parent / "answers/notes/hits"
        return code, len(hits.read_text().split()) if hits.exists() else 0

    assert [told(), told()] == [(0, 0), (0, 1)]
    write_tree(builds.headers, changed)
    assert [told(), told()] == [(1, 0), (1, 1)]


def test_objects_with_debug_information(builds: Builds) -> None:
    """Objects that name paths are not kept, tests are."""
    _, asked = builds.run(objects=False)
    _, again = builds.run(objects=False)
    assert (set(asked), set(again)) == (EVERYTHING, set(SOURCES))


def test_a_compiler_that_fails_itself(builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    """That a test does not compile since there is no memory is no answer that is kept."""
    monkeypatch.setitem(TESTS, "has_c", "#include <linux/a.h>\nkilled\n")
    told, _ = builds.run()
    assert told["has_c"] == 1
    assert builds.run() == (told, ["has_c"])


def test_a_header_that_could_not_be_read(builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    """That it is not there is an answer; that there were too many open files is none."""
    monkeypatch.setitem(TESTS, "has_c", "#include <linux/a.h>\nunreadable\n")
    assert builds.run()[0]["has_c"] == 1
    assert builds.run()[1] == ["has_c"]
    monkeypatch.setitem(TESTS, "has_c", "#include <linux/a.h>\nabsent\n")
    assert builds.run()[0]["has_c"] == 1
    assert builds.run()[1] == []


@pytest.mark.parametrize("moment", ["while it is compiled", "before, and back again"])
@pytest.mark.parametrize("what", ["source", "header"])
def test_a_file_that_changes_during_a_build(builds: Builds, moment: str, what: str) -> None:
    """What the compiler has read is not known then: nothing of that build is kept."""
    answers, tree = builds.opened()
    file = tree / "nvidia/b.c" if what == "source" else builds.headers / "include/linux/b.h"
    before = file.read_text()
    cc = answers.take("gcc", objects=True)
    if moment == "before, and back again":
        file.write_text("int for_a_moment;\n")
    builds._compile(cc, tree, "nvidia/b.c")
    file.write_text("int new_code;\n" if moment == "while it is compiled" else before)
    with structlog.testing.capture_logs() as logs:
        answers.keep()
    assert "was written to during the build" in logs[-1]["why"]
    assert kept_files(builds.kept) == []


def test_folders_that_are_links(builds: Builds, tmp_path: Path) -> None:
    """Ubuntu's headers are such: a header that comes there is seen; a circle of links has an end."""
    shutil.move(builds.headers / "include/linux", tmp_path / "linux")
    (builds.headers / "include/linux").symlink_to(tmp_path / "linux")
    (tmp_path / "linux/circle").symlink_to(builds.headers / "include")
    builds.run()
    assert builds.run()[1] == []
    write_tree(tmp_path / "linux", {"c.h": ""})
    assert builds.run()[1] == ["has_c"]


def test_what_else_a_build_makes(builds: Builds) -> None:
    """What reads a file that only this build has is not kept."""
    builds.sources["nvidia/g.c"] = "#include <generated-here.h>\n"
    real = builds.opened

    def opened() -> Tuple[Answers, Path]:
        answers, tree = real()
        write_tree(tree, {"generated-here.h": f"{tree}\n"})
        return answers, tree

    builds.opened = opened  # type: ignore[method-assign]
    builds.run()
    assert builds.run()[1] == ["nvidia/g.c"]


def test_output_that_somebody_reads(builds: Builds) -> None:
    """A call whose output goes elsewhere than to /dev/null is made each time."""
    builds.run()
    answers, tree = builds.opened()
    cc = answers.take("gcc", objects=True)
    (tree / "conftest1.c").write_text(TESTS["has_b"])
    for _ in range(2):
        subprocess.run(
            [*cc.split(), *builds._flags(tree), "-c", "conftest1.c"],
            cwd=tree,
            env={"PATH": f"{builds.folder}/bin:/usr/bin:/bin"},
            stdout=subprocess.PIPE,
        )
    assert (builds.folder / "calls").read_text().count("conftest1.c") == 2


@pytest.mark.parametrize("place", [0, 10, 70, 500, -1, "cut", "empty", "other", "folder", "not ours"])
def test_damage(builds: Builds, place: object) -> None:
    """With any byte of what is kept changed, it is dropped, and the build is as without."""
    told, _ = builds.run()
    [file] = kept_files(builds.kept)
    data = bytearray(file.read_bytes())
    if isinstance(place, int):
        data[place] ^= 1
    file.unlink()
    if place == "folder":
        file.mkdir()
    else:
        changed: Dict[str, bytes] = {
            "cut": bytes(data[:-5]),
            "empty": b"",
            "other": b"{}",
            "not ours": bytes(5000),
        }
        file.write_bytes(changed.get(str(place), bytes(data)))
    assert builds.run() == (told, sorted(EVERYTHING))
    assert builds.run() == (told, [])


def test_kills_while_answers_are_kept(builds: Builds) -> None:
    """Killed before any step, a build leaves no half of anything: the next takes all of it, or none."""
    builds.run()
    [file] = kept_files(builds.kept)
    whole = file.read_bytes()
    answers: List[Answers] = []

    def prepare() -> None:
        for old in builds.kept.iterdir():
            old.unlink()
        opened, tree = builds.opened()
        opened.take("gcc", objects=True)
        builds._test(f"sh {tree.parent}/answers/cc", tree, "conftest1.c", TESTS["has_a"])
        answers[:] = [opened]

    seen = set()
    for _ in killed_at_each_step(prepare, lambda: answers[0].keep()):
        seen.add(len(kept_files(builds.kept)))
        for left in kept_files(builds.kept):
            assert left.read_bytes() != whole
        asked = builds.run()[1]
        assert set(asked) in (EVERYTHING, EVERYTHING - {"has_a"})
    assert seen == {0, 1}


def test_how_much_is_kept(builds: Builds) -> None:
    """The answers of the last builds are kept, for their owner only, and no more."""
    for number in range(MOST + 2):
        builds.flags = [f"-O{number}"]
        builds.run()
    files = kept_files(builds.kept)
    assert len(files) == MOST
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    builds.run()
    assert len(kept_files(builds.kept)) == MOST


def test_flags_of_conftest_are_found_once(tmp_path: Path) -> None:
    """NVIDIA's variable is expanded at its first use, with what is set then, and no more."""
    kbuild = "NV_CONFTEST_CFLAGS =\nNV_CONFTEST_CFLAGS += $(LATE) $(shell echo x >> asked; echo 1\\#2)\n"
    rules = "LATE = late\nall: a b\na b:\n\t@echo '$(NV_CONFTEST_CFLAGS)'\n"
    told = {}
    for name, text in (("plain", kbuild), ("once", once(kbuild.encode()).decode())):
        place = write_tree(tmp_path / name, {"Makefile": text + rules})
        out = subprocess.run(["make", "-C", str(place), "-s"], stdout=subprocess.PIPE, text=True, check=True)
        told[name] = out.stdout, (place / "asked").read_text().count("x")
    assert told == {"plain": ("late 1#2\n" * 2, 2), "once": ("late 1#2\n" * 2, 1)}
    assert once(b"NV_CONFTEST_CFLAGS := x\n") == b"NV_CONFTEST_CFLAGS := x\n"


def test_conftest_is_waited_for_by_name(tmp_path: Path) -> None:
    """Objects and tests wait for what conftest makes, as before, but by two names; other texts stay."""
    rules = [
        ".SECONDARY:",
        "obj := .",
        "NV_CONFTEST_SCRIPT := conftest.sh",
        "NV_CONFTEST_HEADER := $(obj)/conftest/headers.h",
        "NV_CONFTEST_HEADERS := $(obj)/conftest/a.h $(NV_CONFTEST_HEADER)",
        "NV_OBJECTS_DEPEND_ON_CONFTEST := x.o y.o",
        "all: x.o y.o",
        "%.o:\n\t@cat conftest/a.h conftest/headers.h > $@",
        "$(obj)/conftest/compile-tests/%.h: $(NV_CONFTEST_SCRIPT) $(NV_CONFTEST_HEADER)",
        "\t@cat conftest/headers.h > $@; echo $* >> $@",
        "$(obj)/conftest/a.h: $(obj)/conftest/compile-tests/1.h $(obj)/conftest/compile-tests/2.h",
        "\t@cat $^ > $@",
        "$(NV_CONFTEST_HEADER):\n\t@sleep 0.1; echo first > $@",
        "$(addprefix $(obj)/,$(NV_OBJECTS_DEPEND_ON_CONFTEST)): | $(NV_CONFTEST_HEADERS)",
        "",
    ]
    plain = "\n".join(rules).encode()
    made = []
    for name, text in (("plain", plain), ("named", wait_by_name(plain))):
        place = write_tree(tmp_path / name, {"Makefile": text, "conftest.sh": ""})
        (place / "conftest/compile-tests").mkdir(parents=True)
        subprocess.run(["make", "-rR", "-s", "-j4", "-C", str(place)], check=True)
        made.append({str(path.relative_to(place)): path.read_text() for path in place.rglob("*.[oh]")})
    assert wait_by_name(plain).count(b".PHONY") == 2
    assert made[0] == made[1] and made[0]["x.o"] == "first\n1\nfirst\n2\nfirst\n"
    assert wait_by_name(b"all: $(NV_CONFTEST_HEADERS)\n") == b"all: $(NV_CONFTEST_HEADERS)\n"


def test_prune_of_a_store(builds: Builds) -> None:
    """`store prune` drops answers that no build has used for as long as sets are kept."""
    store = Store(builds.folder)
    builds.run()
    [file] = kept_files(builds.kept)
    assert store.kept(file.name) == file
    store.prune((), Rules(unused=3600))
    assert kept_files(builds.kept) == [file]
    os.utime(file, (1, 1))
    store.prune((), Rules(unused=3600))
    assert kept_files(builds.kept) == []
