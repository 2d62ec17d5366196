"""The driver's settings for `fleet`, and what nodes would refuse in them, told before any pod is made."""

from __future__ import annotations

import difflib
import ssl
from pathlib import Path
from typing import Optional

from nvdriver_build.config import read_config
from nvdriver_build.errors import SigningError, UsageError
from nvdriver_build.fleet.manifests import Driver, driver_settings
from nvdriver_build.fleet.reading import read_settings
from nvdriver_build.loader.parameters import FILES, parse_line
from nvdriver_build.registry.place import parse_place
from nvdriver_build.signing import parse_certificates

_OPERATORS = "nvidia-gpu-operator"


def read_driver(settings: Optional[Path], image: Optional[str]) -> Driver:
    """The driver of a settings file, with another image where one is given; UsageError for what is wrong."""
    document = read_settings(settings) if settings else {}
    if image is not None and isinstance(document, dict):
        document = {**document, "image": image}
    driver = driver_settings(document)
    _require_usable(driver)
    return driver


def _require_usable(driver: Driver) -> None:
    if driver.namespace == _OPERATORS:
        raise UsageError(
            f"namespace is {_OPERATORS}",
            hint="the GPU Operator takes pods there for its own: give another one",
        )
    read_config({name: value for name, value in driver.env.items() if value})
    if driver.registry is not None:
        parse_place(driver.registry)
    _require_authority(driver.registry_ca)
    _require_certificates(driver.trust)
    for name, text in driver.parameters.items():
        if name not in FILES:
            near = difflib.get_close_matches(name, FILES, 1)
            hint = f"did you mean {near[0]}?" if near else f"read are {', '.join(FILES)}"
            raise UsageError(f"parameters has a file that is not read: {name}", hint=hint)
        for number, line in enumerate(text.split("\n"), 1):
            parse_line(line, f"{name}, line {number}")


def _require_authority(text: Optional[str]) -> None:
    try:
        ssl.create_default_context(cadata=text or None)
    except ssl.SSLError as error:
        raise UsageError(
            f"registry_ca cannot be used: {error.reason or error}",
            hint="it is the text of a file of CA certificates, PEM",
        ) from error


def _require_certificates(text: Optional[str]) -> None:
    if text is None:
        return
    try:
        parse_certificates(text.encode(), "trust")
    except SigningError as error:
        hint = "it is the text of a PEM file: certificates of RSA keys"
        raise UsageError(error.message, hint=hint) from error
