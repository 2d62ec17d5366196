"""The documents that cross between the two ends, and how they are read: as hostile."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Mapping, Optional, TypeVar

import cattrs
from attrs import field, frozen
from attrs.validators import in_, matches_re

from nvdriver_build import __version__, errors
from nvdriver_build.errors import NvdriverError, ToolkitError
from nvdriver_build.files import publish, read_plain
from nvdriver_build.sets import UNREADABLE, Recipe

SCHEMA = 1
HEADERS, BUILD, NOTHING = "headers", "build", "nothing"
"""What can be asked for: a description of a kernel, a set, or no more than to stand by."""
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LIMIT = 1024 * 1024
"""Bytes that a document may have."""
EXCERPT = 16 * 1024
"""Characters of a message that cross: what a compiler says may be of any length."""
_ID = r"[0-9a-f]{16}"
"""Ids become names of folders."""
SAME_VERSION = "both containers of the pod must run the same version: delete the pod"
_T = TypeVar("_T")


def _sound_digest(_: object, __: object, recipe: Recipe) -> None:
    """The digest becomes the name of a folder."""
    if not _DIGEST.fullmatch(recipe.source_digest):
        raise ValueError(recipe.source_digest)


def _finite(_: object, __: object, value: float) -> None:
    """Arithmetic takes it; and NaN, which is equal to nothing, would be a new sign of life at each look."""
    if not 0 <= value < 10**9:
        raise ValueError(value)


@frozen
class Order:
    """A set that is wanted, its source in the shared folder. `jobs` is None for what the cgroup allows."""

    recipe: Recipe = field(validator=_sound_digest)
    proof: str
    jobs: Optional[int] = None
    job_memory: int = 1024**3
    allow_compiler_mismatch: bool = False
    symvers: Optional[str] = None
    """What MOFED and nvidia export, for nvidia-peermem."""


@frozen
class Request:
    """What the driver's end wants: `what` is `headers`, `build` or `nothing`."""

    attempt: str = field(validator=matches_re(_ID))
    driver: str
    what: str = field(validator=in_((HEADERS, BUILD, NOTHING)))
    kernel_release: str
    order: Optional[Order] = None
    tool: str = __version__
    schema: int = SCHEMA


@frozen
class Introduction:
    """Who the toolkit's end is. With `error` it can serve nobody, whatever is asked."""

    instance: str
    tool: Optional[str] = None
    error: Optional[Mapping[str, Any]] = None
    kernel: Optional[str] = None
    rt_kernel: Optional[str] = None
    rhel: Optional[str] = None
    compiler: Optional[str] = None
    installed: Optional[Mapping[str, str]] = None
    """The kernels that it has headers of, with their flavours."""
    schema: int = SCHEMA


@frozen
class Beat:
    """A sign of life: another `count` each time. The progress of a build is that of `Progress`."""

    instance: str
    count: int = field(default=0, validator=_finite)
    done: int = field(default=0, validator=_finite)
    total: int = field(default=0, validator=_finite)
    elapsed: float = field(default=0.0, validator=_finite)
    schema: int = SCHEMA


@frozen
class Result:
    """How an attempt ended: `key` names a set in the shared store, `error` is as in the contracts."""

    attempt: str
    toolkit: str
    key: Optional[str] = None
    error: Optional[Mapping[str, Any]] = None
    log_tail: str = ""
    schema: int = SCHEMA


def write(path: Path, document: object) -> None:
    """Let a document appear whole. Nothing here outlives a boot, so the disk is not waited for."""
    publish(path, json.dumps(cattrs.unstructure(document)) + "\n", durable=False)


def read(path: Path, kind: type[_T]) -> Optional[_T]:
    """The document at `path`, None where there is none; ToolkitError where it is no such document."""
    content = read_raw(path)
    if content is None:
        return None
    if content.get("schema") != SCHEMA:
        raise ToolkitError(
            f"{path} has schema {content.get('schema')!r}, this program ({__version__}) knows {SCHEMA}",
            hint=SAME_VERSION,
        )
    try:
        return cattrs.structure(content, kind)
    except UNREADABLE as error:
        raise _damaged(path, type(error).__name__) from error


def read_raw(path: Path) -> Optional[Mapping[str, Any]]:
    """The object in a file, whatever it says; None where there is no file; ToolkitError where it is none."""
    try:
        content = json.loads(read_plain(path, _LIMIT))
    except FileNotFoundError:
        return None
    except UNREADABLE as error:
        raise _damaged(path, type(error).__name__) from error
    if not isinstance(content, dict):
        raise _damaged(path, "no object")
    return content


def _damaged(path: Path, why: str) -> ToolkitError:
    return ToolkitError(
        f"{path} cannot be understood ({why})",
        hint="only the two containers of the pod may write to the shared folder: delete the pod",
    )


def error_of(document: Mapping[str, Any]) -> NvdriverError:
    """The error that a document tells of, as the class that it had at the other end: its exit code counts."""
    message, hint = document.get("message"), document.get("hint")
    kind = getattr(errors, str(document.get("kind")), None)
    known = isinstance(kind, type) and issubclass(kind, NvdriverError)
    made: type[NvdriverError] = kind if known else ToolkitError  # type: ignore[assignment]
    return made(str(message), hint=None if hint is None else str(hint))
