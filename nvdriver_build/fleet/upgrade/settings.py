"""`Settings`: how a new driver rolls over the nodes, as the driver's settings have it (`upgrade`)."""

from __future__ import annotations

import difflib
import re
from typing import Any, Mapping, Union

from attrs import fields, frozen

from nvdriver_build.errors import UsageError

_PERCENT = re.compile(r"(\d{1,3})%", re.ASCII)
_MOST = 7 * 24 * 3600


@frozen
class Settings:
    """`max_unavailable` is a number of nodes, or a share of those with a GPU (`10%`, at least one node); 0
    turns it off. At `max_failures` failed nodes no other is begun. `drain_seconds` is how long pods may take
    to leave a node, `ready_seconds` how long a new driver may take to be ready.
    """

    max_unavailable: Union[int, str] = 1
    max_failures: int = 3
    drain_seconds: int = 1800
    ready_seconds: int = 1800

    def limit(self, nodes: int) -> int:
        """How many of so many nodes may be unavailable at once."""
        found = _PERCENT.fullmatch(str(self.max_unavailable))
        if found is None:
            return int(self.max_unavailable)
        share = int(found[1])
        return max(1, nodes * share // 100) if share else 0


def upgrade_settings(given: Mapping[str, Any]) -> Settings:
    """What a person gave; UsageError for what is not known or cannot be."""
    known = [each.name for each in fields(Settings)]
    for name, value in given.items():
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise UsageError(f"upgrade has an unknown setting {str(name)[:80]!r}", hint=hint)
        _require(name, value)
    return Settings(**given)


def _require(name: str, value: object) -> None:
    share = _PERCENT.fullmatch(value) if isinstance(value, str) and name == "max_unavailable" else None
    least = 0 if name == "max_unavailable" else 1
    number = isinstance(value, int) and not isinstance(value, bool) and least <= value <= _MOST
    if not number and (share is None or int(share[1]) > 100):
        words = "a number of nodes, or a share such as 10%" if least == 0 else f"a whole number up to {_MOST}"
        raise UsageError(f"upgrade.{name} is {str(value)[:80]!r}", hint=f"it takes {words}")
