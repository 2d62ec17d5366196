"""What stands for the Secrets that the driver's pods read: a change of one changes the pods."""

from __future__ import annotations

from typing import Callable, Optional

from attrs import define, field

from nvdriver_build.fleet.controller.api import Api, Missing
from nvdriver_build.fleet.controller.kinds import SECRET
from nvdriver_build.fleet.manifests import Driver, content_digest
from nvdriver_build.fleet.objects import texts

AGE = 60.0
"""Seconds after which they are read again: they are not watched, since nobody but the pods may list them."""


@define
class Secrets:
    """Digests of the Secrets of a driver, read at most once in `AGE`."""

    api: Api
    driver: Driver
    clock: Callable[[], float]
    _read: Optional[float] = None
    _digests: dict[str, str] = field(factory=dict)

    def digests(self) -> dict[str, str]:
        """By name, of those that are there. Raises what the API raises."""
        if self._read is None or self.clock() - self._read > AGE:
            found = {name: self._digest(name) for name in self.driver.secrets}
            there = {name: value for name, value in found.items() if value is not None}
            self._digests = {**self._digests, **there}  # one that is being replaced keeps its last one
            self._read = self.clock()
        return self._digests

    def _digest(self, name: str) -> Optional[str]:
        try:
            return content_digest(name, texts(self.api.get(SECRET, name, self.driver.namespace), "data"))
        except Missing:
            return None
