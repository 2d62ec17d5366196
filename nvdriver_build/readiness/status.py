"""What `run` is doing, for `status`, `probe` and people."""

from __future__ import annotations

import json
from typing import Any, Mapping, Optional

from attrs import asdict, fields, frozen

SCHEMA = 1
_PROGRESS, _ERROR = ("done", "total", "elapsed"), ("message", "hint")


@frozen
class Status:
    """The document status.json; what is not known is null. Times are seconds, `since` is ISO 8601 in UTC."""

    stage: Optional[str] = None
    """The stage that runs, or that failed."""
    progress: Optional[Mapping[str, Any]] = None
    """How far a build is: `done`, `total`, `elapsed`."""
    key: Optional[str] = None
    """The key of the module set."""
    origin: Optional[str] = None
    """`built`, `store`, `registry` or `loaded`."""
    fit: Optional[str] = None
    """`exact` or `compatible`."""
    built_for: Optional[str] = None
    """The kernel that the set was built for; where compatible, another than the one that runs."""
    proof: Optional[str] = None
    """Why the headers are those of the running kernel."""
    driver_version: Optional[str] = None
    kernel_release: Optional[str] = None
    modules: Optional[Mapping[str, Optional[str]]] = None
    """The modules that must be live, by name, with their build ids."""
    timings: Optional[Mapping[str, float]] = None
    """How long each stage took."""
    ready: bool = False
    since: Optional[str] = None
    """When `ready` became what it is."""
    error: Optional[Mapping[str, Any]] = None
    """The last error: code, kind, message and hint (contracts.md, JSON documents)."""
    peermem_error: Optional[Mapping[str, Any]] = None
    """Why the driver came up without nvidia-peermem, which was wanted; as `error`."""

    def document(self) -> dict[str, Any]:
        """The object that is written."""
        return {"schema": SCHEMA, **asdict(self)}

    def text(self) -> str:
        """The file's content."""
        return json.dumps(self.document(), indent=1) + "\n"


def parse_status(text: str) -> Optional[Status]:
    """The status that `text` holds; None where it is no such document. Unknown fields are passed over."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        return None
    status = Status(
        **{field.name: document[field.name] for field in fields(Status) if field.name in document}
    )
    return status if _sound(status) else None


def _sound(status: Status) -> bool:
    """Whether the fields that somebody looks into are of the kind that they should be."""
    maps: tuple[tuple[Any, tuple[str, ...]], ...] = (
        (status.modules, ()),
        (status.timings, ()),
        (status.progress, _PROGRESS),
        (status.error, _ERROR),
        (status.peermem_error, _ERROR),
    )
    if not all(
        value is None or (isinstance(value, dict) and value.keys() >= {*keys}) for value, keys in maps
    ):
        return False
    numbers = [*(status.timings or {}).values(), *((status.progress or {}).get(key, 0) for key in _PROGRESS)]
    return (
        isinstance(status.ready, bool)
        and all(name.isascii() and name.isprintable() for name in status.modules or ())
        and all(isinstance(number, (int, float)) for number in numbers)
    )
