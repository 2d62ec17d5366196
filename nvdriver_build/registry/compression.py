"""Modules as zstd streams, by the zstd program: the node's Python has no library for it.

What comes out is bounded by the kernel (RLIMIT_FSIZE), so that a stream that expands without end is cut
at the first byte too many.
"""

from __future__ import annotations

import errno
from pathlib import Path

from nvdriver_build.commands import CommandError, Commands
from nvdriver_build.errors import StoreError

_LEVEL = "-6"
_MOST_MEMORY = "--memory=64MB"
_TIMEOUT = 300.0
_RATE = 4 * 1024 * 1024
"""Bytes a second that the slowest machine expands."""


def compress(source: Path, target: Path, commands: Commands) -> None:
    """Write `source` as a zstd stream to `target`; CommandError or StoreError."""
    done = commands.run(("zstd", "-q", "-f", "-T0", _LEVEL, str(source), "-o", str(target)), timeout=_TIMEOUT)
    if not done.ok:
        raise StoreError(
            f"zstd cannot compress {source}: {done.output.strip()[-300:]}", hint="is there space left?"
        )


def most_compressed(size: int) -> int:
    """The largest stream that `size` bytes can need: zstd's own bound, with room for a frame's ends."""
    return size + size // 128 + 1024


def expand(source: Path, target: Path, size: int, commands: Commands) -> None:
    """Write what the stream `source` holds, exactly `size` bytes, to `target`; ValueError where it is not.

    CommandError where the program is not there, OSError where the disk is full.
    """
    argv = ("prlimit", "--core=0", f"--fsize={size}", "zstd", "-d", "-q", "-f", "--no-sparse", _MOST_MEMORY)
    try:
        done = commands.run((*argv, str(source), "-o", str(target)), timeout=10 + size / _RATE)
    except CommandError as error:
        if error.cause != "timeout":
            raise
        raise ValueError("it takes too long to expand") from error
    if "No space left" in done.output:
        raise OSError(errno.ENOSPC, "No space left on device", str(target))
    if "File too large" in done.output:  # this interpreter ignores SIGXFSZ, and so do its children
        raise ValueError(f"it expands to more than {size} bytes")
    if not done.ok:
        raise ValueError(f"zstd cannot expand it: {done.output.strip()[-200:]}")
    if target.stat().st_size != size:
        raise ValueError(f"it expands to {target.stat().st_size} bytes, not to {size}")
