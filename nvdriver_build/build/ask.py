"""The compiler as a build sees it: a few lines of sh that note what it was asked, and know what was asked before.

Two kinds of calls are noted, all others go to the compiler as they are:

    tests      conftest.sh wants to know whether something compiles; its output goes to /dev/null
    objects    Kbuild compiles X.c to X.o, and lists in a file what was read

NOTES/N.args .c .reads .o .deps .cwd, and at last .code, are one call; NOTES/hits has the keys that were answered.
ANSWERS/KEY has the exit code of a call that need not be made, KEY.o and KEY.deps what it would have written.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Sequence

from attrs import frozen

Rule = tuple[str, str]
"""A pattern that sed and Python read alike, and what takes its place."""

_TEST_ONLY = (("^-g[0-9]*$", ""), ("^-ffile-prefix-map=.*", ""))
"""What decides about bytes, but not about whether something compiles."""
_EVERYWHERE = (("conftest[0-9][0-9]*", "conftest"), ("^-DNV_VERSION_STRING=.*", ""))
"""A process id; and the driver's version, which `inputs` looks for in all that is read instead."""

_SCRIPT = r"""
[ -n "$answers" ] && key() { sed -f "$1" | sha256sum; }
out= deps= last= probe= key=
for word do
    case $word in
    -Wp,-MD,* | -Wp,-MMD,*) deps=${word#-Wp,-M*D,} ;;
    -M) probe=1 ;;
    esac
    [ "$last" = -o ] && out=$word
    last=$word
done
plain() { exec $compiler "$@"; }
case $last:$out in
conftest[0-9]*.c:) kind=test ;;
-:) [ -n "$probe" ] || plain "$@"; kind=test ;;
*.c:*.o) [ -n "$deps" ] && [ -n "$objects" ] || plain "$@"; kind=object ;;
*) plain "$@" ;;
esac
note=$notes/$$
set -C
(: > "$note.args") 2> /dev/null || plain "$@"
set +C
if [ $kind = object ]; then
    if [ -n "$answers" ]; then
        key=$({ printf '%s\n' "$@"; cat "$tree"/conftest/*.h; } | key "$notes/objects.sed")
        key=$answers/${key%% *}
        if [ -e "$key" ] && cp "$key.o" "$out" && cp "$key.deps" "$deps"; then
            echo "${key##*/}" >> "$notes/hits"
            exit 0
        fi
    fi
    $compiler "$@" || exit
    printf '%s\n' "$@" > "$note.args" && cp "$out" "$note.o" && cp "$deps" "$note.deps" && pwd > "$note.cwd" &&
        echo 0 > "$note.code"
    exit 0
fi
[ /dev/null -ef /proc/self/fd/1 ] && [ /dev/null -ef /proc/self/fd/2 ] || plain "$@"
if [ "$last" = - ]; then cat > "$note.c"; else ln "$last" "$note.c" || plain "$@"; fi
if [ -n "$answers" ]; then
    key=$({ printf '%s\n' "$@"; cat "$note.c"; [ -n "$probe" ] || cat conftest/headers.h; } | key "$notes/tests.sed")
    key=$answers/${key%% *}
    if [ -e "$key" ] && read -r code < "$key"; then
        echo "${key##*/}" >> "$notes/hits"
        [ "$code" != 0 ] || [ -n "$probe" ] || : > "${last%.c}.o"
        exit "$code"
    fi
fi
$compiler -H "$@" < "$note.c" 2> "$note.reads"
code=$?
printf '%s\n' "$@" > "$note.args" && pwd > "$note.cwd" && echo $code > "$note.code"
exit $code
"""


@frozen
class Places:
    """The folders of one build, whose paths are in no key: `names` has the longest path first."""

    tree: Path
    sources: Path
    output: Path

    @property
    def names(self) -> Sequence[tuple[str, str]]:
        """Paths and the words that stand for them."""
        found = {str(self.sources): "@sources", str(self.output): "@output", str(self.tree): "@tree"}
        return sorted(found.items(), key=lambda item: -len(item[0]))

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
        return (*paths, *_EVERYWHERE, *(_TEST_ONLY if test else ()))


def key_of(call: bytes, rules: Sequence[Rule]) -> str:
    """The key of a call: its words, a line each, and what else decides."""
    for pattern, word in rules:
        call = re.sub(pattern.encode(), word.encode(), call, flags=re.MULTILINE)
    return hashlib.sha256(call).hexdigest()


def write_compiler(folder: Path, places: Places, command: str, *, objects: bool, answers: bool) -> str:
    """Write the script into `folder`, with its folders `notes` and `answers`; the words to call it with."""
    notes = folder / "notes"
    notes.mkdir(parents=True)
    for name, test in (("tests", True), ("objects", False)):
        lines = (f"s|{pattern}|{word}|g\n" for pattern, word in places.rules(test=test))
        (notes / f"{name}.sed").write_text("".join(lines))
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
