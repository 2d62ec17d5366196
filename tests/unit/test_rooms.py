"""The table of rooms (docs/architecture.md), held to the code: the arrows of imports do not turn."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple

import pytest

PACKAGE = Path(__file__).parents[2] / "nvdriver_build"
ROOMS = (
    "errors", "files", "commands", "elf", "kernel", "fit", "source", "sets", "mofed", "build", "signing",
    "store", "registry", "toolkit", "obtain", "loader", "userspace", "readiness", "config", "node", "fleet",
    "cli",
)  # fmt: skip
"""From the ground up: a room imports only rooms before it."""
LINES = 300
"""Lines that a file may have."""
ONLY_IN: Dict[str, str] = {
    "os.environ": "config",
    "os.environb": "config",
    "os.getenv": "config",
    "sys.exit": "cli",
    "exit": "cli",
    "quit": "cli",
    "SystemExit": "cli",
    "os._exit": "nowhere",
    "os.system": "nowhere",
    "os.popen": "nowhere",
    "os.fork": "nowhere",
    "print": "nowhere",
    "sh": "commands",
    "psutil": "commands loader userspace",
    "subprocess": "nowhere",
    "multiprocessing": "nowhere",
    "click": "cli",
    "rich": "cli",
    "pickle": "nowhere",
    "eval": "nowhere",
    "exec": "nowhere",
}
"""Names and modules that only these rooms may use."""
PURE = {"fit": ("os", "io", "pathlib", "open", "structlog", "time"), "elf": ("nvdriver_build.commands",)}
"""What a room may not use at all."""
MAY_USE = {"fleet": ("errors", "files", "commands")}
"""Rooms that reach the others only by Protocols: what they may import, besides themselves."""


class Use(NamedTuple):
    """A name that code uses: `os.environ`, an imported module, a function; and whether inside a function."""

    name: str
    line: int
    local: bool


def uses(source: str) -> Iterator[Use]:
    """Every import (with `from a import b` as `a.b` and `a`) and every dotted name that code reads."""
    tree = ast.parse(source)
    local = {id(inner) for node in ast.walk(tree) if isinstance(node, _FUNCTIONS) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        for name in _names(node):
            yield Use(name, getattr(node, "lineno", 0), id(node) in local)


_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def _names(node: ast.AST) -> List[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: relative imports hide their room"
        return [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return [f"{node.value.id}.{node.attr}"]
    return []


def is_import(name: str, of: str) -> bool:
    return name == of or name.startswith(of + ".")


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].partition(".")[0]


def violations(room: str, source: str) -> List[str]:
    """What code of `room` may not do."""
    found = []
    for use in uses(source):
        found += [f"{use.line}: {why}" for why in _against(room, use)]
    return found


def _against(room: str, use: Use) -> Iterator[str]:
    other = use.name.split(".")[1] if use.name.startswith("nvdriver_build.") else None
    if other is not None and other != "__version__":
        if other not in ROOMS:
            yield f"{other} is no room of the table"
        elif ROOMS.index(other) > ROOMS.index(room):
            yield f"{room} imports {other}, which is above it"
        elif room in MAY_USE and other not in (room, *MAY_USE[room]):
            yield f"{room} imports {other}, which it may not know"
        if use.local and room != "cli" and other != room:
            yield f"{room} imports {other} inside a function"
    for name, rooms in ONLY_IN.items():
        if is_import(use.name, name) and room not in rooms.split():
            yield f"{name} is for {rooms}, not for {room}"
    for name in PURE.get(room, ()):
        if is_import(use.name, name):
            yield f"{room} uses {name}"


def files() -> List[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path.name not in ("__main__.py",))


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_rooms(path: Path) -> None:
    """A file imports only rooms below its own and does only what its room may; it is not too long."""
    if path != PACKAGE / "__init__.py":
        assert violations(room_of(path), path.read_text()) == []
    assert len(path.read_text().splitlines()) <= LINES


def test_every_room_is_in_the_table() -> None:
    """What lies in the package is a room; the package's own two files import the command line at most."""
    rooms = {room_of(path) for path in files()} - {"__init__"}
    assert rooms <= set(ROOMS)
    assert [use.name for use in uses((PACKAGE / "__init__.py").read_text()) if "nvdriver" in use.name] == []
    main = {use.name for use in uses((PACKAGE / "__main__.py").read_text()) if "nvdriver" in use.name}
    assert main == {"nvdriver_build.cli", "nvdriver_build.cli.main"}


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("files", "from nvdriver_build.store import Store"),
        ("files", "import nvdriver_build.store"),
        ("files", "from nvdriver_build import store"),
        ("store", "def f():\n    from nvdriver_build.sets import MANIFEST"),
        ("store", "from nvdriver_build.attic import thing"),
        ("store", "import os\nx = os.environ['HOME']"),
        ("store", "from os import environ"),
        ("store", "import os\nx = os.getenv('HOME')"),
        ("node", "import sys\nsys.exit(1)"),
        ("node", "raise SystemExit(1)"),
        ("build", "import subprocess"),
        ("build", "from subprocess import run"),
        ("build", "import sh"),
        ("loader", "import os\nos.system('rmmod nvidia')"),
        ("loader", "print('loaded')"),
        ("node", "import click"),
        ("fit", "from pathlib import Path"),
        ("fit", "x = open('/proc/version')"),
        ("elf", "from nvdriver_build.commands import SystemCommands"),
        ("store", "x = eval('1')"),
        ("fleet", "from nvdriver_build.store import Store"),
        ("fleet", "from nvdriver_build.kernel import KernelTarget"),
    ],
)
def test_what_is_forbidden_is_seen(room: str, source: str) -> None:
    """The test sees what it is there for."""
    assert violations(room, source) != []


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("store", "from nvdriver_build.sets import MANIFEST"),
        ("store", "from nvdriver_build import __version__"),
        ("kernel", "from nvdriver_build.kernel.target import KernelTarget"),
        ("config", "import os\nx = os.environ"),
        ("cli", "def f():\n    from nvdriver_build.node import Node"),
        ("files", "def f():\n    import zstandard"),
        ("commands", "import sh"),
        (
            "fleet",
            "from nvdriver_build.fleet.facts import Node\nfrom nvdriver_build.errors import ClusterError",
        ),
    ],
)
def test_what_is_allowed_is_let_through(room: str, source: str) -> None:
    """And lets pass what is fine."""
    assert violations(room, source) == []
