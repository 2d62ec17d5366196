"""SIGKILL at random moments of real builds: never a visible half set, and the next run works."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, List

import psutil
import pytest
from attrs import frozen
from cli_runs import environment
from sample_driver import make_sample_driver
from vm.kit import KitKernel

from nvdriver_build.errors import StoreError
from nvdriver_build.files import sha256_file
from nvdriver_build.sets import open_set
from nvdriver_build.store import Store

pytestmark = pytest.mark.toolchain

KILLS, PARTS = 24, 2
MODULES = "nvidia,nvidia-uvm"


@frozen
class Workplace:
    """A source, headers, a store and an output; `seconds` is how long a whole build took."""

    root: Path
    headers: Path
    digests: Dict[str, str]
    seconds: float

    @property
    def store(self) -> Store:
        return Store(self.root / "store")

    @property
    def output(self) -> Path:
        return self.root / "output" / "set"

    def start(self) -> subprocess.Popen[bytes]:
        """Start `nvdriver-build build`."""
        argv = [sys.executable, "-m", "nvdriver_build", "build", "--source", self.root / "sample"]
        argv += ["--headers", self.headers, "--output", self.output, "--modules", MODULES, "--jobs", "2"]
        return subprocess.Popen(
            [str(word) for word in argv],
            env=environment(self.root),
            stdout=subprocess.DEVNULL,
            stderr=(self.root / "log").open("ab"),
        )

    def assert_whole(self) -> None:
        """All that anybody can see is whole and of the same bytes as ever."""
        entries = self.store.check()
        assert [entry.problem for entry in entries] == [None] * len(entries)
        found = [entry.set.folder for entry in entries if entry.set]
        for folder in [*found, *([self.output] if self.output.exists() else [])]:
            open_set(folder)
            assert _digests(folder) == self.digests

    def leftovers(self) -> List[str]:
        """Private folders, in the store and beside the output."""
        return [path.name for path in self.root.rglob(".nvdriver-build-*")]


def _digests(folder: Path) -> Dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.glob("*.ko")}


@pytest.fixture
def workplace(tmp_path: Path, kernel_a: KitKernel) -> Workplace:
    make_sample_driver(tmp_path / "sample", kind="open")
    place = Workplace(tmp_path, kernel_a.headers, {}, 0)
    started = time.monotonic()
    assert place.start().wait() == 0, (tmp_path / "log").read_text()
    digests = _digests(place.output)
    assert len(digests) == 2
    return Workplace(tmp_path, kernel_a.headers, digests, time.monotonic() - started)


def compilers(root: Path) -> List[str]:
    """The programs that still work below `root`."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            if process.status() != psutil.STATUS_ZOMBIE and any(str(root) in word for word in words):
                found.append(" ".join(words)[:200])
        except psutil.NoSuchProcess:
            continue
    return found


def wait_for_compilers(root: Path) -> None:
    """Until none works below `root` any more; a machine may be busy with other tests."""
    until = time.monotonic() + 60
    while left := compilers(root):
        assert time.monotonic() < until, left
        time.sleep(0.05)


def wait_for_make(root: Path) -> None:
    """Until the compilers of a build are at work below `root`."""
    until = time.monotonic() + 60
    while not any("cc1" in words for words in compilers(root)):
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize("part", range(PARTS))
def test_kills_of_builds(workplace: Workplace, part: int) -> None:
    """Killed anywhere between start and end, a build leaves nothing half-done to see; the next one works."""
    choose, whole = random.Random(part), workplace.seconds
    killed = 0
    for _ in range(3 * KILLS // PARTS):
        for entry in workplace.store.entries():
            workplace.store.drop(entry.key)
        began, process = time.monotonic(), workplace.start()
        try:
            process.wait(choose.uniform(0, whole))
            whole = min(whole, time.monotonic() - began)  # the first build may have been slow
        except subprocess.TimeoutExpired:
            process.kill()
            killed += 1
        assert process.wait() in (0, -signal.SIGKILL)
        workplace.assert_whole()
        if killed == KILLS // PARTS:
            break
    assert killed == KILLS // PARTS
    assert workplace.start().wait() == 0
    assert workplace.start().wait() == 0
    workplace.assert_whole()
    assert (len(workplace.store.entries()), workplace.output.exists()) == (1, True)
    assert workplace.leftovers() == []
    assert compilers(workplace.root) == []


def test_a_killed_build_leaves_no_compilers(workplace: Workplace) -> None:
    """Seconds after the kill nothing of the build runs any more, though nobody waited for it."""
    for entry in workplace.store.entries():
        workplace.store.drop(entry.key)
    process = workplace.start()
    wait_for_make(workplace.root)
    process.kill()
    process.wait()
    wait_for_compilers(workplace.root)


def test_a_build_beside_a_dead_ones_folder(workplace: Workplace) -> None:
    """What a killed build left is swept by the next, which does not mind a set that was damaged meanwhile."""
    (key,) = [entry.key for entry in workplace.store.entries()]
    module = workplace.store.root / "sets" / key / "nvidia.ko"
    module.write_bytes(module.read_bytes()[:-1])
    with pytest.raises(StoreError):
        workplace.store.get(key)
    process = workplace.start()
    wait_for_make(workplace.root)
    process.kill()
    process.wait()
    wait_for_compilers(workplace.root)
    assert workplace.leftovers()
    assert workplace.start().wait() == 0
    workplace.assert_whole()
    assert workplace.leftovers() == []
