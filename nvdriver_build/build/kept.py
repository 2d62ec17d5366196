"""Answers of the compiler, kept for the next build: a hint, proven before use.

    FOLDER/NAME     a line with the sha256 of the rest; a line of JSON; the bytes of all objects, end to end

A build notes what it asks the compiler and what comes of it (`ask`). The next one, of another driver, for
another kernel or with other flags, takes what was asked in the same words and has not changed since
(`inputs`), and asks the compiler all else. What is damaged or odd is dropped: that costs time, never a build.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, Iterator, Mapping, Optional, Sequence

import structlog

from nvdriver_build.build.ask import Places, key_of, write_compiler
from nvdriver_build.build.inputs import Inputs, compiler_identity
from nvdriver_build.commands import CommandError, Commands
from nvdriver_build.files import publish
from nvdriver_build.kernel import Compiler
from nvdriver_build.source import Source

MOST = 4
"""Builds whose answers are kept."""
_LARGEST = 256 * 1024 * 1024
"""Bytes that a file of answers may have; NVIDIA's 535 has some 8 million."""
_READ = re.compile(rb"^\.+ (.+)$", re.MULTILINE)
"""A line of gcc -H."""
_ODD = re.compile(rb"^(@.*|-fplugin.*|-specs.*|-m\w+=native)$", re.MULTILINE)
"""Words that let the compiler look at what it does not list."""
_ERROR = re.compile(rb"^[^\n:]+:\d+(:\d+)?: (fatal )?error: ", re.MULTILINE)
_FAILURE = re.compile(
    rb"^[^\s:]+: ((fatal )?error|out of memory|.*No space)|internal compiler error"
    rb"|: fatal error: (?!.*: No such file or directory$)",
    re.MULTILINE,
)
"""gcc has an error in the text, or one of its own: killed, out of memory, the disk full, a file not read."""
_NUMBERED = re.compile(rb"conftest[0-9]+")
_NOT_OPTIONS = ("-c", "-E", "-M", "-", "conftest.c")
_FIRST = ("-include", "-imacros")
_TIMEOUT = 60.0
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError)

_Answer = dict[str, Any]
_log = structlog.get_logger()


def open_answers(
    file: Path, work: Path, places: Places, source: Source, compiler: Compiler, commands: Commands
) -> Optional[Answers]:
    """The answers for a build that keeps its own as `file`; None where the compiler cannot be told."""
    try:
        identity = compiler_identity(compiler, commands)
    except OSError as error:
        _log.warning("built without what was kept of earlier builds", why=str(error))
        return None
    return Answers(file, work, places, Inputs(places, source.version, identity, source.names), commands)


