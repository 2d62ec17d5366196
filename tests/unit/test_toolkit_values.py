"""What the two ends say to each other: odd values, stale files, other clocks, other kernels."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence

import pytest
from best_of_three import Late, best_of_three
from kernel_trees import RELEASE, build_tree, toolkit, under
from sidecar_processes import PATIENCE
from sidecar_rig import ODD, Pod
from structlog.testing import capture_logs

from nvdriver_build.errors import HeadersMismatch
from nvdriver_build.files import publish
from nvdriver_build.sets import open_set
from nvdriver_build.toolkit.documents import BUILD, HEADERS, Beat, Introduction, Request, Result, read, write


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pod]:
    monkeypatch.chdir(tmp_path)
    with Pod.make(tmp_path) as pod:
        yield pod
    assert list(tmp_path.rglob("executed")) == []


def test_stale_files_of_an_earlier_pod(pod: Pod) -> None:
    """Whatever an earlier pod left, the run ends with a set that was built now."""
    stale = pod.order(proof="stale")
    write(pod.shared.request, Request("a" * 16, "old driver", BUILD, RELEASE, stale))
    write(pod.shared.result, Result("b" * 16, "old toolkit", stale.recipe.key))
    write(pod.shared.introduction, Introduction("old toolkit", "0.0.1", kernel="6.6.6", rhel="7"))
    write(pod.shared.toolkit_beat, Beat("old toolkit", 77, 1, 2, 3.0))
    write(pod.shared.driver_beat, Beat("old driver", 99))
    pod.shared.prepared.touch()
    (pod.shared.headers / ("b" * 16)).mkdir(parents=True)
    driver = pod.driver()
    driver.says("the toolkit's end is silent")
    pod.toolkit()
    outcome = driver.outcome()
    assert (outcome.code, outcome.origin, pod.calls) == (0, "built", 1)


def test_garbage_of_an_earlier_pod(pod: Pod) -> None:
    """A stale answer that nobody understands is no answer to a new question."""
    publish(pod.shared.result, b"garbage")
    publish(pod.shared.request, b"garbage")
    with pod.serving():
        assert pod.headers(RELEASE).release == RELEASE


def test_an_answer_to_another_attempt(pod: Pod) -> None:
    """The same key in the answer to another attempt is not believed: what is asked for is being built."""
    pod.hold()
    with pod.serving():
        driver = pod.driver()
        pod.in_make()
        write(pod.shared.result, Result("b" * 16, "old toolkit", pod.order().recipe.key))
        time.sleep(0.3)
        assert driver.process.poll() is None
        pod.release()
        assert (driver.outcome().code, pod.calls) == (0, 1)


def test_odd_values_come_out_as_they_went_in(pod: Pod) -> None:
    """Quotes, newlines and $() are text in every value that crosses; nothing is executed."""
    pod.dtk(toolkit(RELEASE, document={"KERNEL_VERSION": RELEASE, "RHEL_VERSION": ODD}))
    order = pod.order(proof=ODD)
    with pod.serving():
        found = pod.headers(RELEASE)
        assert found.toolkit is not None and found.toolkit.rhel == ODD
        with pytest.raises(HeadersMismatch) as caught:
            pod.headers(ODD)
        assert f"of RHEL {ODD} " in caught.value.message
        assert f"no headers of kernel {ODD};" in caught.value.message
        made = open_set(pod.sidecar().build(order, pod.wish().source))
        assert made.manifest.provenance.proof == ODD
        write(pod.shared.request, Request("a" * 16, ODD, HEADERS, ODD, tool=ODD))
        assert f"nvdriver-build {ODD}," in (pod.answer("a" * 16).error or {})["message"]
        publish(pod.shared.request, json.dumps({"schema": 1, "attempt": ODD}))
        assert pod.answer(ODD).error


def test_a_kernel_that_the_toolkit_lacks(pod: Pod) -> None:
    """Told before anything is compiled: the kernel that runs, those that are there, the RHEL release."""
    pod.toolkit()
    pod.runs("6.6.6-666.el9.x86_64")
    began = time.monotonic()
    outcome = pod.driver().outcome()
    assert (outcome.code, time.monotonic() - began < PATIENCE / 2) == (10, True)
    error = outcome.error or {}
    for words in ("of RHEL 9.4", "no headers of kernel 6.6.6-666.el9.x86_64", f"it has {RELEASE}"):
        assert words in error["message"]
    assert "driver-toolkit tag" in error["hint"]
    assert pod.calls == 0


RT = "5.14.0-427.13.1.el9_4.x86_64+rt"


@pytest.mark.parametrize("rt", ["package kernel-rt-core is not installed", "", None, 7, RT])
def test_what_the_toolkit_says_of_itself(pod: Pod, rt: object) -> None:
    """Release file, kernels with their flavours, compiler; what is no RT kernel is none."""
    files = toolkit(RELEASE, document={"KERNEL_VERSION": RELEASE, "RT_KERNEL_VERSION": rt})
    config = {"PREEMPT_RT": "y", "SMP": "y", "MODVERSIONS": "y"}
    pod.dtk({**files, **under(f"usr/src/kernels/{RT}", build_tree(RT, config))})
    with pod.serving() as server:
        pod.introduced()
        found = read(pod.shared.introduction, Introduction)
        assert pod.headers(RT).release == RT
    assert found == Introduction(
        instance=server.instance,
        tool="0.1.0",
        kernel=RELEASE,
        rt_kernel=RT if rt == RT else None,
        compiler="gcc (GCC) 11.4.1 20230605 (Red Hat 11.4.1-2)",
        installed={RELEASE: "standard", RT: "rt"},
    )


@pytest.mark.parametrize("moment", [0, 4_102_444_800])
@best_of_three
def test_files_of_another_time(pod: Pod, moment: int) -> None:
    """Neither the past nor the future of a file's time changes anything: one make, no word of silence."""
    pod.hold()
    toolkit = pod.toolkit()
    pod.introduced()
    driver = pod.driver()
    pod.in_make()
    for _ in range(8):
        for path in pod.shared.root.glob("*.json"):
            os.utime(path, (moment, moment))
        time.sleep(0.1)
    pod.release()
    assert (driver.outcome().code, pod.calls) == (0, 1)
    heard_each_other([*driver.log, *toolkit.log], "level")


@best_of_three
def test_a_clock_that_jumps(pod: Pod) -> None:
    """Both ends go by the monotonic clock."""
    clock, jumps = time.time, iter([0, 1e9, -1e9, 4e9] * 100_000)
    with pytest.MonkeyPatch.context() as patch, capture_logs() as logs:
        patch.setattr(time, "time", lambda: clock() + next(jumps))
        with pod.serving():
            pod.headers(RELEASE)
            pod.sidecar().build(pod.order(), pod.wish().source)
    heard_each_other(logs, "log_level")


def heard_each_other(logs: Sequence[Mapping[str, Any]], level: str) -> None:
    """Nobody was missed. Who gets no processor for 1.5 s is, whatever the clock says: that is no fault."""
    warnings = [line for line in logs if line[level] == "warning"]
    assert all("silent" in line["event"] or "waiting for" in line["event"] for line in warnings), warnings
    if warnings:
        raise Late(str(warnings))
