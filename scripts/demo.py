"""The part of scripts/quickstart that needs the virtual environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, Sequence

from click import secho

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from vm import fakegpu  # noqa: E402
from vm.kit import Kit, KitKernel, load_kit  # noqa: E402
from vm.machine import Machine  # noqa: E402

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nvdriver-build" / "quickstart"
COMMAND = ROOT / ".venv" / "bin" / "nvdriver-build"
READY_SECONDS = 300


def main() -> None:
    steps: List[tuple[str, float, str]] = []
    started = time.monotonic()

    def done(name: str, result: str) -> None:
        nonlocal started
        steps.append((name, time.monotonic() - started, result))
        started = time.monotonic()

    title("real kernel, headers and NVIDIA source")
    kit = load_kit("a", "open", "busybox")
    kernel, source = kit.kernel("a"), unpacked(kit)
    done("fetch", kernel.release)

    title("build")
    built = nvdriver(
        "build", "--json", "--source", source, "--headers", kernel.headers, "--output", CACHE / "set"
    )
    done(f"build ({built['from']})", f"{len(built['modules'])} modules, key {built['key'][:12]}")

    title("verify")
    fit = nvdriver("verify", "--json", CACHE / "set", "--headers", kernel.headers)
    done("verify", fit["fit"])

    title("a real kernel with a fake GPU")
    with tempfile.TemporaryDirectory(prefix="nvdriver-quickstart-") as folder:
        seen = drive(kit, kernel, source, Path(folder), done)
    show(steps, fit, seen)


def unpacked(kit: Kit) -> Path:
    """The source as a tree, as a driver image has it."""
    tree = CACHE / "source"
    if not tree.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as private:
            subprocess.run(["tar", "-C", private, "-xf", kit.source("open")], check=True)
            (Path(private) / "modules").rename(tree)
    return tree / "nvidia-open-kernel"


def nvdriver(*arguments: Any) -> Dict[str, Any]:
    """Run the command as a user would; its JSON document."""
    argv = [str(COMMAND), *map(str, arguments)]
    secho(f"$ {' '.join(argv)}", dim=True)
    finished = subprocess.run(
        argv, stdout=subprocess.PIPE, env={**os.environ, "NVDRIVER_STORE": str(CACHE / "store")}
    )
    if finished.returncode:
        sys.exit(finished.returncode)
    document: Dict[str, Any] = json.loads(finished.stdout)
    return document


def drive(kit: Kit, kernel: KitKernel, source: Path, folder: Path, done: Any) -> Dict[str, str]:
    """Boot, run the driver, look, end it; what was seen."""
    (folder / "fakegpu").mkdir()
    module = fakegpu.build(kernel, folder / "fakegpu")
    settings = {
        "NVDRIVER_STORE": CACHE / "store",
        "NVDRIVER_SOURCE": source,
        "NVDRIVER_HEADERS": kernel.headers,
    }
    export = "export " + " ".join(f"{name}='{value}'" for name, value in settings.items())
    with Machine(kernel, kit.busybox, folder) as vm:
        done("boot", "a real kernel in QEMU, emulated")
        vm.run(f"insmod {module}")
        vm.run(f"{export}\n{COMMAND} run >run.log 2>&1 & echo $! >pid")
        vm.run(
            "until grep -q ^Ready /run/nvidia/validations/.driver-daemons-status 2>/dev/null; do"
            " kill -0 $(cat pid) || { cat run.log; exit 1; }; sleep 0.5; done",
            timeout=READY_SECONDS,
        )
        done("run, until ready", "from the store; this machine is emulated")
        stub = "printf '#!/bin/sh\\necho a stub for nvidia-smi\\n' >bin/nvidia-smi; chmod +x bin/*"
        vm.run(f"mkdir bin; {stub}; PATH=$PWD/bin:$PATH {COMMAND} probe startup")
        seen = {
            "stages": vm.run("cat /run/nvidia/nvdriver-build/status.json").stdout,
            "version": vm.run("cat /proc/driver/nvidia/version").stdout,
            "files": vm.run("cd /run/nvidia/validations && head .driver*").stdout,
        }
        vm.run("kill -TERM $(cat pid); while kill -0 $(cat pid) 2>/dev/null; do sleep 0.1; done")
        seen["left"] = vm.run("grep ^nvidia /proc/modules; ls -A /run/nvidia/validations").stdout
        done("SIGTERM, until unloaded", "nothing left" if not seen["left"].strip() else seen["left"])
    return seen


def show(steps: List[tuple[str, float, str]], fit: Dict[str, Any], seen: Dict[str, str]) -> None:
    title("what happened")
    timings = json.loads(seen["stages"])["timings"]
    rows = [(name, f"{seconds:.1f}", result) for name, seconds, result in steps]
    rows += [(f"  run: {name}", f"{seconds:.1f}", "in the VM") for name, seconds in timings.items()]
    table(("stage", "seconds", "result"), rows)
    table(("module", "fit"), [(module["name"], module["fit"]) for module in fit["modules"]])
    secho("/proc/driver/nvidia/version", bold=True)
    secho(seen["version"])
    secho("/run/nvidia/validations", bold=True)
    secho(seen["files"])


def title(text: str) -> None:
    secho(f"\n-- {text} {'-' * (76 - len(text))}", bold=True)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    for number, row in enumerate((head, *rows)):
        secho("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip(), bold=not number)
    secho("")


if __name__ == "__main__":
    main()
