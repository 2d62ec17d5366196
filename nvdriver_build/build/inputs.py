"""What decided about a compiler's answer: has it changed since?

An answer is a function of the call and of the files that were read. A file counts as changed where its bytes
differ, or where it mentions a word that changed: the name of a header that came or went (it might be another
one that is found now), or of a macro whose definition changed in a file that has nothing but definitions, as
autoconf.h, utsrelease.h and version.h. Kbuild itself follows options so (scripts/basic/fixdep.c).
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from pathlib import Path
from typing import Any, Collection, Iterator, Mapping, Optional, Sequence

from nvdriver_build.build.ask import Places
from nvdriver_build.commands import CommandError, Commands
from nvdriver_build.kernel import Compiler

Definitions = Mapping[str, str]

_DEFINE = re.compile(r"#[ \t]*define[ \t]+(\w+)(.*)")
_COMMENT = re.compile(rb"^/\*.*?\*/", re.MULTILINE | re.DOTALL)
_COMPUTED = re.compile(rb"#[ \t]*include[ \t]+[A-Za-z_]")
"""An include whose name is a macro's value: it mentions no name."""
_VERSION = "NV_VERSION_STRING"
_MOST_WORDS = 200
"""Where more has changed, hardly an answer is left."""


def compiler_identity(compiler: Compiler, commands: Commands) -> str:
    """What tells one compiler from another: its version, size and time of it and of what it starts."""
    words = [compiler.text]
    started = (_asked(compiler.command, f"-print-prog-name={program}", commands) for program in ("cc1", "as"))
    for program in (compiler.command, *started):
        found = Path(commands.find(program) or program).stat()
        words.append(f"{Path(program).name} {found.st_size} {found.st_mtime_ns}")
    return "; ".join(words)


def _asked(command: str, question: str, commands: Commands) -> str:
    try:
        return commands.run([command, question], timeout=10).stdout.strip()
    except CommandError as error:
        raise OSError(str(error)) from error


class Inputs:
    """The files of one build that begins now, each read once."""

    def __init__(self, places: Places, version: str, compiler: str, source_names: Sequence[str]) -> None:
        self._places, self._source_names = places, frozenset(source_names)
        self._version, self._compiler = version, compiler
        self._content: dict[str, Optional[bytes]] = {}
        self._since = time.time()

    def lasts(self, name: str) -> bool:
        """Whether a file that was read is there for other builds, too: none that this one has made."""
        return not name.startswith("@tree/") or name[len("@tree/") :] in self._source_names

    def describe(self, files: Sequence[str]) -> dict[str, Any]:
        """What `changed` has to know to compare, later and elsewhere.

        OSError where one is gone, or was written to meanwhile: the compiler may have read something else.
        """
        definitions = {}
        digests = []
        for name in files:
            data = self._read(name)
            if data is None:
                raise OSError(f"{name} is gone")
            found = self._places.long(name).stat()
            if max(found.st_mtime, found.st_ctime) >= self._since:
                raise OSError(f"{name} was written to during the build")
            digests.append(hashlib.sha256(data).hexdigest())
            defined = _definitions(data) if name.startswith("@output/") else None
            if defined is not None:
                definitions[name] = defined
        return {
            "compiler": self._compiler,
            "version": self._version,
            "names": sorted(self._names()),
            "files": list(zip(files, digests)),
            "definitions": definitions,
        }

    def changed(self, then: Mapping[str, Any]) -> Optional[tuple[frozenset[int], Sequence[str]]]:
        """The numbers of the files that changed since `describe`, and the words; None where too much has."""
        if then["compiler"] != self._compiler:
            return None
        names = {Path(name).name for name in set(then["names"]) ^ self._names()}
        redefined = {name: self._redefined(name, old) for name, old in then["definitions"].items()}
        words = {word for found in redefined.values() for word in found or ()} | names
        if then["version"] != self._version:
            words.add(_VERSION)
        if len(words) > _MOST_WORDS:
            return None
        sought = [word.encode() for word in words]
        numbers = frozenset(
            number
            for number, (name, digest) in enumerate(then["files"])
            if (
                self._differs(name, digest, sought, bool(names))
                if redefined.get(name) is None
                else self._is_made_of(name, words)
            )
        )
        return numbers, sorted(words)

    def _differs(self, name: str, digest: str, words: Sequence[bytes], computed: bool) -> bool:
        data = self._read(name)
        if data is None or hashlib.sha256(data).hexdigest() != digest:
            return True
        return any(word in data for word in words) or (computed and bool(_COMPUTED.search(data)))

    def _redefined(self, name: str, old: Definitions) -> Optional[set[str]]:
        """The names whose definition differs; None where that cannot be told."""
        data = self._read(name)
        new = _definitions(data) if data is not None else None
        if new is None:
            return None
        found = {word for word in {*old, *new} if old.get(word) != new.get(word)}
        return {word[: -len("_MODULE")] if word.endswith("_MODULE") else word for word in found}

    def _is_made_of(self, name: str, words: Collection[str]) -> bool:
        """Whether definitions use a word that changed, which whoever uses these need not mention."""
        values = (_definitions(self._read(name) or b"") or {}).values()
        return any(word in value for value in values for word in words)

    def _names(self) -> set[str]:
        """Every header's name, of kernel and driver: one more, or one less, and another may be found."""
        arches = (path.name for path in (self._places.output / "arch").iterdir())
        folders = ("include", *(f"arch/{name}/include" for name in arches))
        trees = {"@sources": self._places.sources, "@output": self._places.output}
        found = {f"@tree/{name}" for name in self._source_names}
        for word, tree in trees.items():
            for folder in folders:
                found.update(f"{word}/{folder}/{name}" for name in _below(tree / folder))
        return found

    def _read(self, name: str) -> Optional[bytes]:
        if name not in self._content:
            try:
                self._content[name] = self._places.long(name).read_bytes()
            except OSError:
                self._content[name] = None
        return self._content[name]


def _below(folder: Path) -> Iterator[str]:
    """The names of all files below; include/config has empty ones, one for each option.

    Ubuntu's headers have links for folders.
    """
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        found = Path(place).stat()
        if (found.st_dev, found.st_ino) in seen:
            folders.clear()
            continue
        seen.add((found.st_dev, found.st_ino))
        base = os.path.relpath(place, folder)
        if base == ".":
            folders[:] = [name for name in folders if name != "config"]
        yield from (f"{base}/{name}" for name in files)


def _definitions(data: bytes) -> Optional[dict[str, str]]:
    """A file of nothing but definitions, one a line, and comments; None for any other."""
    found: dict[str, str] = {}
    for line in _COMMENT.sub(b"", data).decode("utf-8", "replace").splitlines():
        match = _DEFINE.fullmatch(line.strip())
        if match and not line.endswith("\\"):
            found[match.group(1)] = match.group(2)
        elif line.strip() and not line.startswith("//"):
            return None
    return found
