"""`ModuleSet`: built modules in a folder, with the manifest of what they are and how they were made.

A set's folder holds the .ko files and `manifest.json`, which is written last, and may hold the manifest's
signature.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import re
import stat
from base64 import b64decode
from pathlib import Path
from typing import Any, Mapping, Optional

import cattrs
from attrs import field, frozen

from nvdriver_build.elf import ModuleFacts, read_module
from nvdriver_build.errors import CannotRead, StoreError
from nvdriver_build.files import publish, read_plain, sha256_file
from nvdriver_build.sets.documents import facts_document
from nvdriver_build.sets.recipe import SCHEMA, Recipe, digest_of

MANIFEST = "manifest.json"
SIGNATURE = "manifest.p7s"
"""A detached CMS signature over the bytes of the manifest."""
FOREIGN = "foreign"
"""Says where a set came from that this node has not built."""
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
MANIFEST_LIMIT = 64 * 1024 * 1024
_FOREIGN_LIMIT = 4096
TELLING = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.EINVAL,
    errno.ENXIO,
)
"""What the system says of files that are not what belongs there. Any other error may pass, EIO too: a path
to a disk comes back. A set whose sector is lost for good is replaced by the next one of its key."""
_FILE = re.compile(r"[0-9A-Za-z][0-9A-Za-z_.+-]*")
"""Names of files that no system takes for a path, nor refuses."""


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
    """The document `manifest.json`. `certificate` is base64 of the DER of the one that signed the modules."""

    key: str
    recipe: Recipe
    flavour: str
    vermagic: str
    config_digest: str
    provenance: Provenance
    files: tuple[ModuleFile, ...]
    certificate: Optional[str] = None
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

    @property
    def files(self) -> tuple[Path, ...]:
        """All that makes it the same set elsewhere: manifest, signature if there is one, modules."""
        signature = self.folder / SIGNATURE
        return (self.folder / MANIFEST, *([signature] if signature.exists() else []), *self.paths)

    @property
    def manifest_bytes(self) -> bytes:
        """What is signed."""
        return (self.folder / MANIFEST).read_bytes()

    @property
    def signature(self) -> Optional[bytes]:
        """The signature of its manifest, if it has one; OSError where that cannot be read."""
        with contextlib.suppress(FileNotFoundError):
            return read_plain(self.folder / SIGNATURE, MANIFEST_LIMIT)
        return None

    @property
    def foreign(self) -> Optional[str]:
        """Where it came from; None for one that was built here."""
        with contextlib.suppress(FileNotFoundError):
            return read_plain(self.folder / FOREIGN, _FOREIGN_LIMIT).decode("utf-8", "replace").strip()
        return None

    def read(self, *, digest: bool = False) -> tuple[ModuleFacts, ...]:
        """What the ELF of each module says now; ModuleFormatError where one is damaged."""
        return tuple(read_module(path, digest=digest) for path in self.paths)


def describe(
    folder: Path,
    recipe: Recipe,
    provenance: Provenance,
    *,
    flavour: str,
    vermagic: str,
    config_digest: str,
    certificate: Optional[str] = None,
) -> ModuleSet:
    """Describe freshly built modules in `folder`, writing the manifest last."""
    files = []
    for name in recipe.modules:
        facts = read_module(folder / f"{name}.ko")
        assert facts.sha256 is not None  # asked for by default
        document = {**facts_document(facts), "path": f"{name}.ko"}
        files.append(ModuleFile(f"{name}.ko", facts.sha256, facts.size, document))
    manifest = Manifest(
        recipe.key, recipe, flavour, vermagic, config_digest, provenance, tuple(files), certificate
    )
    write_manifest(folder, manifest)
    return ModuleSet(folder, manifest)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json`, with a digest of itself: a changed byte in it must not go unseen."""
    document = cattrs.unstructure(manifest)
    text = json.dumps({**document, _OWN_DIGEST: digest_of(document)}, indent=1, sort_keys=True)
    publish(folder / MANIFEST, text + "\n")


