"""Files that `oc get ... -o json` (or `-o yaml`) has written. What cannot be read is a ClusterError.

Nodes come one by one: a node with the names of its images is some 25 kB, a cluster of 10,000 hence 250 MB.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Iterator, Mapping, TextIO

from attrs import define

from nvdriver_build.errors import ClusterError, UsageError
from nvdriver_build.fleet.objects import part, text

_CHUNK = 1 << 20
_VALUE_LIMIT = 64 << 20
_FILE_LIMIT = 64 << 20
_ENDS = frozenset(" \t\r\n,:]}")
_DECODER = json.JSONDecoder()
INSTALL = "pip install '.[fleet]' in the source's folder; it needs Python 3.11 or later"


def read_nodes(path: Path) -> Iterator[object]:
    """The nodes of a file, as they come; UsageError or ClusterError where it has something else."""
    with path.open(encoding="utf-8-sig") as file:
        try:
            for item in _Stream(file, path).items():
                kind = text(item, "kind")
                if kind not in (None, "Node"):
                    raise _not_nodes(path, f"it has a {kind}")
                yield item
        except (ValueError, RecursionError) as error:  # UnicodeDecodeError is one, too
            raise _not_nodes(path, f"it is no JSON: {error}") from error


def read_objects(path: Path, *kinds: str) -> list[object]:
    """The objects of these kinds in a JSON or YAML file: one of them, or a list; ClusterError where none is
    there.
    """
    found = [item for item in _flat(_document(path)) if part(item).get("kind") in kinds]
    if not found:
        raise ClusterError(
            f"{path} has no {' or '.join(kinds)}",
            hint=f"'oc get ... -o json' writes it; is it of {kinds[0].lower()}?",
        )
    return found


def read_settings(path: Path) -> object:
    """A document in YAML or JSON; UsageError where it is neither."""
    try:
        return _document(path)
    except ClusterError as error:
        raise UsageError(error.message, hint="it takes YAML or JSON") from error


def to_yaml(objects: list[dict[str, Any]]) -> str:
    """Documents for `oc apply -f`: the same bytes for the same objects."""
    yaml = _yaml()

    class Dumper(yaml.SafeDumper):  # type: ignore[misc, name-defined]
        """Writes texts of several lines as they are: certificates and settings can be read."""

    def write(dumper: Any, value: str) -> Any:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, write)
    options = {"sort_keys": False, "explicit_start": True, "width": 110}
    return str(yaml.dump_all(objects, Dumper=Dumper, **options))


def _flat(document: object) -> Iterator[object]:
    """An object, or the objects of a list; those of an API's own list do not say their kind again."""
    items = part(document).get("items")
    if not isinstance(items, list):
        yield document
        return
    kind = (text(document, "kind") or "").removesuffix("List")
    for item in items:
        yield {"kind": kind, **item} if isinstance(item, dict) else item


def _document(path: Path) -> object:
    with path.open(encoding="utf-8-sig") as file:
        try:
            content = file.read(_FILE_LIMIT + 1)
            if len(content) > _FILE_LIMIT:
                raise ValueError(f"more than {_FILE_LIMIT >> 20} MiB")
            if content.lstrip().startswith("{"):
                return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ClusterError(
                f"{path} cannot be read: {error}", hint="'oc get ... -o json' writes it"
            ) from error
    yaml = _yaml()
    try:
        return yaml.load(content, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        words = " ".join(str(error).split())[:200]
        raise ClusterError(
            f"{path} is neither JSON nor YAML: {words}", hint="'oc get ... -o json' writes it"
        ) from error


def _yaml() -> Any:
    try:
        import yaml
    except ImportError as error:
        raise UsageError("YAML needs PyYAML, which is not installed", hint=INSTALL) from error
    return yaml


def _not_nodes(path: Path, why: str) -> ClusterError:
    return ClusterError(f"{path} is no list of nodes: {why}", hint="'oc get nodes -o json' writes it")


@define
class _Stream:
    """A JSON object whose `items` are decoded one by one, in as little memory as the largest of them
    takes.
    """

    file: TextIO
    path: Path
    buffer: str = ""
    at: int = 0
    ended: bool = False

    def items(self) -> Iterator[object]:
        """The elements of the top's `items`; the top itself where it is an object without."""
        self._take("{")
        rest: dict[str, Any] = {}
        listed = False
        while self._next() != "}":
            if rest or listed:
                self._take(",")
            key = self._value()
            self._take(":")
            if key == "items" and self._next() == "[":
                listed = True
                yield from self._elements()
            else:
                rest[str(key)] = self._value()
        if not listed:
            yield self._alone(rest)

    def _alone(self, top: Mapping[str, Any]) -> object:
        if top.get("kind") != "Node":
            raise _not_nodes(self.path, "it has no items")
        return top

    def _elements(self) -> Iterator[object]:
        self._take("[")
        first = True
        while self._next() != "]":
            if not first:
                self._take(",")
            first = False
            yield self._value()
        self._take("]")

    def _value(self) -> object:
        """The next value, however many chunks it takes."""
        self._next()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.buffer, self.at)
                # '1' of '1.5' is a value, too: what follows has to end it
                if self.ended or self.buffer[end : end + 1] in _ENDS:
                    self.at = end
                    return value
            except ValueError:
                if self.ended:
                    raise
            if len(self.buffer) - self.at > _VALUE_LIMIT:
                raise ValueError(f"a value of more than {_VALUE_LIMIT >> 20} MiB")
            self._fill()

    def _next(self) -> str:
        """The next character that is no blank, which stays; ValueError at the end."""
        while True:
            while self.at < len(self.buffer):
                if not self.buffer[self.at].isspace():
                    return self.buffer[self.at]
                self.at += 1
            if self.ended:
                raise ValueError("it ends too early")
            self._fill()

    def _take(self, wanted: str) -> None:
        if self._next() != wanted:
            raise ValueError(f"{wanted!r} is expected, there is {self.buffer[self.at]!r}")
        self.at += 1

    def _fill(self) -> None:
        """Twice as much at each retry, so that a large value is not decoded again and again."""
        rest = self.buffer[self.at :]
        chunk = self.file.read(max(_CHUNK, len(rest)))
        self.ended = not chunk
        self.buffer, self.at = rest + chunk, 0
