"""From 'the node is back' to modules checked, in an upgrade with and without prebuild.

    .venv/bin/python scripts/bench_nodes.py [--nodes N] [--rounds N] [--real] [--store DIR]

Needs what scripts/test needs, root among it. An upgrade as in tests/containers/test_fleet_reboots.py:
`fleet watch`, rendered Jobs and pods under podman, a registry. Nodes reboot one after another. Prints a
Markdown table. --real takes NVIDIA's open source instead of the sample driver: some minutes for each node.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Dict, List, Optional

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from fleet_nodes import Way  # noqa: E402
from fleet_site import Publishing, Site  # noqa: E402
from keys import make_identity  # noqa: E402
from kit_release import kit_release  # noqa: E402
from oci_registry import oci_registry  # noqa: E402
from pod_node import PodNode  # noqa: E402
from pod_rig import Pod  # noqa: E402
from podman_rig import Podman  # noqa: E402
from real_build import CACHE, unpacked  # noqa: E402
from sample_driver.user_space import make_run_file  # noqa: E402
from standin import toolkit_root  # noqa: E402
from vm.kit import load_kit  # noqa: E402

PREBUILT, BUILT = "prebuilt, taken from the registry", "no prebuild, built on the node"


class Bench:
    """One run: a folder for everything, the image, the releases, a store with the first one's set."""

    def __init__(self, folder: Path, podman: Podman, given: argparse.Namespace) -> None:
        self.folder, self.podman, self.nodes = folder, podman, given.nodes
        self.real = given.real
        self.image = self._real() if self.real else self._sample()
        kit = load_kit("a", "b")
        self.releases = (
            kit_release(1, kit.kernel("a"), toolkit_root("fits"), folder / "kernels"),
            kit_release(2, kit.kernel("b"), toolkit_root("wrong-kernel"), folder / "kernels"),
        )
        self.filled = given.store or self._filled()
        self.ways: Dict[str, List[Way]] = {PREBUILT: [], BUILT: []}
        self.jobs: List[float] = []

    def _sample(self) -> str:
        made = make_run_file(self.folder)
        words = ("--run-file", made.path, "--sha256", made.sha256, "--driver-version", made.version)
        self.version = made.version
        return self._image(made.sha256, *words)

    def _real(self) -> str:
        source = unpacked(load_kit("open").source("open"))
        found = re.search(r'NV_VERSION_STRING=\\"([\d.]+)', (source / "Kbuild").read_text())
        assert found is not None
        self.version = found[1]
        return self._image(str(source), "--source", source, "--driver-version", self.version)

    def _image(self, key: str, *words: object) -> str:
        base = self.podman.base_image("node", load_kit("node").root("node"))
        return self.podman.driver_image("bench", f"{key} {base}", "--base", base, *words)

    def _filled(self) -> Path:
        """What a node has built for the first kernel."""
        kernel, toolkit = self.releases[0].kit, self.releases[0].toolkit
        assert kernel is not None
        with PodNode.used(self.folder / "first", kernel) as node:
            with Pod(self.podman, node, self.image, toolkit, self.folder / "shared") as pod:
                driver = pod.driver()
                pod.prepared_toolkit()
                assert driver.waits(3600) == 15, driver.text
            shutil.copytree(node.store, self.folder / "store", symlinks=True)
        return self.folder / "store"

    def upgrade(self, name: str, publishing: Optional[Publishing] = None) -> None:
        """All nodes from the first release to the second one."""
        with (
            tempfile.TemporaryDirectory(dir=self.folder) as place,
            Site(
                self.podman,
                self.image,
                self.version,
                self.releases,
                self.filled,
                Path(place),
                publishing,
                self.nodes,
                user_space=not self.real,
            ) as site,
        ):
            site.watch()
            site.until(lambda: site.up(site.old))
            site.offer(site.new)
            site.until(lambda: site.world.job_seconds or publishing is None)
            wanted = "prebuilt" if publishing else "can build"
            site.until(lambda: site.states.get(site.new.version) == wanted)
            for node in site.names:
                site.reboot(node)
                print(site.world.nodes[node].ways[-1], flush=True)
            self.ways[name] += site.ways
            self.jobs += site.world.job_seconds

    def round(self) -> None:
        """Each way once."""
        with tempfile.TemporaryDirectory(dir=self.folder) as place, oci_registry(Path(place)) as registry:
            self.upgrade(PREBUILT, Publishing(registry, make_identity(Path(place) / "keys", "Build key")))
        self.upgrade(BUILT)

    def table(self) -> str:
        """Markdown."""
        rows = ["| upgrade | to modules checked, median s | all s | to ready, median s |"]
        rows.append("|---|---|---|---|")
        for name, ways in self.ways.items():
            checked = [way.checked for way in ways]
            median, ready = statistics.median(checked), statistics.median(way.ready for way in ways)
            every = ", ".join(f"{value:.2f}" for value in checked)
            rows.append(f"| {name} | {median:.2f} | {every} | {ready:.2f} |")
        jobs = ", ".join(f"{value:.1f}" for value in self.jobs)
        return "\n".join([*rows, "", f"The prebuild's Job, before the first reboot, took {jobs} s."])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--store", type=Path, help="one that has the first kernel's set: saves a build")
    given = parser.parse_args()
    podman, place = Podman(CACHE / "podman"), "/var/tmp"
    with podman.used(), tempfile.TemporaryDirectory(prefix="nvdriver-bench-", dir=place) as folder:
        with contextlib.redirect_stdout(sys.stderr):  # for the logs of the containers
            bench = Bench(Path(folder), podman, given)
            for _ in range(given.rounds):
                bench.round()
        print(bench.table())


if __name__ == "__main__":
    main()
