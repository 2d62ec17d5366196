"""Settings of a daemon: NAME=VALUE lines in its own configuration file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Mapping

from nvdriver_build.errors import LoadError, UsageError
from nvdriver_build.files import publish

_NAME = re.compile(r"[A-Za-z0-9_]+")


def write_settings(file: Path, settings: Mapping[str, str]) -> None:
    """Let each NAME=VALUE stand in `file`: in the place of its line, else at the end.

    UsageError for a name or value that would not be one line; LoadError where there is no such file.
    """
    for name, value in settings.items():
        _require_line(name, value)
    if not settings:
        return
    try:
        before = file.read_bytes()
        after = _with(before, settings)
        if after != before:
            publish(file, after)
    except OSError as error:
        raise LoadError(
            f"NVFM_CONFIG_{next(iter(settings))} cannot be set in {file}: {error.strerror}",
            hint="the image has to hold the fabric manager with its configuration; or take the setting away",
        ) from error


def _require_line(name: str, value: str) -> None:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"NVFM_CONFIG_{name}: {name!r} is no name of a setting", hint="letters, digits and _ make one"
        )
    if not value.isprintable():
        raise UsageError(f"NVFM_CONFIG_{name} is {value!r}", hint="it takes one line of printable text")


def _with(text: bytes, settings: Mapping[str, str]) -> bytes:
    for name, value in settings.items():
        line = f"{name}={value}".encode()
        pattern = re.compile(rb"^%s[ \t]*=.*$" % name.encode(), re.MULTILINE)
        text = _replaced(text, pattern, line) if pattern.search(text) else _appended(text, line)
    return text


def _replaced(text: bytes, pattern: re.Pattern[bytes], line: bytes) -> bytes:
    return pattern.sub(line.replace(b"\\", rb"\\"), text)


def _appended(text: bytes, line: bytes) -> bytes:
    gap = b"" if not text or text.endswith(b"\n") else b"\n"
    return text + gap + line + b"\n"
