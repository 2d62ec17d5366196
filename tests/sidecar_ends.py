"""Either end of the sidecar as a process: `python sidecar_ends.py toolkit|driver ROOT [ARRIVAL PATIENCE]`.

ROOT is laid out by sidecar_rig.Pod. Logs are JSON lines on standard error; what came of it is one on standard
output. The driver's end goes as far as a checked set in the node's store.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Optional

from nvdriver_build.build import Progress
from nvdriver_build.cli.logs import configure
from nvdriver_build.cli.signals import StopFlag
from nvdriver_build.commands import SystemCommands
from nvdriver_build.errors import NvdriverError, Stopped
from nvdriver_build.kernel import target_from_headers
from nvdriver_build.obtain import Wish, build_ordered, modules_to_build, obtain
from nvdriver_build.sets import Recipe
from nvdriver_build.source import open_source
from nvdriver_build.store import Store
from nvdriver_build.toolkit import Order, Server, Shared, Sidecar


def toolkit(root: Path) -> None:
    """Serve until a signal."""
    shared = Shared(root / "shared")
    commands = SystemCommands(f"{root}/toolchain/bin:/usr/bin:/bin", StopFlag().check)
    Server(shared, root / "dtk", commands, lambda order, *rest: build_ordered(order, shared, *rest)).serve()


def driver(root: Path, arrival: float, patience: float) -> dict[str, object]:
    """Get a set for the kernel that the node runs, in the steps of `run`."""
    check = StopFlag().check
    commands = SystemCommands("/usr/bin:/bin", check)
    sidecar = Sidecar(Shared(root / "shared"), root / "bundle", check, arrival, patience)
    sidecar.prepare()
    with sidecar.headers((root / "kernel").read_text()) as headers:
        target = target_from_headers(headers)
    source = open_source(root / "toolchain/source", "open", root, commands)
    wish = Wish(source, target, None, "release: a test", modules_to_build(source), jobs=1)

    def elsewhere(wish: Wish, recipe: Recipe, progress: Optional[Progress]) -> Path:
        with sidecar.headers(recipe.kernel_release):
            pass
        return sidecar.build(Order(recipe, wish.proof, wish.jobs), wish.source, progress)

    obtained = obtain(wish, Store(root / "store"), commands, elsewhere=elsewhere)
    sidecar.dismiss()
    return {"key": obtained.set.key, "origin": obtained.origin}


def main(end: str, root: str, *bounds: str) -> int:
    """Run one end; its exit code."""
    configure("json", logging.INFO)
    try:
        if end == "toolkit":
            toolkit(Path(root))
        else:
            print(json.dumps(driver(Path(root), *map(float, bounds))))
    except NvdriverError as error:
        print(json.dumps({"error": error.document()}))
        return error.exit_code
    except Stopped as stopped:
        return 128 + stopped.signal
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
