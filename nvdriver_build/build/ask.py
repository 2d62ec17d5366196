"""The compiler as a build sees it: a few lines of sh that note what it is asked, and know some answers.

Two kinds of calls are noted, all others go to the compiler as they are:

    tests      conftest.sh wants to know whether something compiles; its output goes to /dev/null
    objects    Kbuild compiles X.c to X.o, and lists in a file what was read

NOTES/N.args .c .reads .o .deps .cwd, and at last .code, are one call; NOTES/hits has the keys of the others.
ANSWERS/KEY has the exit code of a call that need not be made, KEY.o and KEY.deps what it would have written.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Iterator, Sequence

from attrs import field, frozen

Rule = tuple[str, str]
"""A pattern that sed and Python read alike, and what takes its place."""

_TEST_ONLY = (("^-g[0-9]*$", ""), ("^-ffile-prefix-map=.*", ""), ("^-ftrack-macro-expansion=.*", ""))
"""What decides about bytes, but not about whether something compiles."""
_EVERYWHERE = (
    ("conftest[0-9][0-9]*", "conftest"),
    ("^// Kernel version: .*", ""),
    ("^-DNV_VERSION_STRING=.*", ""),
)
"""A process id; a comment in the headers of conftest; the driver's version, which `inputs` looks for."""

_SCRIPT = r"""
plain() { exec $compiler "$@"; }

digest() {  # of standard input, as ask.key_of has it
    found=$(sed -f "$1" | sha256sum)
    echo "$answers/${found%% *}"
}

out= deps= last= probe= makes=
for word do
    case $word in
    -Wp,-MD,* | -Wp,-MMD,*) deps=${word#-Wp,-M*D,} ;;
    -M) probe=1 ;;
    -c) makes=1 ;;
    esac
    [ "$last" = -o ] && out=$word
    last=$word
done
case $last:$out:$deps:$probe in
conftest[0-9]*.c::*) kind=test ;;
-:::1) kind=test ;;
*.c:*.o:?*:) [ -n "$objects" ] || plain "$@"; kind=object ;;
*) plain "$@" ;;
esac
note=$notes/$$
(set -C; : > "$note.args") 2> /dev/null || plain "$@"  # process ids come again

if [ $kind = object ]; then
    if [ -n "$answers" ]; then
        known=$({ printf '%s\n' "$@"; cat "$tree"/conftest/*.h; } | digest "$notes/objects.sed")
        if [ -f "$known" ] && cp "$known.o" "$out" && cp "$known.deps" "$deps"; then
            echo "${known##*/}" >> "$notes/hits"
            exit 0
        fi
    fi
    $compiler "$@" || exit
    cp "$out" "$note.o" && cp "$deps" "$note.deps" && pwd > "$note.cwd" &&
        printf '%s\n' "$@" > "$note.args" && echo 0 > "$note.code"
    exit 0
fi

[ /dev/null -ef /proc/self/fd/1 ] && [ /dev/null -ef /proc/self/fd/2 ] || plain "$@"
if [ "$last" = - ]; then cat > "$note.c"; else ln "$last" "$note.c" || plain "$@"; fi
if [ -n "$answers" ]; then
    known=$({
        printf '%s\n' "$@"
        cat "$note.c"
        [ -n "$probe" ] || cat conftest/headers.h
    } | digest "$notes/tests.sed")
    if [ -f "$known" ] && read -r code < "$known"; then
        echo "${known##*/}" >> "$notes/hits"
        [ "$code$makes" != 01 ] || : > "${last%.c}.o"
        exit "$code"
    fi
fi
$compiler -H "$@" < "$note.c" 2> "$note.reads"
code=$?
pwd > "$note.cwd" && printf '%s\n' "$@" > "$note.args" && echo $code > "$note.code"
exit $code
"""


@frozen
class Places:
    """The folders of one build, whose paths are in no key.

    `names` are these paths, the longest first, with the words that stand for them; Kbuild follows links.
    """

    tree: Path
    sources: Path
    output: Path
    names: Sequence[tuple[str, str]] = field(init=False)

    @names.default
    def _named(self) -> Sequence[tuple[str, str]]:
        found = {str(path): word for path, word in self.paths()}
        return sorted(found.items(), key=lambda item: -len(item[0]))

    def paths(self) -> Iterator[tuple[Path, str]]:
        """Each folder as it is given, and where it is: as many in each build, in the same order."""
        for place, word in ((self.sources, "@sources"), (self.output, "@output"), (self.tree, "@tree")):
            yield place, word
            yield place.resolve(), word

    def short(self, path: str) -> str:
        """A path with the word for the folder it is in."""
        for folder, word in self.names:
            if path.startswith(f"{folder}/"):
                return word + path[len(folder) :]
        return path

    def long(self, path: str) -> Path:
        """The path that `short` made short."""
        word, slash, rest = path.partition("/")
        folder = {"@tree": self.tree, "@sources": self.sources, "@output": self.output}.get(word)
        return Path(path) if folder is None or not slash else folder / rest

    def rules(self, *, test: bool) -> Sequence[Rule]:
        """What is replaced in a call before its digest is taken."""
        paths = [(re.sub(r"[.+]", r"[\g<0>]", path), word) for path, word in self.names]
        whole = ((path + end, word + end.strip("$")) for path, word in paths for end in ("/", "$"))
        return (*whole, *_EVERYWHERE, *(_TEST_ONLY if test else ()))


def key_of(call: bytes, rules: Sequence[Rule]) -> str:
    """The key of a call: its words, a line each, and what else decides."""
    for pattern, word in rules:
        call = re.sub(pattern.encode(), word.encode(), call, flags=re.MULTILINE)
    return hashlib.sha256(re.sub(rb"^\n", b"", call, flags=re.MULTILINE)).hexdigest()


def write_compiler(folder: Path, places: Places, command: str, *, objects: bool, answers: bool) -> str:
    """Write the script into `folder`, with its folders `notes` and `answers`; the words to call it with."""
    notes = folder / "notes"
    notes.mkdir(parents=True)
    for name, test in (("tests", True), ("objects", False)):
        lines = (f"s|{pattern}|{word}|g\n" for pattern, word in places.rules(test=test))
        (notes / f"{name}.sed").write_text("".join(lines) + "/^$/d\n")
    values = {
        "compiler": command,
        "tree": places.tree,
        "notes": notes,
        "answers": folder / "answers" if answers else "",
        "objects": "1" if objects else "",
    }
    script = folder / "cc"
    script.write_text("".join(f"{name}='{value}'\n" for name, value in values.items()) + _SCRIPT)
    return f"sh {script}"
