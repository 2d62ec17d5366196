"""How many compilers may run at once, from trees as /proc and /sys/fs/cgroup have them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Dict, Iterator, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trees import write_tree

from nvdriver_build.build import Capacity, measure
from nvdriver_build.build.jobs import GIB

V1_UNLIMITED = str(0x7FFFFFFFFFFFF000)
POD = "kubepods.slice/pod1/ctr1"


def capacity(
    folder: Path, cgroup: str, files: Dict[str, str], available_kib: Optional[int] = None
) -> Capacity:
    """`measure` of a process in the cgroups of `cgroup`, with these files below /sys/fs/cgroup."""
    proc = {"self/cgroup": cgroup}
    if available_kib is not None:
        proc["meminfo"] = f"MemTotal:  99999999 kB\nMemFree:  1 kB\nMemAvailable:  {available_kib} kB\n"
    return measure(write_tree(folder / "proc", proc), write_tree(folder / "cgroup", files))


def v2(path: str = POD) -> str:
    return f"0::/{path}\n"


def v1(path: str = POD) -> str:
    return f"9:name=systemd:/{path}\n4:memory:/{path}\n3:cpuset:/{path}\n2:cpu,cpuacct:/{path}\n0::/\n"


def test_this_machine() -> None:
    """Whatever there is, there is at least one job, and no more than processors."""
    found = measure()
    assert found.cpus == len(os.sched_getaffinity(0))
    assert 1 <= found.jobs() <= found.cpus
    assert found.memory is not None


def test_cpuset_counts() -> None:
    """A process that is bound to one processor has one, however many the machine has."""
    code = "from nvdriver_build.build import measure; print(measure().cpus)"
    cpu = str(min(os.sched_getaffinity(0)))
    out = subprocess.run(
        ["taskset", "-c", cpu, sys.executable, "-c", code], check=True, stdout=subprocess.PIPE
    )
    assert out.stdout == b"1\n"


@pytest.mark.parametrize(
    ("text", "quota"),
    [
        ("150000 100000", 1.5),
        ("50000 100000", 0.5),
        ("max 100000", None),
        ("", None),
        ("junk", None),
        ("0 0", None),
    ],
)
def test_quota_v2(tmp_path: Path, text: str, quota: Optional[float]) -> None:
    """cpu.max of cgroup v2 holds quota and period, or `max`."""
    assert capacity(tmp_path, v2(), {f"{POD}/cpu.max": text}).quota == quota


@pytest.mark.parametrize(("quota_us", "quota"), [("250000", 2.5), ("-1", None)])
@pytest.mark.parametrize("mount", ["cpu,cpuacct", "cpu"])
def test_quota_v1(tmp_path: Path, quota_us: str, quota: Optional[float], mount: str) -> None:
    """cgroup v1 has quota and period in two files, -1 is no limit; the mount has one of two names."""
    files = {f"{mount}/{POD}/cpu.cfs_quota_us": quota_us, f"{mount}/{POD}/cpu.cfs_period_us": "100000"}
    assert capacity(tmp_path, v1(), files).quota == quota


@pytest.mark.parametrize("place", [".", "kubepods.slice", "kubepods.slice/pod1"])
def test_limits_of_ancestors_count(tmp_path: Path, place: str) -> None:
    """The limit of a pod holds for its containers: the smallest on the way up counts."""
    files = {
        f"{POD}/cpu.max": "400000 100000",
        f"{place}/cpu.max": "200000 100000",
        f"{POD}/memory.max": str(8 * GIB),
        f"{place}/memory.max": str(3 * GIB),
    }
    found = capacity(tmp_path, v2(), files)
    assert (found.quota, found.memory) == (2.0, 3 * GIB)


def test_container_that_sees_its_own_cgroup_only(tmp_path: Path) -> None:
    """In a container the host's path of the cgroup is not there: the limits are at the top."""
    files = {
        "memory/memory.limit_in_bytes": str(2 * GIB),
        "cpu/cpu.cfs_quota_us": "100000",
        "cpu/cpu.cfs_period_us": "100000",
    }
    found = capacity(tmp_path, v1("docker/0123"), files)
    assert (found.quota, found.memory) == (1.0, 2 * GIB)


def test_hybrid(tmp_path: Path) -> None:
    """Where v2 is mounted beside v1, in `unified`, its files are read there."""
    assert capacity(tmp_path, v2(), {f"unified/{POD}/cpu.max": "100000 100000"}).quota == 1.0


