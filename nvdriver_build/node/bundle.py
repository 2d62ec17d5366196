"""One tar for a support case: facts, status, logs. The environment and the configuration's values stay out,
but for settings that are known to hold no secret."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Iterator

import attrs

from nvdriver_build import __version__
from nvdriver_build.commands import CommandError, Commands
from nvdriver_build.config import Config
from nvdriver_build.files import publish
from nvdriver_build.loader.host import Host, driver_modules
from nvdriver_build.node.doctor import examine

_LOG_LIMIT = 4 * 1024 * 1024
"""Bytes of each log that are taken, from its end."""
_PROGRAMS = {"dmesg": ["dmesg"], "lsmod": ["lsmod"], "lspci": ["lspci", "-nnk", "-d", "10de:"]}
Content = tuple[str, bytes]


def write_bundle(
    output: Path, config: Config, host: Host, machine: str, commands: Commands
) -> tuple[str, ...]:
    """Write the .tar.gz, whole or not at all; the names of the files in it. Raises OSError."""
    buffer = io.BytesIO()
    names = []
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in _contents(config, host, machine, commands):
            member = tarfile.TarInfo(f"nvdriver-support/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
            names.append(name)
    publish(output, buffer.getvalue(), 0o600)
    return tuple(names)


def _contents(config: Config, host: Host, machine: str, commands: Commands) -> Iterator[Content]:
    yield "version", f"{__version__}\n".encode()
    yield "doctor.json", _json([attrs.asdict(check) for check in examine(config, host, machine, commands)])
    open_fields = [
        field.name for field in attrs.fields(Config) if field.repr
    ]  # the others may hold passwords
    yield "config.json", _json({name: str(getattr(config, name)) for name in open_fields})
    yield "modules.json", _json({name: attrs.asdict(module) for name, module in driver_modules(host).items()})
    yield from _files(config, host)
    yield from _outputs(commands)


def _files(config: Config, host: Host) -> Iterator[Content]:
    places = [
        config.run_dir / "nvdriver-build/status.json",
        host.proc / "driver/nvidia/version",
        *_glob(config.run_dir / "validations", ".driver*"),
        *_glob(config.parameters, "*.conf"),
        *_glob(config.store / "logs", "*.log"),
        *(folder / "manifest.json" for folder in _glob(config.store / "sets", "*")),
    ]
    for path in places:
        if _is_file(path):
            yield f"files{path.as_posix()}", _tail(path)


def _outputs(commands: Commands) -> Iterator[Content]:
    for name, argv in _PROGRAMS.items():
        try:
            yield f"{name}.txt", commands.run(argv, timeout=20).output.encode()
        except CommandError as error:
            yield f"{name}.txt", f"{error}\n".encode()


def _glob(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(folder.glob(pattern))
    except OSError:  # what cannot be looked into is told by doctor.json
        return []


def _is_file(path: Path) -> bool:
    """Whether there is a file; one that may not be looked at counts, since `_tail` then says why."""
    try:
        return path.is_file()
    except OSError:
        return True


def _tail(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LOG_LIMIT))
            return file.read(_LOG_LIMIT)
    except OSError as error:
        return f"cannot be read: {error}\n".encode()


def _json(document: object) -> bytes:
    return (json.dumps(document, indent=1, default=str) + "\n").encode()
