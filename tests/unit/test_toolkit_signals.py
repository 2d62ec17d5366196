"""A signal ends either end of the sidecar, and what that has started."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Iterator

import pytest
from best_of_three import best_of_three, in_time
from sidecar_rig import Pod


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    with Pod.make(tmp_path) as pod:
        yield pod
        assert not pod.twice


@pytest.mark.parametrize("stage", ["waiting", "building"])
@best_of_three
def test_sigterm_to_the_driver(pod: Pod, stage: str) -> None:
    """It ends at once with 143; the toolkit's end goes on, and the next driver gets the set."""
    pod.hold()
    toolkit = pod.toolkit() if stage == "building" else None
    driver = pod.driver()
    if toolkit:
        pod.in_make()
    else:
        driver.says("waiting for the toolkit's end")
    began = time.monotonic()
    driver.send(signal.SIGTERM)
    assert driver.outcome().code == 143
    in_time(time.monotonic() - began, 1)
    pod.release()
    if toolkit is None:
        pod.toolkit()
    assert (pod.driver().outcome().code, pod.calls) == (0, 1)


@pytest.mark.parametrize("stage", ["idle", "building"])
@best_of_three
def test_sigterm_to_the_toolkit(pod: Pod, stage: str) -> None:
    """It ends with 143, and make, whatever that has started and ignores, is gone within 2 s."""
    if stage == "building":
        pod.program("trap '' TERM; sh -c 'trap \"\" TERM; sleep 30' & wait; sleep 30")
    toolkit = pod.toolkit()
    toolkit.says("this toolkit")
    if stage == "building":
        driver = pod.driver()
        pod.in_make()
        time.sleep(0.3)
    began = time.monotonic()
    toolkit.send(signal.SIGTERM)
    assert toolkit.outcome().code == 143
    in_time(time.monotonic() - began, 2)
    assert pod.makes() == []
    assert list((pod.shared.store / "work").glob(".nv*")) == []
    if stage == "building":
        pod.program()
        pod.toolkit()
        assert driver.outcome().code == 0
