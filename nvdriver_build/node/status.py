"""Keeps status.json: where `run` is, for `status`, `probe` and people."""

from __future__ import annotations

import contextlib
import datetime
import time
from typing import Any, Iterable, Iterator

import structlog
from attrs import define, evolve, field

from nvdriver_build.elf import canonical_name
from nvdriver_build.errors import NvdriverError, UsageError
from nvdriver_build.loader.host import Host, missing
from nvdriver_build.readiness import Readiness, Status
from nvdriver_build.sets import ModuleSet
from nvdriver_build.store import Entry

_log = structlog.get_logger()
_PROGRESS = 1.0
"""Seconds between two progress reports in the status."""


@define
class Reporter:
    """The status as it grows; each change is published whole."""

    readiness: Readiness
    status: Status = field(factory=Status)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """One stage: published and logged when it begins, timed when it is done."""
        self.tell(stage=name, progress=None)
        _log.info("stage", stage=name)
        started = time.monotonic()
        yield
        seconds = round(time.monotonic() - started, 3)
        self.tell(progress=None, timings={**(self.status.timings or {}), name: seconds})
        _log.info("done", stage=name, seconds=seconds)

    def tell(self, **facts: Any) -> None:
        """Publish new facts."""
        if facts.get("ready", self.status.ready) != self.status.ready:
            facts["since"] = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        self.status = evolve(self.status, **facts)
        # For people: where it cannot be written (a full /run/nvidia), the driver's life goes on.
        with contextlib.suppress(UsageError):
            self.readiness.write_status(self.status)

    def progress(self, done: int, total: int, elapsed: float) -> None:
        """How far a build is, at most once a second."""
        before = self.status.progress
        if before is None or abs(elapsed - before["elapsed"]) >= _PROGRESS:
            self.tell(progress={"done": done, "total": total, "elapsed": round(elapsed, 1)})

    def failed(self, error: NvdriverError) -> None:
        """The last word: what ended the run."""
        _log.error("failed", stage=self.status.stage, error=error.message, hint=error.hint)
        self.tell(error=error.document(), ready=False)


def loaded_keys(entries: Iterable[Entry], host: Host) -> set[str]:
    """The keys of the sets of which a module is in the kernel now."""
    return {entry.key for entry in entries if entry.set is not None and _is_loaded(entry.set, host)}


def _is_loaded(module_set: ModuleSet, host: Host) -> bool:
    for file in module_set.manifest.files:
        name, build_id = canonical_name(file.file), file.facts.get("build_id")
        if not missing(host, {name: build_id}):
            return True
    return False
