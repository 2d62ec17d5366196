"""Parts of API objects, whatever shape they have: what is not as it should be is not there."""

from __future__ import annotations

from typing import Any, Iterator, Mapping, Optional

_LIMIT = 1024
_NOTHING: Mapping[str, Any] = {}


def part(value: object, *names: str) -> Mapping[str, Any]:
    """The mapping at this path; an empty one where something on the way is none."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else _NOTHING


def entries(value: object, *names: str) -> Iterator[Mapping[str, Any]]:
    """The mappings of the list at this path."""
    found = part(value, *names[:-1]).get(names[-1]) if names else value
    yield from (each for each in found if isinstance(each, dict)) if isinstance(found, list) else ()


def text(value: object, *names: str) -> Optional[str]:
    """The text at this path, without blanks around it; None where it is none, empty, too long or not
    printable.
    """
    found = part(value, *names[:-1]).get(names[-1])
    if not isinstance(found, str) or len(found) > _LIMIT:
        return None
    found = found.strip()
    return found if found and found.isprintable() else None


def texts(value: object, *names: str) -> Mapping[str, str]:
    """The texts of the mapping at this path: labels, annotations."""
    return {key: each for key, each in part(value, *names).items() if isinstance(each, str)}


def number(value: object, *names: str) -> Optional[int]:
    """The whole number, from 0 up, at this path."""
    found = part(value, *names[:-1]).get(names[-1])
    return found if isinstance(found, int) and not isinstance(found, bool) and found >= 0 else None


def flag(value: object, *names: str) -> bool:
    """Whether there is a true at this path."""
    return part(value, *names[:-1]).get(names[-1]) is True


def condition(value: object, kind: str) -> Optional[Mapping[str, Any]]:
    """The condition of this type in status.conditions."""
    found = (each for each in entries(value, "status", "conditions") if each.get("type") == kind)
    return next(found, None)


def holds(value: object, kind: str) -> Optional[bool]:
    """Whether a condition of status.conditions is True; None where it is Unknown or missing."""
    return {"True": True, "False": False}.get(str((condition(value, kind) or {}).get("status")))
