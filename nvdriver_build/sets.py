"""`ModuleSet`: built modules in a folder, with the manifest of what they are and how they were made.

A set's folder holds the .ko files and `manifest.json`, which is written last. Its key is known before
anything is built: sha256 over the canonical JSON of `Recipe` (contracts, section 6).
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
from pathlib import Path
from typing import Any, Mapping, Optional, Sequence, Union

import cattrs
from attrs import asdict, field, frozen

from nvdriver_build.elf import ModuleFacts, read_module
from nvdriver_build.errors import StoreError
from nvdriver_build.files import publish, sha256_file

SCHEMA = 1
MANIFEST = "manifest.json"
SIGNATURE = "manifest.p7s"
"""The signature over the bytes of the manifest, where the set has one."""
_OWN_DIGEST = "sha256"
UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RecursionError,
    cattrs.BaseValidationError,
)
"""What reading a document that anybody may have written can raise."""
_MANIFEST_LIMIT = 64 * 1024 * 1024
_FILE = re.compile(r"[0-9A-Za-z][0-9A-Za-z_.+-]*")
"""Names of files that no system takes for a path, nor refuses."""


@frozen
class Recipe:
    """What decides about the bytes of a set; two equal recipes give equal modules."""

    driver_version: str
    source_digest: str
    kind: str
    modules: tuple[str, ...]
    kernel_release: str
    arch: str
    symvers_sha256: str
    config_sha256: str
    debug_info: bool = False
    mofed_symvers_sha256: Optional[str] = None
    certificate: Optional[str] = None
    schema: int = SCHEMA

    @property
    def key(self) -> str:
        """The name of the set in a store."""
        return _digest(asdict(self))


@frozen
class Provenance:
    """How a set was made; no part of the key. `proof` says why the headers are the kernel's."""

    tool: str
    compiler: str
    make_flags: tuple[str, ...]
    proof: str


@frozen
class ModuleFile:
    """One module of a set: its file name, digest and size, and what `inspect` says of it."""

    file: str
    sha256: str
    size: int
    facts: Mapping[str, Any] = field(repr=False)


@frozen
class Manifest:
    """The document `manifest.json`."""

    key: str
    recipe: Recipe
    flavour: str
    vermagic: str
    config_digest: str
    provenance: Provenance
    files: tuple[ModuleFile, ...]
    schema: int = SCHEMA


@frozen
class ModuleSet:
    """A set on disk. `paths` are its modules in the order of the recipe."""

    folder: Path
    manifest: Manifest

    @property
    def key(self) -> str:
        """The name of the set in a store."""
        return self.manifest.key

    @property
    def paths(self) -> tuple[Path, ...]:
        """The module files."""
        return tuple(self.folder / file.file for file in self.manifest.files)

    def read(self, *, digest: bool = False) -> tuple[ModuleFacts, ...]:
        """What the ELF of each module says now; ModuleFormatError where one is damaged."""
        return tuple(read_module(path, digest=digest) for path in self.paths)


