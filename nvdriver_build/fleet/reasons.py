"""`Reason`: why something is as it is, and what a person can do."""

from __future__ import annotations

from typing import Iterable, Optional

from attrs import frozen

_NAMED = 3


@frozen(order=True)
class Reason:
    """One reason. `code` is a CamelCase word, as Kubernetes' Events and conditions want it.

    `message` is a sentence with the values; `hint` what would mend it, empty where nothing has to be done.
    """

    code: str
    message: str
    hint: str = ""

    def document(self) -> dict[str, Optional[str]]:
        """As in the JSON of `fleet plan` (docs/contracts.md)."""
        return {"code": self.code, "message": self.message, "hint": self.hint or None}


def some(names: Iterable[str]) -> str:
    """The first names and how many more there are, whatever order they come in."""
    listed = sorted(names)
    more = len(listed) - _NAMED
    return ", ".join(listed[:_NAMED]) + (f" and {more} more" if more > 0 else "")
