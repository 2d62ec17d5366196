"""A kernel's `.config`, as a mapping from names without `CONFIG_` to values as written."""

from __future__ import annotations

import hashlib
from typing import Mapping

IRRELEVANT = (
    "BUILD_SALT",
    "LOCALVERSION",
    "LOCALVERSION_AUTO",
    "CC_VERSION_TEXT",
    "MODULE_SIG_KEY",
    "SYSTEM_TRUSTED_KEYS",
    "SYSTEM_REVOCATION_KEYS",
    "SYSTEM_BLACKLIST_HASH_LIST",
)
"""Settings that change no layout: salt, names, keys and the compiler's text (design: Fit, `compatible`)."""


def parse_config(text: str) -> Mapping[str, str]:
    """Read the text of a `.config`; what is not set is not there."""
    values = {}
    for line in text.splitlines():
        if line.startswith("CONFIG_"):
            name, equals, value = line[len("CONFIG_") :].partition("=")
            if equals:
                values[name] = value.strip().strip('"')
    return values


def relevant(config: Mapping[str, str]) -> Mapping[str, str]:
    """The settings that can change how a module is laid out."""
    return {name: value for name, value in config.items() if name not in IRRELEVANT}


def digest(config: Mapping[str, str]) -> str:
    """sha256 over the relevant settings, in a fixed order."""
    lines = "".join(f"{name}={value}\n" for name, value in sorted(relevant(config).items()))
    return hashlib.sha256(lines.encode()).hexdigest()
