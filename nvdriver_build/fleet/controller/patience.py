"""How long to wait after a failure: longer each time, not all at once, not less than was asked for."""

from __future__ import annotations

import random
from typing import Callable, Iterable, Optional

from attrs import define

from nvdriver_build.fleet.controller.api import Refused


@define
class Patience:
    """Seconds to wait: `first`, then twice as long each time up to `most`, each a little by chance."""

    first: float = 1.0
    most: float = 60.0
    chance: Callable[[], float] = random.random
    failures: int = 0

    def after(self, error: Optional[Exception] = None) -> float:
        """After one more failure; at least as long as the API asked for."""
        seconds = min(self.most, self.first * 2.0 ** min(self.failures, 16))
        self.failures += 1
        asked = error.retry_after if isinstance(error, Refused) and error.retry_after else 0.0
        return max(seconds * (0.8 + 0.4 * self.chance()), asked)

    @staticmethod
    def asked(errors: Iterable[Exception]) -> float:
        """For how long the API asked us to leave it alone."""
        return max((each.retry_after or 0.0 for each in errors if isinstance(each, Refused)), default=0.0)

    def forget(self) -> None:
        """It went well."""
        self.failures = 0
