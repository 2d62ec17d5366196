"""Which sets of a registry might fit a kernel: a note by a tag that a node can compute.

    fit-<sha256 of family and CRC of module_layout>   a note with the keys of sets, the last one pushed first

The family is that of the store's index. A note is a hint: who follows it proves the set. Tags have no
compare-and-swap, so whoever adds a key reads the note again afterwards, and adds it again where another one
wrote at the same time. A key that is lost all the same costs a build.
"""

from __future__ import annotations

import hashlib
import random
import re
from typing import Optional

from nvdriver_build.errors import StoreError
from nvdriver_build.kernel import KernelTarget
from nvdriver_build.registry.artifacts import NOTHING, note, parse_note
from nvdriver_build.registry.blobs import Content
from nvdriver_build.sets import Manifest, Recipe
from nvdriver_build.store.index import LAYOUT, family

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
    except ValueError:
        return ()


def _keys(content: Content, tag: str) -> tuple[str, ...]:
    document = content.document(tag)
    if document is None:
        return ()
    keys = parse_note(document, _FIT).get(_KEYS, "").split(",")
    return tuple(key for key in dict.fromkeys(keys[:_MOST]) if _KEY.fullmatch(key))


def add(content: Content, tag: str, key: str) -> None:
    """Have a key there, in place of what is no such note; StoreError where others keep on writing over it."""
    for turn in range(_TRIES):
        keys = _sound(content, tag)
        if key in keys:
            return
        content.publish(tag, note(_FIT, {_KEYS: ",".join((key, *keys)[:_MOST])}), NOTHING, known=True)
        content.session.transport.pause(_SETTLE * (turn + 1) * random.uniform(0.5, 1.5))
    if key not in read(content, tag):
        raise StoreError(f"{tag} is written by many at once", hint="the next push adds the set")


def _tag(of_family: str, layout: int) -> str:
    return "fit-" + hashlib.sha256(f"{of_family} {layout:08x}".encode()).hexdigest()