@pytest.mark.parametrize(
    ("limit", "left"), [(str(4 * GIB), 3 * GIB), ("max", None), (V1_UNLIMITED, None), (str(GIB // 2), 0)]
)
def test_memory_v1_and_v2(tmp_path: Path, limit: str, left: Optional[int]) -> None:
    """What is left is the limit less what is used; `max`, and v1's largest number, are no limit."""
    new = {f"{POD}/memory.max": limit, f"{POD}/memory.current": str(GIB)}
    old = {f"memory/{POD}/memory.limit_in_bytes": limit, f"memory/{POD}/memory.usage_in_bytes": str(GIB)}
    assert capacity(tmp_path / "2", v2(), new).memory == left
    assert capacity(tmp_path / "1", v1(), old).memory == left


def test_page_cache_is_memory_to_be_had(tmp_path: Path) -> None:
    """Cache that gives way is not used memory; in v1 `total_` counts the children too, wherever it stands."""
    limits = {"memory.max": str(4 * GIB), "memory.current": str(3 * GIB)}
    new = {**limits, "memory.stat": f"anon 1\ninactive_file {2 * GIB}\nactive_file 5\n"}
    old = {"memory.limit_in_bytes": str(4 * GIB), "memory.usage_in_bytes": str(3 * GIB)}
    old["memory.stat"] = f"inactive_file 0\nactive_file 5\ntotal_inactive_file {2 * GIB}\n"
    assert capacity(tmp_path / "2", v2(), {f"{POD}/{n}": t for n, t in new.items()}).memory == 3 * GIB
    assert capacity(tmp_path / "1", v1(), {f"memory/{POD}/{n}": t for n, t in old.items()}).memory == 3 * GIB


@pytest.mark.parametrize(("available_gib", "memory"), [(2, 2 * GIB), (64, 4 * GIB)])
def test_memory_of_the_machine_counts(tmp_path: Path, available_gib: int, memory: int) -> None:
    """The smaller of what the machine has available and what the cgroup allows counts."""
    found = capacity(tmp_path, v2(), {f"{POD}/memory.max": str(4 * GIB)}, available_gib * 1024 * 1024)
    assert found.memory == memory


@pytest.mark.parametrize("cgroup", ["", v2(), v1(), v2("../..")])
def test_nothing_is_told(tmp_path: Path, cgroup: str) -> None:
    """Without any file there is no bound but the processors."""
    found = capacity(tmp_path, cgroup, {})
    assert (found.quota, found.memory) == (None, None)
    assert found.jobs() == found.cpus


@pytest.mark.parametrize(
    ("found", "jobs"),
    [
        (Capacity(8, None, None), 8),
        (Capacity(8, 2.0, None), 2),
        (Capacity(8, 1.5, None), 2),
        (Capacity(8, 0.1, None), 1),
        (Capacity(8, None, 3 * GIB + 1), 3),
        (Capacity(8, None, 0), 1),
        (Capacity(1, 16.0, 64 * GIB), 1),
    ],
)
def test_jobs(found: Capacity, jobs: int) -> None:
    """The smallest of processors, quota (a part of one counts as one) and memory; at least one."""
    assert found.jobs() == jobs


@given(
    st.integers(1, 512),
    st.none() | st.floats(0.01, 512),
    st.none() | st.integers(0, 2**42),
    st.integers(1, 8 * GIB),
)
def test_jobs_are_bounded(cpus: int, quota: Optional[float], memory: Optional[int], each: int) -> None:
    """There is at least one job; more than one only where each has a processor, quota and memory."""
    jobs = Capacity(cpus, quota, memory).jobs(each)
    assert 1 <= jobs <= cpus
    assert jobs == 1 or ((quota is None or jobs < quota + 1) and (memory is None or jobs * each <= memory))


@pytest.fixture
def cgroups() -> Iterator[Dict[str, Path]]:
    """New cgroups of this machine for processors and memory, in v1 or v2; gone afterwards."""
    name = f"nvdriver-test-{os.getpid()}"
    top = Path("/sys/fs/cgroup")
    places = {each: (top / each if (top / each).is_dir() else top) / name for each in ("cpu", "memory")}
    try:
        for place in set(places.values()):
            place.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    yield places
    for place in set(places.values()):
        place.rmdir()


def test_a_real_cgroup(cgroups: Dict[str, Path]) -> None:
    """Limits of the kernel itself are seen by a process in them, though it sees all processors."""
    new = cgroups["cpu"] == cgroups["memory"]
    limits = (
        {"cpu.max": "50000 100000", "memory.max": str(GIB)}
        if new
        else {"cpu.cfs_quota_us": "50000", "memory.limit_in_bytes": str(GIB)}
    )
    files = {cgroups[name.partition(".")[0]] / name: value for name, value in limits.items()}
    if not all(file.exists() for file in files):
        pytest.skip("this machine does not hand on its controllers to new cgroups")
    for file, value in files.items():
        file.write_text(value)
    join = "".join(f"echo $$ > {place}/cgroup.procs; " for place in cgroups.values())
    code = (
        "from nvdriver_build.build import measure; c = measure(); print(c.cpus, c.quota, c.memory, c.jobs())"
    )
    out = subprocess.run(
        ["sh", "-c", f'{join} exec "$0" -c "$1"', sys.executable, code], check=True, stdout=subprocess.PIPE
    )
    cpus, quota, memory, jobs = out.stdout.split()
    assert (int(cpus), float(quota), int(jobs)) == (len(os.sched_getaffinity(0)), 0.5, 1)
    assert 0 < int(memory) <= GIB