class Answers:
    """The answers for one build, which notes in `work`; what it learns becomes `file`, beside the others."""

    def __init__(self, file: Path, work: Path, places: Places, inputs: Inputs, commands: Commands) -> None:
        self._file, self._work = file, work
        self._places, self._inputs = places, inputs
        self._commands, self._command = commands, ""
        self._known: dict[str, _Answer] = {}
        self._first: dict[tuple[str, ...], Sequence[str]] = {}

    def take(self, command: str, *, objects: bool) -> str:
        """Lay out what is proven to be as it was; the words that call the compiler `command`. OSError."""
        self._command = command
        answers = self._work / "answers"
        answers.mkdir(parents=True)
        for file in kept_files(self._file.parent):
            try:
                self._take(file, answers)
            except _UNREADABLE as error:
                _log.warning("kept answers of the compiler are dropped", file=str(file), why=str(error))
                with contextlib.suppress(OSError):
                    file.unlink()
        return write_compiler(self._work, self._places, command, objects=objects, answers=bool(self._known))

    def _take(self, file: Path, answers: Path) -> None:
        document, objects = _read(file)
        changed = self._inputs.changed(document["inputs"])
        if changed is None:
            return
        numbers, words = changed
        files = [name for name, _ in document["inputs"]["files"]]
        for key, answer in document["answers"].items():
            if key in self._known or numbers.intersection(answer["reads"]):
                continue
            if any(word in answer["text"] for word in words):
                continue
            self._known[key] = {**answer, "reads": [files[number] for number in answer["reads"]]}
            self._lay_out(answers, key, self._known[key], objects)
        os.utime(file)

    def _lay_out(self, answers: Path, key: str, answer: _Answer, objects: memoryview) -> None:
        if answer["bytes"] is not None:
            start, size = answer["bytes"]
            answer["bytes"] = objects[start : start + size]
            (answers / f"{key}.o").write_bytes(answer["bytes"])
            (answers / f"{key}.deps").write_text(self._with_paths(answer["deps"]))
        (answers / key).write_text(f"{answer['code']}\n")

    def _with_paths(self, text: str) -> str:
        for path, word in self._places.names:
            text = text.replace(f"{word}/", f"{path}/")
        return text

    @property
    def used(self) -> bool:
        """Whether any answer was taken."""
        return bool(self._hits())

    def _hits(self) -> set[str]:
        with contextlib.suppress(OSError):
            return set((self._work / "notes/hits").read_text().split())
        return set()

    def keep(self) -> None:
        """Keep what the build asked and was told; where that cannot be, it is told."""
        asked = len(list((self._work / "notes").glob("*.code")))
        _log.info("answers of the compiler", asked=asked, from_earlier_builds=len(self._hits()))
        try:
            learned = dict(self._learned())
            if learned:
                self._write({**{key: self._known[key] for key in self._hits()}, **learned})
        except _UNREADABLE as error:
            _log.warning("the answers of the compiler are not kept", why=str(error))

    def _learned(self) -> Iterator[tuple[str, _Answer]]:
        generated = {path: path.read_bytes() for path in sorted((self._places.tree / "conftest").glob("*.h"))}
        for code in (self._work / "notes").glob("*.code"):
            found = self._note(code, generated)
            if found is not None:
                yield found

    def _note(self, code: Path, generated: Mapping[Path, bytes]) -> Optional[tuple[str, _Answer]]:
        """One call that was noted; None where it read what only this build has."""
        asked, status = code.with_suffix(".c"), int(code.read_text())
        words, is_test = code.with_suffix(".args").read_bytes(), asked.exists()
        if is_test:
            known = {} if b"\n-M\n" in words else _only(generated, "headers.h")
            text, answer = asked.read_bytes(), _no_object()
            said = code.with_suffix(".reads").read_bytes()
            if status and (not _ERROR.search(said) or _FAILURE.search(said)):
                return None
            found = [match.decode() for match in _READ.findall(said)]
            found += self._read_first(words, code.with_suffix(".cwd"))
        else:
            deps = code.with_suffix(".deps").read_text()
            known, text = generated, b""
            answer = {**_no_object(), "deps": self._without_paths(deps)}
            answer["bytes"] = code.with_suffix(".o").read_bytes()
            found = _prerequisites(deps)
        cwd = code.with_suffix(".cwd").read_text().rstrip("\n")
        reads = {os.path.normpath(f"{cwd}/{name}" if name[0] != "/" else name) for name in found}
        names = sorted(self._places.short(name) for name in reads - {str(path) for path in known})
        if _ODD.search(words) or not all(map(self._inputs.lasts, names)):
            return None
        key = key_of(words + text + b"".join(known.values()), self._places.rules(test=is_test))
        answer.update(code=status, text=text.decode("utf-8", "replace"), reads=names)
        return key, answer

    def _read_first(self, words: bytes, cwd: Path) -> Sequence[str]:
        """What `-include` makes every call with these words read, and gcc -H does not list; OSError."""
        asked = _NUMBERED.sub(b"conftest", words).decode("utf-8", "surrogateescape").splitlines()
        options = tuple(word for word in asked if word not in _NOT_OPTIONS)
        if not any(word.startswith(_FIRST) for word in options):
            return ()
        if options not in self._first:
            argv = [self._command, "-M", *options, "-x", "c", os.devnull]
            try:
                done = self._commands.run(argv, timeout=_TIMEOUT, cwd=Path(cwd.read_text().rstrip("\n")))
            except CommandError as error:
                raise OSError(str(error)) from error
            if not done.ok:
                raise OSError(f"what -include reads cannot be told: {done.stderr.strip()[-300:]}")
            self._first[options] = _prerequisites(done.stdout)
        return self._first[options]

    def _without_paths(self, text: str) -> str:
        for path, word in self._places.names:
            text = text.replace(f"{path}/", f"{word}/")
        return text

    def _write(self, answers: Mapping[str, _Answer]) -> None:
        files = sorted({name for answer in answers.values() for name in answer["reads"]})
        number = {name: at for at, name in enumerate(files)}
        objects, size, documents = list[bytes](), 0, dict[str, _Answer]()
        for key, answer in answers.items():
            data: Optional[bytes] = answer["bytes"]
            place = None if data is None else (size, len(data))
            if data is not None:
                objects.append(data)
                size += len(data)
            reads = [number[name] for name in answer["reads"]]
            documents[key] = {**answer, "bytes": place, "reads": reads}
        text = json.dumps({"inputs": self._inputs.describe(files), "answers": documents}).encode()
        body = (text, b"\n", *objects)
        digest = hashlib.sha256()
        for part in body:
            digest.update(part)
        publish(self._file, b"".join((digest.hexdigest().encode(), b"\n", *body)), 0o600, durable=False)
        for old in kept_files(self._file.parent)[MOST:]:
            old.unlink(missing_ok=True)


def _prerequisites(rule: str) -> list[str]:
    """The files in a rule for make, as gcc -M writes it."""
    return rule.replace("\\\n", " ").partition(":")[2].split()


def _no_object() -> _Answer:
    return {"bytes": None, "deps": ""}


def _only(generated: Mapping[Path, bytes], name: str) -> Mapping[Path, bytes]:
    return {path: data for path, data in generated.items() if path.name == name}


def kept_files(folder: Path) -> Sequence[Path]:
    """The files of answers, the last used first."""
    found = []
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            with contextlib.suppress(OSError):
                if not path.name.startswith("."):
                    found.append((-path.stat().st_mtime, path))
    return [path for _, path in sorted(found)]


def forget(folder: Path, before: float) -> None:
    """Drop what no build has used since then, in seconds since 1970."""
    for file in kept_files(folder):
        with contextlib.suppress(FileNotFoundError):
            if file.stat().st_mtime < before:
                file.unlink()


def _read(file: Path) -> tuple[dict[str, Any], memoryview]:
    """The document and the objects; ValueError where a byte of either is not as it was written."""
    if not file.is_file() or file.stat().st_size > _LARGEST:
        raise ValueError("it is no file of modest size")
    data = file.read_bytes()
    start = data.find(b"\n") + 1
    end = data.find(b"\n", start)
    if data[: start - 1] != hashlib.sha256(memoryview(data)[start:]).hexdigest().encode():
        raise ValueError("it is not as it was written")
    return json.loads(data[start:end]), memoryview(data)[end + 1 :]
