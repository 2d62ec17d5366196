"""File trees from a dict, for tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Mapping, Union

from attrs import frozen


@frozen
class Link:
    """A symbolic link to `target`."""

    target: str


def write_tree(root: Path, files: Mapping[str, Union[str, bytes, Link]]) -> Path:
    """Write files, with what they hold, and links below `root`; return `root`."""
    root.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = root.joinpath(*name.split("/"))  # never an absolute one
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Link):
            path.symlink_to(content.target)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content)
    return root


def nested(folder: Path, depth: int) -> None:
    """Folders in folders, `depth` of them, with a file in each; a hundred are more than a path can name."""
    folder.mkdir()
    name = "d" * 50
    here = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=here)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        there = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = there
    os.close(here)
