"""What a build log says: how far the build is, and why it failed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Iterator, Optional

from attrs import define, field, frozen

_STEP = re.compile(rb"^ *(?:CC \[M\]|CONFTEST:|LD \[M\]) +(\S+)$", re.MULTILINE)
_COMPILER = re.compile(
    r"^(?P<file>[^\s:][^:]*):(?P<line>\d+):(?:\d+:)? (?:fatal )?[Ee]rror: (?P<message>.+)$"
)
_OTHERS = (
    re.compile(r"^ERROR: modpost: (?P<message>.+)$"),
    re.compile(r"^\S+: error: (?P<message>objtool: .+)$"),
    re.compile(
        r"^(?:\S*/)?(?:[\w-]+-)?(?:ld|objtool|as|gcc|clang|cc1|strip)(?:[.-][\w.]+)?: "
        r"(?P<message>.*(?:rror|cannot|No space).*)$"
    ),
    re.compile(r"^(?P<message>.*No space left on device.*)$"),
    re.compile(r"^(?P<message>.*(?:Killed signal|internal compiler error).*)$"),
    re.compile(r"^\*\*\* (?P<message>.+) \*\*\*$"),
    re.compile(r"^make(?:\[\d+\])?: \*\*\* (?P<message>.+)$"),
)
_SOURCES = re.compile(r"^\s*\w*SOURCES\w*\s*\+?=\s*(\S+\.c)\s*$", re.MULTILINE)
_COMPILE_TESTS = re.compile(r"^\s*NV_CONFTEST_\w+_COMPILE_TESTS\s*\+=\s*(\S+)", re.MULTILINE)
_HEADER_TESTS = re.compile(r"NV_HEADER_PRESENCE_TESTS\s*=((?:.*\\\n)*.*)")


@frozen
class Failure:
    """The first real error of a build; `file` and `line` where a compiler named them."""

    message: str
    file: Optional[str] = None
    line: Optional[int] = None

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}" if self.file else self.message


def first_failure(log: Path) -> Optional[Failure]:
    """The first error in a build log; a compiler's before any other, conftest's own tests never."""
    other: Optional[Failure] = None
    for line in _lines(log):
        match = _COMPILER.match(line)
        if match and not Path(match["file"]).name.startswith("conftest"):
            return Failure(match["message"], match["file"], int(match["line"]))
        if other is None:
            other = next((Failure(m["message"]) for pattern in _OTHERS if (m := pattern.match(line))), None)
    return other


def _lines(log: Path) -> Iterator[str]:
    with log.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            yield line.rstrip("\n")


def tail(log: Path, lines: int = 20) -> str:
    """The last lines of a log."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 200 * lines))
        return "\n".join(file.read().decode("utf-8", "replace").splitlines()[-lines:])


def count_steps(root: Path, modules: tuple[str, ...]) -> int:
    """How many compilations and conftests a build of `modules` has; an estimate, for progress."""
    kbuilds = [
        root / "Kbuild",
        *sorted(root.glob("*.mk")),
        *(path for name in modules for path in sorted((root / name).glob("*.Kbuild"))),
    ]
    text = "\n".join(path.read_text(errors="replace") for path in kbuilds if path.is_file())
    headers = _HEADER_TESTS.search(text)
    return (
        len(set(_SOURCES.findall(text)))
        + len(set(_COMPILE_TESTS.findall(text)))
        + (headers.group(1).count(".h") if headers else 0)
        + 2 * len(modules)
    )


@define
class Follower:
    """Counts the steps that a growing log reports, reading each byte once."""

    log: Path
    done: int = 0
    _offset: int = field(default=0, init=False)
    _rest: bytes = field(default=b"", init=False)

    def update(self) -> int:
        """Read what is new; the steps done so far."""
        with self.log.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        self._offset += len(data)
        whole, newline, self._rest = (self._rest + data).rpartition(b"\n")
        self.done += len(_STEP.findall(whole + newline))
        return self.done
