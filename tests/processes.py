"""The processes of this machine that a test has started, found by a word of their command line."""

from __future__ import annotations

import os
from typing import List

import psutil


def nap(number: int) -> str:
    """Seconds that no other process sleeps: so ours are found again, beside those of other tests."""
    return f"{number}.{os.getpid():08d}"


def living(mark: str) -> List[psutil.Process]:
    """The processes that run with `mark` in their command line, but zombies."""
    found = []
    for process in psutil.process_iter():
        try:
            if mark in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found
