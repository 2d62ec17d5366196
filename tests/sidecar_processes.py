"""The two ends of the sidecar as processes: their logs, their signals, how they ended."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Dict, List, Optional

from attrs import define, frozen

PATIENCE = 60.0
"""Seconds that either end waits for the other one."""
SOON = 60.0
"""Seconds that a test waits for what comes at once, unless the machine is busy."""


@frozen
class Outcome:
    """How a driver's end ended: `key` and `origin`, or `error` as in the contracts."""

    code: int
    key: Optional[str] = None
    origin: Optional[str] = None
    error: Optional[Dict[str, Any]] = None


@define
class End:
    """A process that is one of the two ends."""

    process: subprocess.Popen[bytes]
    root: Path
    name: str
    _read: int = 0

    @property
    def log(self) -> List[Dict[str, Any]]:
        """What it has logged."""
        lines = (self.root / f"{self.name}.log").read_text().splitlines(keepends=True)
        assert not any(line.startswith("Traceback") for line in lines), "".join(lines)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def says(self, words: str, within: float = SOON) -> float:
        """Seconds until it says so in its log, behind what was found there before."""
        began = time.monotonic()
        while True:
            log = self.log
            for number in range(self._read, len(log)):
                if words in log[number]["event"]:
                    self._read = number + 1
                    return time.monotonic() - began
            silent = time.monotonic() - began > within
            assert not silent, f"{self.name} did not say {words!r}: {log}"
            time.sleep(0.01)

    def send(self, number: signal.Signals) -> None:
        """Send a signal; one that is killed is waited for."""
        self.process.send_signal(number)
        if number == signal.SIGKILL:
            self.process.wait(SOON)

    def kill(self) -> None:
        """SIGKILL."""
        self.send(signal.SIGKILL)

    def outcome(self, within: float = 2 * PATIENCE) -> Outcome:
        """Wait for its end."""
        code = self.process.wait(within)
        text = (self.root / f"{self.name}.out").read_text()
        assert self.log is not None
        return Outcome(code, **json.loads(text)) if text else Outcome(code)
