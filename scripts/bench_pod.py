"""From the start of the operator's pod to modules checked, beside plain make in the same toolkit's container.

    .venv/bin/python scripts/bench_pod.py [--rounds N] [--cpus N] [--memory 8g] [--sample]

Needs what scripts/test needs, root among it. All in one run, interleaved, with the same limits on every
container. Prints a Markdown table. --sample takes the sample driver: quick, and no measure.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Dict, List

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from pod_node import PodNode  # noqa: E402
from pod_rig import Container, Pod  # noqa: E402
from podman_rig import Podman  # noqa: E402
from real_build import CACHE, unpacked  # noqa: E402
from sample_driver import make_sample_driver  # noqa: E402
from standin import toolkit_root  # noqa: E402
from vm.kit import KitKernel, load_kit  # noqa: E402

MAKE = "plain make -j in the toolkit's container"
POD = "pod, to modules checked"
LOOK = "the same with the operator's 10 s look"
AGAIN = "pod with the store kept, to stage load"
CHECKED, AT_LOAD, DONE = '"event": "a set that fits"', '"stage": "load"', "make is done"
HOUR = 3600


class Bench:
    """One run: a folder for everything, the images, what every container is limited to."""

    def __init__(self, folder: Path, podman: Podman, given: argparse.Namespace) -> None:
        self.folder, self.podman = folder, podman
        self.kernel: KitKernel = load_kit("a").kernel("a")
        self.toolkit = toolkit_root("fits")
        self.source = self._sample() if given.sample else unpacked(load_kit("open").source("open"))
        self.image = self._image()
        self.jobs = given.cpus or len(os.sched_getaffinity(0))
        self.limits: List[object] = [f"--cpus={given.cpus}"] if given.cpus else []
        self.limits += [f"--memory={given.memory}"] if given.memory else []
        self.seconds: Dict[str, List[float]] = {}
        self.our_jobs: List[str] = []

    def _sample(self) -> Path:
        return make_sample_driver(self.folder / "sample", kind="open") / "kernel-open"

    def _image(self) -> str:
        found = re.search(r'NV_VERSION_STRING=\\"([\d.]+)', (self.source / "Kbuild").read_text())
        assert found is not None
        base = self.podman.base_image("node", load_kit("node").root("node"))
        words = ("--source", self.source, "--driver-version", found[1], "--base", base)
        return self.podman.driver_image("bench", f"{self.source} {base}", *words)

    def round(self) -> None:
        """Each way once. Every pod but the last one begins with an empty store."""
        self.plain_make()
        for name in (LOOK, POD):
            place = self.folder / "node"
            with PodNode.used(place, self.kernel) as node:
                self.pod(name, node, CHECKED)
                if name == POD:
                    self.pod(AGAIN, node, AT_LOAD)

    def plain_make(self) -> None:
        """NVIDIA's make, with a fresh copy of the source, which costs it nothing."""
        tree = self.folder / "tree"
        shutil.copytree(self.source, tree)
        kernel = f"SYSSRC=/usr/src/kernels/{self.kernel.release}"
        make = f"make -j{self.jobs} -C /source modules {kernel} NV_EXCLUDE_KERNEL_MODULES=nvidia-peermem"
        log = self.folder / "make.log"
        container = Container(self.podman, f"make-{os.getpid()}", log)
        words = ["-d", "--network=none", "--privileged", "--pid=host", "--name", container.name]
        words += ["--log-opt", f"path={log}", "-v", f"{tree}:/source", "--env=PATH=/usr/sbin:/usr/bin"]
        script = f"{make} >/source/log 2>&1 && echo {DONE} || tail /source/log; sleep 1"
        self.podman("run", *words, *self.limits, "--rootfs", f"{self.toolkit}:O", "bash", "-c", script)
        try:
            self.note(MAKE, container.started, container, DONE)
        finally:
            container.remove()
            log.unlink()
            shutil.rmtree(tree)

    def pod(self, name: str, node: PodNode, until: str) -> None:
        """Both containers at once, or the toolkit's once the flag that it looks for is there."""
        shared = self.folder / "shared"
        with Pod(self.podman, node, self.image, self.toolkit, shared, limits=self.limits) as pod:
            started = time.time()
            toolkit = pod.toolkit() if name == LOOK else None
            driver = pod.driver()
            toolkit = toolkit or pod.prepared_toolkit()
            self.note(name, started, driver, until)
            driver.waits()
            self.our_jobs += re.findall(r'"jobs": (\d+)', toolkit.text)

    def note(self, name: str, started: float, container: Container, words: str) -> None:
        """How long it was until a container said so, by the time that stands in its log."""
        seconds = container.says(words, HOUR).at - started
        self.seconds.setdefault(name, []).append(seconds)
        print(f"{name}: {seconds:.2f} s", file=sys.stderr, flush=True)

    def table(self) -> str:
        """Markdown."""
        make = statistics.median(self.seconds[MAKE])
        rows = ["| what | median s | all s | of plain make |", "|---|---|---|---|"]
        for name in (MAKE, POD, LOOK, AGAIN):
            values = self.seconds[name]
            median = statistics.median(values)
            rows.append(
                f"| {name} | {median:.2f} | {', '.join(f'{v:.2f}' for v in values)} | {median / make:.2f} |"
            )
        limits = " ".join(map(str, self.limits)) or "none"
        jobs = ", ".join(sorted(set(self.our_jobs)))
        return "\n".join([*rows, "", f"Limits: {limits}. Jobs: make {self.jobs}, the pod {jobs}."])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cpus", type=int, help="as podman's")
    parser.add_argument("--memory", help="as podman's")
    parser.add_argument("--sample", action="store_true")
    given = parser.parse_args()
    podman, place = Podman(CACHE / "podman"), "/var/tmp"
    with podman.used(), tempfile.TemporaryDirectory(prefix="nvdriver-bench-", dir=place) as folder:
        bench = Bench(Path(folder), podman, given)
        with contextlib.redirect_stdout(sys.stderr):  # for the logs of the containers
            for _ in range(given.rounds):
                bench.round()
        print(bench.table())


if __name__ == "__main__":
    main()
