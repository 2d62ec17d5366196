"""Any schedule of deaths, stops and returns of both ends leads to a sound set."""

from __future__ import annotations

import signal
import tempfile
import time
from pathlib import Path
from typing import List, Set, Tuple

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sidecar_processes import SOON, End
from sidecar_rig import Pod

EVENTS = ("start", "kill", "end", "stop", "continue")
Schedule = List[Tuple[str, str, float]]


class Stage:
    """Plays a schedule with the two ends of a pod; one that is gone is started when it is to go on."""

    def __init__(self, pod: Pod) -> None:
        self.pod = pod
        self.ends = {"toolkit": pod.toolkit(), "driver": pod.driver()}
        self.ending: Set[str] = set()

    def play(self, which: str, event: str) -> None:
        """Do it to an end."""
        if event in ("start", "continue"):
            self.back(which)
        else:
            number = {"kill": signal.SIGKILL, "end": signal.SIGTERM, "stop": signal.SIGSTOP}[event]
            self.ends[which].send(number)
            if number == signal.SIGTERM:
                self.ending.add(self.ends[which].name)

    def back(self, which: str) -> End:
        """The end, running; a driver's that is done has been started anew, as a kubelet does."""
        end = self.ends[which]
        if end.process.poll() is None:
            end.send(signal.SIGCONT)
        if end.name in self.ending:
            end.process.wait(SOON)
        if end.process.poll() is not None:
            self.told(end)
            self.ends[which] = getattr(self.pod, which)()
        return self.ends[which]

    def told(self, end: End) -> None:
        """It ended by a signal, with a set that is sound, or with an error of ours."""
        outcome = end.outcome()
        killed = (-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM)
        assert outcome.code in killed or outcome.key or outcome.error


@settings(
    max_examples=5,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
@given(
    schedule=st.lists(
        st.tuples(
            st.sampled_from(("toolkit", "driver")),
            st.sampled_from(EVENTS),
            st.floats(0, 0.6),
        ),
        min_size=2,
        max_size=5,
    ),
    held=st.floats(0, 1),
)
@pytest.mark.once
def test_any_schedule(schedule: Schedule, held: float) -> None:
    """However often either end died, hung or came back: one make at a time, and a sound set in the end."""
    with tempfile.TemporaryDirectory() as folder, Pod.make(Path(folder)) as pod:
        pod.program(f"sleep {held:.2f} 9>&-")
        stage = Stage(pod)
        for which, event, pause in schedule:
            time.sleep(pause)
            stage.play(which, event)
        stage.back("toolkit")
        outcome = stage.back("driver").outcome()
        if outcome.key is None:  # the last event was its end
            outcome = stage.back("driver").outcome()
        assert not pod.twice
        assert [(entry.key, entry.problem) for entry in pod.store.check()] == [(outcome.key, None)]
        assert pod.calls <= 1 + len(schedule)
