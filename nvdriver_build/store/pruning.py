"""Which sets of a store may go. Pure: entries in, entries out."""

from __future__ import annotations

from typing import Collection, Optional, Sequence

from attrs import frozen

from nvdriver_build.store.entries import Entry

IN_USE = 3600.0
"""Seconds for which a set that was used stays, whatever the rules. Before `run` copies what it has found, it
may wait a quarter of an hour for MOFED, then for nvidia-peermem, which somebody builds."""


@frozen
class Rules:
    """What nobody needs any more: each rule for itself is enough. What is damaged goes anyway.

    What cannot be read now stays: it may be good, and even be loaded.

    `unused` is in seconds, `size` in bytes, of all sets together; `kernels` are the releases whose sets stay,
    beside those of `running` and of the kernel that was used last before it.
    """

    unused: float
    size: Optional[int] = None
    kernels: Collection[str] = ()
    running: Optional[str] = None


def unwanted(entries: Sequence[Entry], keep: Collection[str], rules: Rules, now: float) -> tuple[Entry, ...]:
    """The entries that go, by key never one of `keep`."""
    keep = {*keep, *(entry.key for entry in entries if _is_in_use(entry, now))}
    by_use = sorted(entries, key=lambda entry: -entry.used)
    kernels = _kernels(by_use, rules)
    gone, size = [], sum(entry.size for entry in entries if entry.key in keep)
    for entry in by_use:
        if entry.key in keep:
            continue
        if _is_unwanted(entry, rules, kernels, now):
            gone.append(entry)
            continue
        size += entry.size
        if rules.size is not None and size > rules.size:  # and so is all that was used before it
            gone.append(entry)
    return tuple(gone)


def _kernels(by_use: Sequence[Entry], rules: Rules) -> Collection[str]:
    """The kernels whose sets stay; empty where kernels do not matter."""
    if not rules.kernels:
        return ()
    others = (_kernel(entry) for entry in by_use if _kernel(entry) not in (None, rules.running))
    more = (rules.running, next(others, None))
    return {*rules.kernels, *(kernel for kernel in more if kernel is not None)}


def _kernel(entry: Entry) -> Optional[str]:
    return entry.set.manifest.recipe.kernel_release if entry.set else None


def _is_in_use(entry: Entry, now: float) -> bool:
    """Whether somebody may be about to load it. A clock that was ahead says nothing of the kind."""
    return entry.unread or (entry.problem is None and abs(entry.used - now) < IN_USE)


def _is_unwanted(entry: Entry, rules: Rules, kernels: Collection[str], now: float) -> bool:
    if entry.problem is not None or entry.used < now - rules.unused:
        return True
    return bool(kernels) and _kernel(entry) not in kernels
