"""The documents of a registry: what a set is there, and small notes. Pure: bytes in, values out.

A set is an image manifest of the OCI Image Specification 1.1 with a type of its own:

    artifactType  application/vnd.nvdriver-build.set.v1
    config        the bytes of manifest.json
    layers        manifest.p7s, if there is one; each module as one zstd stream, with its file name as title

A note is one without content: what it says stands in its annotations.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Mapping, Optional

from attrs import field, frozen

from nvdriver_build.sets import MANIFEST

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
SET = "application/vnd.nvdriver-build.set.v1"
MANIFEST_TYPE = "application/vnd.nvdriver-build.manifest.v1+json"
SIGNATURE_TYPE = "application/vnd.nvdriver-build.signature.v1"
MODULE_TYPE = "application/vnd.nvdriver-build.module.v1+zstd"
EMPTY_TYPE, EMPTY = "application/vnd.oci.empty.v1+json", b"{}"
"""OCI Image Specification 1.1, 'Guidance for an Empty Descriptor'."""
MOST_DOCUMENT = 1024 * 1024
"""Bytes of an image manifest or a note; registries take 4 MiB at most."""
MOST_MANIFEST = 4 * 1024 * 1024
"""Bytes of a manifest.json; NVIDIA's five modules have 0.3 MiB."""
MOST_SIGNATURE = 256 * 1024
_MOST_LAYERS = 64
_TITLE = "org.opencontainers.image.title"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@frozen
class Blob:
    """A piece of content: `digest` as `sha256:HEX`, `size` in bytes, `title` its file name."""

    media_type: str
    digest: str
    size: int
    title: Optional[str] = None

    def document(self) -> dict[str, Any]:
        """Its descriptor."""
        title = {"annotations": {_TITLE: self.title}} if self.title else {}
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size, **title}


@frozen
class Artifact:
    """A set in a registry; `modules` by their file names."""

    config: Blob
    signature: Optional[Blob]
    modules: Mapping[str, Blob] = field(factory=dict)

    def document(self) -> bytes:
        """Its image manifest."""
        signature = [self.signature] if self.signature else []
        return _image(SET, self.config, [*signature, *self.modules.values()])


def blob_of(data: bytes, media_type: str, title: Optional[str] = None) -> Blob:
    """What bytes are called."""
    return Blob(media_type, digest_of(data), len(data), title)


def digest_of(data: bytes) -> str:
    """The digest of bytes, as OCI writes it."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


NOTHING = ((blob_of(EMPTY, EMPTY_TYPE), EMPTY),)
"""The content of a note, for whoever sends it."""


def parse_artifact(data: bytes) -> Artifact:
    """The set that an image manifest describes; ValueError says why it is none."""
    document = _parse(data, SET)
    config = _blob(document.get("config"))
    if (config.media_type, config.size <= MOST_MANIFEST) != (MANIFEST_TYPE, True):
        raise ValueError(f"its config is {config.media_type} of {config.size} bytes, no {MANIFEST}")
    layers = document.get("layers")
    if not isinstance(layers, list) or len(layers) > _MOST_LAYERS:
        raise ValueError(f"its layers are no list of at most {_MOST_LAYERS}")
    signature, modules = None, {}
    for layer in map(_blob, layers):
        if layer.media_type == SIGNATURE_TYPE and signature is None and layer.size <= MOST_SIGNATURE:
            signature = layer
        elif layer.media_type == MODULE_TYPE and layer.title and layer.title not in modules:
            modules[layer.title] = layer
        else:
            raise ValueError(f"a layer of type {layer.media_type} and {layer.size} bytes is not one of a set")
    return Artifact(config, signature, modules)


def note(kind: str, annotations: Mapping[str, str]) -> bytes:
    """A note as an image manifest."""
    empty = blob_of(EMPTY, EMPTY_TYPE)
    return _image(kind, empty, [empty], annotations)


def parse_note(data: bytes, kind: str) -> dict[str, str]:
    """What a note says; ValueError where it is not one of that kind."""
    annotations = _parse(data, kind).get("annotations", {})
    if not isinstance(annotations, dict):
        raise ValueError("its annotations are no object")
    return {name: value for name, value in annotations.items() if isinstance(value, str)}


def _image(kind: str, config: Blob, layers: list[Blob], annotations: Mapping[str, str] = {}) -> bytes:
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": kind,
        "config": config.document(),
        "layers": [layer.document() for layer in layers],
        **({"annotations": dict(annotations)} if annotations else {}),
    }
    return json.dumps(document, separators=(",", ":")).encode()


def _parse(data: bytes, kind: str) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("it is no JSON") from None
    if not isinstance(document, dict) or document.get("schemaVersion") != 2:
        raise ValueError("it is no image manifest")
    if document.get("mediaType", OCI_MANIFEST) != OCI_MANIFEST or document.get("artifactType") != kind:
        raise ValueError(f"its type is {str(document.get('artifactType'))[:100]!r}, not {kind}")
    return document


def _blob(descriptor: Any) -> Blob:
    """A descriptor; ValueError where it is none that we follow. Addresses in it are not."""
    fields = descriptor if isinstance(descriptor, dict) else {}
    kind, digest, size = (fields.get(name) for name in ("mediaType", "digest", "size"))
    if not isinstance(kind, str) or not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise ValueError("a descriptor has no media type, or no sha256")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ValueError(f"a descriptor has size {str(size)[:40]}")
    notes = fields.get("annotations")
    title = notes.get(_TITLE) if isinstance(notes, dict) else None
    return Blob(kind[:200], digest, size, title if isinstance(title, str) else None)
