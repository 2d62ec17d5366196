"""Why a load failed: modprobe's words and the kernel log, read together.

The errno that modprobe spells out says little: NVIDIA's `No such device` has five causes, the kernel's
`Key was rejected by service` four. `causes` has the table.
"""

from __future__ import annotations

import re
from typing import Iterable, Optional, Sequence

from attrs import frozen

from nvdriver_build.errors import LoadError, NvdriverError
from nvdriver_build.loader.causes import CAUSES, CLAIMED, NO_GPU, NOTICES, Cause
from nvdriver_build.loader.devices import Claim, PciDevice

_SHOWN = 5
"""Names or lines that a message has before it only counts."""


@frozen
class Failure:
    """A modprobe that failed: its words, what the kernel said meanwhile, the GPUs, and who has taken them."""

    module: str
    words: str
    log: tuple[str, ...]
    devices: tuple[PciDevice, ...] = ()
    claims: tuple[Claim, ...] = ()


def diagnose(failure: Failure) -> NvdriverError:
    """The error for a failed modprobe, by its cause; a LoadError with all the words where none is known."""
    text = _text((*failure.log, failure.words))
    cause = next((cause for cause in CAUSES if re.search(cause.pattern, text)), None) or _by_devices(failure)
    if cause is None:
        return _unknown(failure)
    return cause.error(_message(cause, text, failure.module, failure.claims), hint=cause.hint)


def notices(module: str, log: Sequence[str], claims: Sequence[Claim]) -> tuple[str, ...]:
    """What the kernel held against a module that it did load, a sentence each."""
    text = _text(log)
    found = (cause for cause in NOTICES if re.search(cause.pattern, text))
    return tuple(_message(cause, text, module, claims) for cause in found)


def _by_devices(failure: Failure) -> Optional[Cause]:
    """`No such device` where the kernel log is silent: PCI tells what it can."""
    if "No such device" not in failure.words:
        return None
    if not failure.devices:
        return NO_GPU
    return CLAIMED if failure.claims else None


def _unknown(failure: Failure) -> LoadError:
    words = failure.words.strip() or "modprobe gave no reason"
    said = "; ".join(failure.log[-_SHOWN:]) or "nothing that can be read here"
    return LoadError(
        f"{failure.module} was not loaded: {words}; the kernel said: {said}", hint="`dmesg` may say more"
    )


def _message(cause: Cause, text: str, module: str, claims: Sequence[Claim]) -> str:
    taken = _some(str(claim) for claim in claims) or "another driver, or a driver_override, has it"
    return cause.message.format(module=module, claims=taken, **_values(cause.pattern, text))


def _values(pattern: str, text: str) -> dict[str, str]:
    """The named groups of all places where the pattern is found, each value once."""
    found = [match.groupdict() for match in re.finditer(pattern, text)]
    return {name: _some(values[name] for values in found) for name in (found[0] if found else ())}


def _some(values: Iterable[str]) -> str:
    different = list(dict.fromkeys(values))
    more = f" and {len(different) - _SHOWN} more" if len(different) > _SHOWN else ""
    return ", ".join(different[:_SHOWN]) + more


def _text(lines: Iterable[str]) -> str:
    """One text; NVIDIA breaks its sentences into lines, each with the same prefix."""
    return re.sub(r"\s*\n\s*NVRM:\s*", " ", "\n".join(lines))
