"""Wishes for the modules that a fake toolchain builds."""

from __future__ import annotations

from typing import Any, Dict

from fake_toolchain import FakeToolchain

from nvdriver_build.commands import SystemCommands
from nvdriver_build.kernel import find_headers, target_from_headers
from nvdriver_build.obtain import Wish, modules_to_build
from nvdriver_build.source import open_source


def wish_of(rig: FakeToolchain, **differ: Any) -> Wish:
    headers = find_headers(rig.headers)
    source = open_source(rig.source, "auto", rig.root, SystemCommands(rig.path))
    values: Dict[str, Any] = {
        "source": source,
        "target": target_from_headers(headers),
        "headers": headers,
        "proof": "release: a test",
        "modules": modules_to_build(source),
        "jobs": 3,
        **differ,
    }
    return Wish(**values)


def commands_of(rig: FakeToolchain) -> SystemCommands:
    return SystemCommands(rig.path)
