"""The part of scripts/bench that needs the virtual environment. Prints a Markdown table."""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Optional

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from keys import make_identity  # noqa: E402
from oci_registry import OciRegistry, oci_registry  # noqa: E402
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


MAKE, DKMS, COLD = "plain `make -j{}`", "`dkms build`", "`build`, a kernel never seen"
PATCH, FLAGS = "`build`, another patch level of the driver", "`build`, other flags (`--debug-info`)"
SIBLING, OTHER_ABI = "`build`, a sibling kernel", "`build`, a kernel of another ABI"
LOCAL, COMPATIBLE = "`run`, local hit, to ready to load", "`run`, compatible hit, to ready to load"
REGISTRY = "`run`, registry hit, to ready to load"
VERIFY = "`verify` of five modules"


class Cost(NamedTuple):
    """What one run took: wall and CPU time in seconds, of it and all that it started, and bytes written."""

    wall: float
    cpu: float
    written: float


def spent() -> Cost:
    """What all children that have ended took until now; getrusage(2) counts written blocks of 512 bytes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Cost(time.monotonic(), used.ru_utime + used.ru_stime, used.ru_oublock * 512)


class Bench:
    """One run: a folder for everything, the kernel, the source."""

    def __init__(self, folder: Path, kit: Kit) -> None:
        self.folder = folder
        self.kernel: KitKernel = kit.kernel("a")
        self.other: KitKernel = kit.kernel("b")
        self.source = unpacked(kit.source("open"))
        self.jobs = len(os.sched_getaffinity(0))
        self.costs: Dict[str, List[Cost]] = {}
        self.peaks: List[int] = []
        self.variables = [
            f"SYSSRC={self.kernel.common}",
            f"SYSOUT={self.kernel.headers}",
            "CC=gcc-12",
            "NV_EXCLUDE_KERNEL_MODULES=nvidia-peermem",
        ]

    def time(self, name: str, act: Callable[[], object]) -> None:
        before = spent()
        act()
        after = spent()
        cost = Cost(after.wall - before.wall, after.cpu - before.cpu, after.written - before.written)
        self.costs.setdefault(name, []).append(cost)
        print(f"{name}: {cost.wall:.2f} s, CPU {cost.cpu:.2f} s", file=sys.stderr, flush=True)

    def plain_make(self) -> None:
        tree = self.fresh("plain")
        shutil.copytree(self.source, tree)
        argv = ["make", f"-j{self.jobs}", "-C", tree, *self.variables, "modules"]
        self.time(MAKE.format(self.jobs), lambda: run(argv))

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
        self.time(DKMS, lambda: run(["dkms", "build", *options]))

    def ours(self) -> None:
        self.build(COLD, self.fresh("store"), self.source, self.kernel, "set")

    def patched(self) -> None:
        """The same source under another version: what a patch level changes beside, a build does, too."""
        source = self.fresh("patched")
        shutil.copytree(self.source, source)
        kbuild = source / "Kbuild"
        kbuild.write_text(kbuild.read_text().replace("535.261.03", "535.261.99"))
        self.build(PATCH, self.after_the_first(), source, self.kernel)

    def flags(self) -> None:
        self.build(FLAGS, self.after_the_first(), self.source, self.kernel, "other", "--debug-info")

    def sibling(self) -> None:
        """One of another release and with another setting: no set of the first is taken for it."""
        kernel = renamed(self.kernel, self.made("sibling"), "next", setting="18")
        self.build(SIBLING, self.after_the_first(), self.source, kernel)

    def other_abi(self) -> None:
        self.build(OTHER_ABI, self.after_the_first(), self.source, self.other)

    def after_the_first(self) -> Path:
        """A store that has what the first build has learned, and no set."""
        store = self.made("store-after")
        shutil.copytree(self.folder / "store/kept", store / "kept")
        return store

    def build(
        self, row: str, store: Path, source: Path, kernel: KitKernel, output: str = "other", *more: str
    ) -> None:
        argv = [sys.executable, "-c", SELF_PEAK, "build", "--source", source]
        argv += ["--headers", kernel.headers, "--output", self.fresh(output), *more]
        self.time(row, lambda: self.peaks.append(peak(run(argv, NVDRIVER_STORE=str(store)))))

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
        self.time(VERIFY, lambda: run(command))

    def ready_to_load(self) -> None:
        self.ready(LOCAL, self.kernel)

    def ready_on_the_next_kernel(self) -> None:
        """A kernel update that changes no symbol: the set is that of the kernel before."""
        kernel = renamed(self.kernel, self.made("next"), "next")
        self.ready(COMPATIBLE, kernel)

    def ready_from_a_registry(self, registry: OciRegistry) -> None:
        """A node whose store is empty; bytes are those that the registry sends."""
        settings = [f"{name}={value}" for name, value in self.sharing(registry).items()]
        before = sum(size for _, size in registry.served)
        self.ready(REGISTRY, self.kernel, self.fresh("node-store"), *settings)
        self.sent = sum(size for _, size in registry.served) - before

    def publish(self, registry: OciRegistry) -> None:
        """Sign the set that is there, and push it."""
        self.keys = make_identity(self.made("keys"), "Build key")
        argv = [sys.executable, "-m", "nvdriver_build", "prebuild", "--source", self.source]
        argv += ["--headers", self.kernel.headers]
        key, store = {"NVDRIVER_SIGN_KEY": str(self.keys.key)}, {"NVDRIVER_STORE": str(self.folder / "store")}
        run(argv, **self.sharing(registry), **key, **store)

    def sharing(self, registry: OciRegistry) -> Dict[str, str]:
        return {
            "NVDRIVER_REGISTRY": f"{registry.host}/gpu/modules",
            "NVDRIVER_REGISTRY_CA": str(registry.authority),
            "NVDRIVER_REGISTRY_AUTH": str(registry.auth),
            "NVDRIVER_SIGN_CERT": str(self.keys.file),
        }

    def ready(self, name: str, kernel: KitKernel, store: Optional[Path] = None, *settings: str) -> None:
        argv = [sys.executable, ROOT / "scripts" / "bench_ready.py", self.fresh("node"), kernel.release]
        argv += [kernel.headers, kernel.modules, self.source, store or self.folder / "store", *settings]
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
        make = self.median(MAKE.format(self.jobs)).wall
        rows = [
            "| what | median s | all s | CPU s | MB written | of plain make |",
            "|---|---|---|---|---|---|",
        ]
        for name, costs in self.costs.items():
            median = self.median(name)
            each = ", ".join(f"{cost.wall:.2f}" for cost in costs)
            ratio = "" if name == VERIFY else f"{median.wall / make:.2f}"
            cells = (f"{median.wall:.2f}", each, f"{median.cpu:.2f}", f"{median.written / 1e6:.0f}", ratio)
            rows.append(f"| {name} | {' | '.join(cells)} |")
        rows += ["", f"For a registry hit the registry sends {self.sent / 1e6:.1f} MB."]
        rows += [f"Peak memory of our own process in a build: {max(self.peaks) / 1024:.0f} MiB."]
        rows.append(f".text of every module equal to plain make's: {self.same_text() or 'yes'}.")
        return "\n".join(rows)

    def median(self, name: str) -> Cost:
        return Cost(*(statistics.median(values) for values in zip(*self.costs[name])))


def peak(finished: subprocess.CompletedProcess[str]) -> int:
    """What SELF_PEAK has said, in KiB."""
    return int(finished.stderr.rsplit("peak ", 1)[1])


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
    kit = load_kit("a", "b", "open")
    with tempfile.TemporaryDirectory(prefix="nvdriver-bench-", dir="/var/tmp") as folder:
        bench = Bench(Path(folder), kit)
        for _ in range(rounds):
            for step in (bench.plain_make, bench.dkms, bench.ours, bench.patched, bench.flags):
                step()
            bench.sibling()
            bench.other_abi()
        bench.peermem()
        for _ in range(rounds):
            bench.verify()
            bench.ready_to_load()
            bench.ready_on_the_next_kernel()
        with oci_registry(bench.made("registry")) as registry:
            bench.publish(registry)
            for _ in range(rounds):
                bench.ready_from_a_registry(registry)
        print(json.dumps({"rounds": rounds, "jobs": bench.jobs}), file=sys.stderr)
        print(bench.table())


if __name__ == "__main__":
    main()
