"""The shared folder: where each document is, and the signs of life in it."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Callable, Optional

import structlog
from attrs import define, evolve, field, frozen

from nvdriver_build.errors import ToolkitError
from nvdriver_build.toolkit.documents import Beat, Introduction, error_of, read, write

POLL = 0.1
"""Seconds between two looks at what the other end does."""
BEAT = 0.5
"""Seconds between two signs of life."""
SILENT = 1.5
"""Seconds without one after which the other end counts as gone, or as hanging."""
DESCRIPTION = (
    "Module.symvers",
    ".config",
    "include/generated/utsrelease.h",
    "include/generated/utsversion.h",
    "include/generated/compile.h",
    "include/generated/randstruct_hash.h",
    "include/generated/randomize_layout_hash.h",
)
"""The files of a build tree that describe its kernel (kernel: Makefile, modpost.c, init/Makefile)."""
VERMAGIC = "include/linux/vermagic.h"
_log = structlog.get_logger()


@frozen
class Shared:
    """The folder that both containers mount (contracts: /mnt/shared-nvidia-driver-toolkit)."""

    root: Path

    @property
    def prepared(self) -> Path:
        """The flag that the operator's DTK container waits for."""
        return self.root / "dir_prepared"

    @property
    def request(self) -> Path:
        """What the driver's end wants."""
        return self.root / "request.json"

    @property
    def driver_beat(self) -> Path:
        """The driver's end lives."""
        return self.root / "driver-beat.json"

    @property
    def introduction(self) -> Path:
        """Who the toolkit's end is."""
        return self.root / "toolkit.json"

    @property
    def toolkit_beat(self) -> Path:
        """The toolkit's end lives."""
        return self.root / "toolkit-beat.json"

    @property
    def result(self) -> Path:
        """How the last attempt ended."""
        return self.root / "result.json"

    @property
    def headers(self) -> Path:
        """What describes kernels, by attempt."""
        return self.root / "headers"

    @property
    def store(self) -> Path:
        """The store of what was built."""
        return self.root / "store"

    def introduced(self) -> Optional[Introduction]:
        """Who the toolkit's end is, None before it came; raises what it says why it can serve nobody."""
        told = read(self.introduction, Introduction)
        if told is not None and told.error is not None:
            raise error_of(told.error)
        return told

    def source(self, digest: str) -> Path:
        """A kernel tree."""
        return self.root / "sources" / digest


class Pulse:
    """Gives signs of life from a thread of its own, whatever its owner is busy with."""

    def __init__(self, path: Path, instance: str) -> None:
        self._path = path
        self._beat = Beat(instance)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def show(self, done: int, total: int, elapsed: float) -> None:
        """What the next signs say of the progress."""
        self._beat = evolve(self._beat, done=done, total=total, elapsed=elapsed)

    def __enter__(self) -> Pulse:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        lost = False
        while not self._end.is_set():
            self._beat = evolve(self._beat, count=self._beat.count + 1)
            try:
                write(self._path, self._beat)
                lost = False
            except Exception as error:  # a full volume, say: the other end notices the silence, too
                if not lost:
                    _log.warning("no sign of life can be given", reason=str(error))
                lost = True
            self._end.wait(BEAT)


@define
class Listener:
    """Hears the signs of the other end. Only changes count, by the own monotonic clock: no jump fools it."""

    path: Path
    clock: Callable[[], float] = time.monotonic
    beat: Optional[Beat] = None
    heard: bool = False
    _since: float = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.beat = self._read()
        self._since = self.clock()

    def listen(self) -> bool:
        """Look for a new sign; whether it is of another instance than the one before."""
        beat = self._read()
        if beat is None or beat == self.beat:
            return False
        before, self.beat = self.beat, beat
        changed = self.heard and before is not None and before.instance != beat.instance
        self.heard, self._since = True, self.clock()
        return changed

    @property
    def silence(self) -> float:
        """Seconds since the last new sign, or since this began to listen."""
        return self.clock() - self._since

    def _read(self) -> Optional[Beat]:
        try:
            return read(self.path, Beat)
        except ToolkitError:  # whose it is, its other documents tell
            return None