def describe(
    folder: Path, recipe: Recipe, provenance: Provenance, *, flavour: str, vermagic: str, config_digest: str
) -> ModuleSet:
    """Describe freshly built modules in `folder`, writing the manifest last."""
    files = []
    for name in recipe.modules:
        facts = read_module(folder / f"{name}.ko")
        assert facts.sha256 is not None  # asked for by default
        document = {**facts_document(facts), "path": f"{name}.ko"}
        files.append(ModuleFile(f"{name}.ko", facts.sha256, facts.size, document))
    manifest = Manifest(recipe.key, recipe, flavour, vermagic, config_digest, provenance, tuple(files))
    write_manifest(folder, manifest)
    return ModuleSet(folder, manifest)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json`, with a digest of itself: a changed byte in it must not go unseen."""
    document = cattrs.unstructure(manifest)
    text = json.dumps({**document, _OWN_DIGEST: _digest(document)}, indent=1, sort_keys=True)
    publish(folder / MANIFEST, text + "\n")


def _digest(document: Mapping[str, Any]) -> str:
    """sha256 over canonical JSON."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def open_set(folder: Path, *, check: bool = True) -> ModuleSet:
    """Read a set; StoreError with the reason where it is damaged in any way.

    With `check` every byte counts: the manifest is compared with its own digest, each file with its.
    """
    manifest = parse_manifest(_manifest_bytes(folder / MANIFEST), folder, check=check)
    for file in manifest.files if check else ():
        _check_file(folder, file)
    return ModuleSet(folder, manifest)


def parse_manifest(data: bytes, where: Union[Path, str], *, check: bool = True) -> Manifest:
    """The manifest that these bytes are; StoreError, which names `where`, if it contradicts itself."""
    try:
        document = json.loads(data)
        digest = document.pop(_OWN_DIGEST, None)
        if check and digest != _digest(document):
            raise _damaged(where, "its manifest is not as it was written")
        manifest = cattrs.structure(document, Manifest)
    except UNREADABLE as error:
        raise _damaged(where, f"its manifest cannot be read ({type(error).__name__})") from error
    if manifest.schema != SCHEMA:
        raise _damaged(where, f"its schema is {manifest.schema}, this program knows {SCHEMA}")
    if manifest.key != manifest.recipe.key:
        raise _damaged(where, f"its key {manifest.key} is not that of its recipe, {manifest.recipe.key}")
    if tuple(file.file for file in manifest.files) != tuple(f"{name}.ko" for name in manifest.recipe.modules):
        raise _damaged(where, "its files are not the modules of its recipe")
    for file in manifest.files:
        if not _FILE.fullmatch(file.file):
            raise _damaged(where, f"{file.file!r} is no name of a module's file")
    return manifest


def _manifest_bytes(path: Path) -> bytes:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise _damaged(path.parent, f"its {MANIFEST} is no file")
        if found.st_size > _MANIFEST_LIMIT:
            raise _damaged(path.parent, f"its manifest is larger than {_MANIFEST_LIMIT} bytes")
        return path.read_bytes()
    except FileNotFoundError:
        raise _damaged(path.parent, f"it has no {MANIFEST}") from None
    except OSError as error:
        raise _damaged(path.parent, f"its manifest cannot be read ({type(error).__name__})") from error


def _check_file(folder: Path, file: ModuleFile) -> None:
    path = folder / file.file
    try:
        if stat.S_ISFIFO(path.stat().st_mode):  # to open it would wait forever
            raise _damaged(folder, f"{file.file} is no file")
        found = sha256_file(path)
    except OSError as error:
        raise _damaged(folder, f"{file.file} cannot be read: {error.strerror}") from error
    if found != file.sha256:
        raise _damaged(folder, f"{file.file} has sha256 {found}, the manifest says {file.sha256}")


def _damaged(folder: Union[Path, str], reason: str) -> StoreError:
    return StoreError(
        f"module set {folder} is damaged: {reason}",
        hint="build it again, or copy it again, whole",
    )


def facts_document(facts: ModuleFacts) -> dict[str, Any]:
    """The object of `inspect` for one module (contracts, section 1)."""
    return {
        "path": facts.path,
        "name": facts.name,
        "version": facts.version,
        "vermagic": facts.vermagic,
        "srcversion": facts.srcversion,
        "license": facts.license,
        "depends": list(facts.depends),
        "machine": facts.machine,
        "bits": facts.bits,
        "byteorder": facts.byteorder,
        "symbols_needed": {name: f"{crc:#010x}" for name, crc in sorted(facts.needed.items())},
        "undefined": sorted({*facts.undefined, *facts.weak}),
        "weak": sorted(facts.weak),
        "import_ns": list(facts.import_ns),
        "symbols_exported": {
            name: None if export.crc is None else f"{export.crc:#010x}"
            for name, export in sorted(facts.exports.items())
        },
        "build_id": facts.build_id,
        "signature": asdict(facts.signature) if facts.signature else None,
        "sha256": facts.sha256,
        "size": facts.size,
    }


def explain_miss(wanted: Recipe, there: Sequence[Recipe]) -> str:
    """Why no set of `there` is the one wanted: the first field that differs from the nearest."""
    if not there:
        return "the store is empty"
    mine = asdict(wanted)
    nearest = min(
        there, key=lambda recipe: sum(mine[name] != value for name, value in asdict(recipe).items())
    )
    for name, value in asdict(nearest).items():
        if mine[name] != value:
            return f"the nearest set, {nearest.key[:12]}, has {name} {value}, wanted is {mine[name]}"
    return "nothing differs"
