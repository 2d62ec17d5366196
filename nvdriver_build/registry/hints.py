"""Which sets of a registry might fit a kernel: a note by a tag that can be computed without them.

    fit-<sha256 of family and CRC of module_layout>
    kernel-<sha256 of driver version, release, architecture>
                  notes with the keys of sets, the last one pushed first

The family is that of the store's index. The second is for who knows a kernel by its name only, as a fleet's
controller, which has neither its symbols nor the driver's source. A note is a hint: who follows it proves
the set. Tags have no compare-and-swap, so whoever adds a key reads the note again afterwards, and adds it
again where another one wrote at the same time. A key that is lost all the same costs a build.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import time
from typing import Iterable, Optional

from nvdriver_build.errors import StoreError
from nvdriver_build.kernel import KernelTarget
from nvdriver_build.registry.artifacts import NOTHING, note, parse_note
from nvdriver_build.registry.blobs import PATIENCE, Content
from nvdriver_build.sets import Manifest, Recipe
from nvdriver_build.store.index import LAYOUT, family
from nvdriver_build.store.remote import Unbelievable

_FIT = "application/vnd.nvdriver-build.fit.v1"
_KEYS = "nvdriver-build.keys"
_KEY = re.compile(r"[0-9a-f]{64}")
_MOST = 64
"""Keys that a note holds; the ones that were pushed last are the likeliest."""
_TRIES = 5
_SETTLE = 0.3
"""Seconds, with jitter, before a note is read again."""


def wanted_tag(recipe: Recipe, target: KernelTarget) -> Optional[str]:
    """Where sets stand that might fit this kernel; None for one that compares no CRCs."""
    layout = target.symbols.get(LAYOUT)
    if layout is None or not target.modversions:
        return None
    return _tag(family(recipe, target.vermagic, target.config_digest), layout.crc)


def own_tag(manifest: Manifest) -> Optional[str]:
    """Where a set belongs; None for one without CRCs."""
    for file in manifest.files:
        needed = file.facts.get("symbols_needed")
        crc = needed.get(LAYOUT) if isinstance(needed, dict) else None
        if isinstance(crc, str) and re.fullmatch("0x[0-9a-f]{8}", crc):
            return _tag(family(manifest.recipe, manifest.vermagic, manifest.config_digest), int(crc, 16))
    return None


def kernel_tag(driver_version: str, release: str, arch: str) -> str:
    """Where the sets of a driver stand that were built for a kernel of this name."""
    text = json.dumps([driver_version, release, arch])
    return "kernel-" + hashlib.sha256(text.encode()).hexdigest()


def read(content: Content, tag: str) -> tuple[str, ...]:
    """The keys that stand there."""
    try:
        return _keys(content, tag)
    except ValueError as error:
        raise content.session.lying(f"{tag} is no note of what fits: {error}") from error


def _sound(content: Content, tag: str) -> tuple[str, ...]:
    """The same; none of what is no such note."""
    try:
        return _keys(content, tag)
    except (ValueError, Unbelievable):
        return ()


def _keys(content: Content, tag: str) -> tuple[str, ...]:
    document = content.document(tag)
    if document is None:
        return ()
    keys = parse_note(document, _FIT).get(_KEYS, "").split(",")
    return tuple(key for key in dict.fromkeys(keys[:_MOST]) if _KEY.fullmatch(key))


def add(content: Content, tags: Iterable[str], key: str) -> None:
    """Have a key at each of these tags, in place of what is no such note; StoreError where others keep on
    writing over it, or where all of it takes longer than a push may take that moves nothing.
    """
    content = content.before(time.monotonic() + PATIENCE * content.session.limits.seconds(0))
    lacking = tuple(tags)
    for turn in range(_TRIES):
        lacking = tuple(tag for tag in lacking if not _there(content, tag, key))
        if not lacking:
            return
        content.session.transport.pause(_SETTLE * (turn + 1) * random.uniform(0.5, 1.5))
    for tag in lacking:
        if key not in read(content, tag):
            raise StoreError(f"{tag} is written by many at once", hint="the next push adds the set")


def _there(content: Content, tag: str, key: str) -> bool:
    """Whether a key was there; it is put there where it was not."""
    keys = _sound(content, tag)
    if key not in keys:
        content.publish(tag, note(_FIT, {_KEYS: ",".join((key, *keys)[:_MOST])}), NOTHING, known=True)
    return key in keys


def _tag(of_family: str, layout: int) -> str:
    return "fit-" + hashlib.sha256(f"{of_family} {layout:08x}".encode()).hexdigest()