def open_set(folder: Path, *, check: bool = True) -> ModuleSet:
    """Read a set; StoreError with the reason where it is damaged in any way, CannotRead where nobody knows.

    With `check` every byte counts: the manifest is compared with its own digest, each file with its.
    """
    manifest = _read_manifest(folder / MANIFEST, check)
    for file in manifest.files if check else ():
        _check_file(folder, file)
    return ModuleSet(folder, manifest)


def _fingerprint(certificate: Optional[str]) -> Optional[str]:
    """sha256 of the DER, which recipes name."""
    try:
        return (
            None if certificate is None else hashlib.sha256(b64decode(certificate, validate=True)).hexdigest()
        )
    except ValueError:
        return ""


def _read_manifest(path: Path, check: bool) -> Manifest:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise _damaged(path.parent, f"its {MANIFEST} is no file")
        if found.st_size > MANIFEST_LIMIT:
            raise _damaged(path.parent, f"its manifest is larger than {MANIFEST_LIMIT} bytes")
        return parse_manifest(path.read_bytes(), path.parent, check)
    except (FileNotFoundError, NotADirectoryError):
        raise _no_set(path.parent) from None
    except OSError as error:
        raise not_read(path.parent, "its manifest", error) from error


def parse_manifest(data: bytes, place: object, check: bool = True) -> Manifest:
    """The manifest of a set at `place`, which errors name; StoreError where it is damaged in any way."""
    try:
        document = json.loads(data)
        digest = document.pop(_OWN_DIGEST, None)
        manifest = cattrs.structure(document, Manifest)
        as_written = not check or digest == digest_of(document)
    except UNREADABLE as error:
        raise _damaged(place, f"its manifest cannot be read ({type(error).__name__})") from error
    if not as_written:
        raise _damaged(place, "its manifest is not as it was written")
    _require_sound(manifest, place)
    return manifest


def _require_sound(manifest: Manifest, place: object) -> None:
    if manifest.schema != SCHEMA:
        raise _damaged(place, f"its schema is {manifest.schema}, this program knows {SCHEMA}")
    if manifest.key != manifest.recipe.key:
        raise _damaged(place, f"its key {manifest.key} is not that of its recipe, {manifest.recipe.key}")
    if tuple(file.file for file in manifest.files) != tuple(f"{name}.ko" for name in manifest.recipe.modules):
        raise _damaged(place, "its files are not the modules of its recipe")
    if _fingerprint(manifest.certificate) != manifest.recipe.certificate:
        raise _damaged(place, "its certificate is not that of its recipe")
    for file in manifest.files:
        if not _FILE.fullmatch(file.file):
            raise _damaged(place, f"{file.file!r} is no name of a module's file")


def _check_file(folder: Path, file: ModuleFile) -> None:
    path = folder / file.file
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe would wait forever
            raise _damaged(folder, f"{file.file} is no file")
        found = sha256_file(path)
    except OSError as error:
        raise not_read(folder, file.file, error) from error
    if found != file.sha256:
        raise _damaged(folder, f"{file.file} has sha256 {found}, the manifest says {file.sha256}")


def not_read(place: object, name: str, error: OSError) -> StoreError:
    """What it means that a file of a set cannot be read: damage, or CannotRead, which may pass."""
    if error.errno in TELLING:
        return _damaged(place, f"{name} cannot be read ({error.strerror})")
    return CannotRead(
        f"module set {place} cannot be read now: {name}: {error.strerror or error}",
        hint="it may be good, and stays: look at memory, open files and the disk (`dmesg`), then try again",
    )


def _no_set(folder: Path) -> StoreError:
    what = f"it has no {MANIFEST}" if folder.is_dir() else "there is no such folder"
    return StoreError(
        f"{folder} is no module set: {what}", hint="name the folder that `build` wrote, or build it again"
    )


def _damaged(place: object, reason: str) -> StoreError:
    return StoreError(
        f"module set {place} is damaged: {reason}",
        hint="build it again, or copy it again, whole",
    )
