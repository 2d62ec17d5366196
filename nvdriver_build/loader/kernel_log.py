"""What the kernel says while something happens, from /dev/kmsg.

Format: Documentation/ABI/testing/dev-kmsg of the kernel. One read gives one record,
`priority,number,microseconds,flags;text`, where bytes that cannot be printed are `\\xNN`, and then lines of
properties that start with a blank.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Callable, ContextManager, Iterator

from attrs import frozen

Reader = Callable[[], tuple[str, ...]]
Journal = Callable[[], ContextManager[Reader]]
"""Opened before the deed; the reader that it gives then returns the lines that came since."""

_RECORD = 8192
"""Bytes that a record may have (CONSOLE_EXT_LOG_MAX in kernel/printk)."""
_MOST = 10_000
"""Records that are read at once; a kernel that says more than that has filled its buffer."""
_ESCAPE = re.compile(rb"\\x([0-9a-fA-F]{2})")


@frozen
class KernelLog:
    """The kernel's log. Where it cannot be read (no CAP_SYSLOG, no device) it is silent."""

    path: Path = Path("/dev/kmsg")

    @contextlib.contextmanager
    def follow(self) -> Iterator[Reader]:
        """Give a reader of the lines that come from now on. It never waits."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            yield tuple
            return
        try:
            os.lseek(descriptor, 0, os.SEEK_END)
            yield lambda: tuple(line for record in _records(descriptor) for line in parse_record(record))
        finally:
            os.close(descriptor)


def _records(descriptor: int) -> Iterator[bytes]:
    for _ in range(_MOST):
        try:
            record = os.read(descriptor, _RECORD)
        except BrokenPipeError:  # what was to come next has been overwritten: go on with what is left
            continue
        except OSError:
            return
        if not record:
            return
        yield record


def parse_record(record: bytes) -> tuple[str, ...]:
    """The lines of one record's text, without its header and its properties."""
    text = record.partition(b";")[2].partition(b"\n")[0]
    plain = _ESCAPE.sub(lambda match: bytes([int(match.group(1), 16)]), text)
    return tuple(line for line in plain.decode("utf-8", "replace").split("\n") if line)
