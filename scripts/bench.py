"""The part of scripts/bench that needs the virtual environment. Prints a Markdown table."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable, Dict, List

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from real_build import unpacked  # noqa: E402
from renamed_kernel import renamed  # noqa: E402
from vm.kit import Kit, KitKernel, load_kit  # noqa: E402

NAMES = ("nvidia", "nvidia-uvm", "nvidia-modeset", "nvidia-drm")
SELF_PEAK = (
    "import resource, sys\nfrom nvdriver_build.cli import main\n"
    "try:\n    main(sys.argv[1:])\n"
    "finally:\n    print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)\n"
)
DKMS_CONF = """PACKAGE_NAME=nvidia-bench
PACKAGE_VERSION=1
AUTOINSTALL=no
MAKE[0]="'make' -j{jobs} {variables} modules"
CLEAN="true"
"""


class Bench:
    """One run: a folder for everything, the kernel, the source."""

    def __init__(self, folder: Path, kit: Kit) -> None:
        self.folder = folder
        self.kernel: KitKernel = kit.kernel("a")
        self.source = unpacked(kit.source("open"))
        self.jobs = len(os.sched_getaffinity(0))
        self.seconds: Dict[str, List[float]] = {}
        self.peaks: List[int] = []
        self.variables = [
            f"SYSSRC={self.kernel.common}",
            f"SYSOUT={self.kernel.headers}",
            "CC=gcc-12",
            "NV_EXCLUDE_KERNEL_MODULES=nvidia-peermem",
        ]

    def time(self, name: str, act: Callable[[], object]) -> None:
        started = time.monotonic()
        act()
        self.seconds.setdefault(name, []).append(time.monotonic() - started)
        print(f"{name}: {self.seconds[name][-1]:.2f} s", file=sys.stderr, flush=True)

    def plain_make(self) -> None:
        tree = self.fresh("plain")
        shutil.copytree(self.source, tree)
        self.time(
            "plain make", lambda: run(["make", f"-j{self.jobs}", "-C", tree, *self.variables, "modules"])
        )

    def dkms(self) -> None:
        place = self.fresh("dkms")
        tree = place / "src" / "nvidia-bench-1"
        shutil.copytree(self.source, tree)
        modules = "".join(
            f'BUILT_MODULE_NAME[{number}]="{name}"\nDEST_MODULE_LOCATION[{number}]="/updates"\n'
            for number, name in enumerate(NAMES)
        )
        conf = DKMS_CONF.format(jobs=self.jobs, variables=" ".join(self.variables)) + modules
        (tree / "dkms.conf").write_text(conf)
        (place / "tree").mkdir()
        options = ["--dkmstree", place / "tree", "--sourcetree", place / "src", "-k", self.kernel.release]
        options += ["--kernelsourcedir", self.kernel.headers, "-m", "nvidia-bench", "-v", "1"]
        run(["dkms", "add", *options])
        self.time("dkms build", lambda: run(["dkms", "build", *options]))

    def ours(self) -> None:
        store = self.fresh("store")
        self.time("nvdriver-build build", lambda: self.build(store))

    def build(self, store: Path) -> None:
        argv = [sys.executable, "-c", SELF_PEAK, "build", "--source", self.source]
        argv += ["--headers", self.kernel.headers, "--output", self.folder / "set"]
        finished = run(argv, NVDRIVER_STORE=str(store))
        self.peaks.append(int(finished.stderr.rsplit("peak ", 1)[1]))

    def verify(self) -> None:
        modules = [self.folder / "set" / f"{name}.ko" for name in NAMES] + [self.folder / "nvidia-peermem.ko"]
        command = [
            sys.executable,
            "-m",
            "nvdriver_build",
            "verify",
            *modules,
            "--headers",
            self.kernel.headers,
        ]
        self.time("verify of five modules", lambda: run(command))

    def ready_to_load(self) -> None:
        self.ready("run, store hit, to ready to load", self.kernel)

    def ready_on_the_next_kernel(self) -> None:
        """A kernel update that changes no symbol: the set is that of the kernel before."""
        kernel = renamed(self.kernel, self.made("next"), "next")
        self.ready("run, the set of another kernel, to ready to load", kernel)

    def ready(self, name: str, kernel: KitKernel) -> None:
        argv = [sys.executable, ROOT / "scripts" / "bench_ready.py", self.fresh("node"), kernel.release]
        argv += [kernel.headers, kernel.modules, self.source, self.folder / "store"]
        self.time(name, lambda: run(argv))

    def made(self, name: str) -> Path:
        self.fresh(name).mkdir()
        return self.folder / name

    def fresh(self, name: str) -> Path:
        shutil.rmtree(self.folder / name, ignore_errors=True)
        return self.folder / name

    def peermem(self) -> None:
        """The fifth module, for verify: only plain make builds it without MOFED."""
        run(["make", f"-j{self.jobs}", "-C", self.folder / "plain", *self.variables[:3], "modules"])
        run(
            [
                "strip",
                "--strip-debug",
                "-o",
                self.folder / "nvidia-peermem.ko",
                self.folder / "plain/nvidia-peermem.ko",
            ]
        )

    def same_text(self) -> List[str]:
        """The modules whose .text is not that of plain make."""
        return [
            name for name in NAMES if text(self.folder / "plain", name) != text(self.folder / "set", name)
        ]

    def table(self) -> str:
        make = statistics.median(self.seconds["plain make"])
        rows = ["| what | median s | all s | of plain make |", "|---|---|---|---|"]
        for name, values in self.seconds.items():
            median = statistics.median(values)
            ratio = (
                f"{median / make:.2f}" if name in ("plain make", "dkms build", "nvdriver-build build") else ""
            )
            rows.append(f"| {name} | {median:.2f} | {', '.join(f'{v:.2f}' for v in values)} | {ratio} |")
        rows.append("")
        rows.append(f"Peak memory of our own process in a build: {max(self.peaks) / 1024:.0f} MiB.")
        different = self.same_text()
        rows.append(f".text of every module equal to plain make's: {different or 'yes'}.")
        return "\n".join(rows)


def text(folder: Path, name: str) -> bytes:
    with tempfile.NamedTemporaryFile() as out:
        run(["objcopy", "-O", "binary", "--only-section=.text", folder / f"{name}.ko", out.name])
        return Path(out.name).read_bytes()


def run(argv: List[object], **environment: str) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in argv]
    finished = subprocess.run(words, capture_output=True, text=True, env={**os.environ, **environment})
    if finished.returncode:
        sys.exit(
            f"{' '.join(words)}: exit {finished.returncode}\n{(finished.stdout + finished.stderr)[-3000:]}"
        )
    return finished


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    kit = load_kit("a", "open")
    with tempfile.TemporaryDirectory(prefix="nvdriver-bench-", dir="/var/tmp") as folder:
        bench = Bench(Path(folder), kit)
        for _ in range(rounds):
            bench.plain_make()
            bench.dkms()
            bench.ours()
        bench.peermem()
        for _ in range(rounds):
            bench.verify()
            bench.ready_to_load()
            bench.ready_on_the_next_kernel()
        print(json.dumps({"rounds": rounds, "jobs": bench.jobs}), file=sys.stderr)
        print(bench.table())


if __name__ == "__main__":
    main()
