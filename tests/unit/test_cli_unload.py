"""`unload` in a container that is not the driver's."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvdriver_build.cli.driver import _require_nodes_own
from nvdriver_build.errors import UsageError


def test_a_folder_that_is_not_the_nodes(tmp_path: Path) -> None:
    """Where the node has another /run/nvidia, what is announced there would stay."""
    node, here = tmp_path / "node", tmp_path / "run"
    (node / here.relative_to("/")).mkdir(parents=True)
    for there in (False, True):
        if there:
            here.mkdir()
        with pytest.raises(UsageError, match="is not the node's here") as caught:
            _require_nodes_own(here, node)
        assert caught.value.hint == f"mount it: -v {here}:{here}:rshared"


@pytest.mark.parametrize("case", ["the same", "none on the node", "no node to be seen"])
def test_a_folder_that_is_the_nodes(tmp_path: Path, case: str) -> None:
    """It is the same one, or nothing says that it is not."""
    node, here = tmp_path / "node", tmp_path / "run"
    here.mkdir()
    if case == "the same":
        (node / here.parent.relative_to("/")).mkdir(parents=True)
        (node / here.relative_to("/")).symlink_to(here)
    elif case == "none on the node":
        node.mkdir()
    _require_nodes_own(here, node)
