"""The store in an OCI registry: a set is one artifact, found by key or by what might fit, without listing.

    set-<key>     the set (`artifacts`)
    fit-<digest>, kernel-<digest>
                  keys of sets that might fit a kernel (`hints`)
    turn-<key>    who builds that set now (`turns`)

A registry is believed nothing: what it gives is bounded in time and bytes, compared with its digests and with
the manifest, and whether the manifest is to be trusted is the caller's to say before any module moves. Every
failure is a StoreError with a hint; whoever asks goes on without a registry.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Iterator, Optional

import structlog
from attrs import evolve, frozen

from nvdriver_build.commands import CommandError, Commands
from nvdriver_build.errors import StoreError
from nvdriver_build.files import FULL, private_folder, sha256_file
from nvdriver_build.kernel import KernelTarget
from nvdriver_build.registry import hints
from nvdriver_build.registry.artifacts import (
    MANIFEST_TYPE,
    MODULE_TYPE,
    SIGNATURE_TYPE,
    Artifact,
    Blob,
    blob_of,
    parse_artifact,
)
from nvdriver_build.registry.blobs import Content, Parts
from nvdriver_build.registry.compression import compress, expand, most_compressed
from nvdriver_build.registry.login import read_login
from nvdriver_build.registry.place import Place, Proxies, parse_place, tls_context
from nvdriver_build.registry.session import PULL, Session
from nvdriver_build.registry.transport import Limits, Transport
from nvdriver_build.sets import MANIFEST, SIGNATURE, Manifest, ModuleSet, Recipe, open_set, parse_manifest
from nvdriver_build.store.remote import Unbelievable, required_signature

__all__ = ["Limits", "Offer", "Place", "Proxies", "Registry", "Unbelievable", "open_registry", "parse_place"]

_MOST_MODULE = 1024**3
"""Bytes of a module; nvidia.ko with its debug information has a fifth of it."""
_STRAIGHT, _LIMITS = Proxies(), Limits()
_log = structlog.get_logger()


@frozen
class Offer:
    """A set that a registry has, by its own words: nothing of it is proven, and no module has moved yet."""

    key: str
    manifest: bytes
    signature: Optional[bytes]
    described: Manifest
    """What `manifest` says."""
    _registry: Registry
    _modules: dict[str, Blob]

    def fetch(self, place: Path) -> None:
        """Write the set into the private folder `place`, every byte compared with digests and manifest.

        OSError where the disk is full.
        """
        try:
            self._fetch(place)
        except OSError as error:
            if error.errno in FULL:  # the store's to tell
                raise
            raise StoreError(
                f"set {self.key[:12]} cannot be written to {place}: {error.strerror or error}",
                hint="is that disk sound?",
            ) from error

    def require_modules(self) -> None:
        """Unbelievable where the registry lacks a module that it names; none of them moves."""
        for blob in self._modules.values():
            if not self._registry.content.has(blob, PULL):
                raise self._registry.session.lying(f"set {self.key[:12]} is there without {blob.title}")

    def _fetch(self, place: Path) -> None:
        place.mkdir(exist_ok=True)
        for file in self.described.files:
            self._registry.module(self._modules[file.file], file.size, place / file.file)
        if self.signature is not None:
            (place / SIGNATURE).write_bytes(self.signature)
        (place / MANIFEST).write_bytes(self.manifest)
        open_set(place)


@frozen(eq=False)
class Registry:
    """The sets in a repository of a registry."""

    session: Session
    commands: Commands

    def __str__(self) -> str:
        return f"registry {self.session.place}"

    @property
    def content(self) -> Content:
        """What it holds."""
        return Content(self.session)

    def before(self, until: float) -> Registry:
        """See `Remote.before`."""
        return evolve(self, session=self.session.before(until))

    def offer(self, key: str) -> Optional[Offer]:
        """The set of a key, if there is one."""
        document = self.content.document(f"set-{key}")
        if document is None:
            return None
        try:
            found = parse_artifact(document)
        except ValueError as error:
            raise self.session.lying(f"set-{key[:12]} is no set: {error}") from error
        manifest = self.content.read(found.config)
        described = self._described(key, manifest, found)
        signature = self.content.read(found.signature) if found.signature else None
        return Offer(key, manifest, signature, described, self, dict(found.modules))

    def candidates(self, recipe: Recipe, target: KernelTarget) -> Iterator[str]:
        """Keys of sets like that of `recipe`, of other kernels, that might fit `target`; the newest first."""
        tag = hints.wanted_tag(recipe, target)
        keys = hints.read(self.content, tag) if tag else ()
        yield from (key for key in keys if key != recipe.key)

    def built_for(self, driver_version: str, release: str, arch: str) -> tuple[str, ...]:
        """Keys of sets that were pushed for a kernel of this name, by their own words; the newest first."""
        return hints.read(self.content, hints.kernel_tag(driver_version, release, arch))

    def push(self, made: ModuleSet) -> bool:
        """See `Remote.push`."""
        try:
            return self._pushed(made)
        except OSError as error:
            raise StoreError(
                f"set {made.key[:12]} is not pushed: {error.strerror or error}",
                hint="is the set still there, and is there space in /tmp?",
            ) from error

    def _pushed(self, made: ModuleSet) -> bool:
        manifest, signature = made.manifest_bytes, required_signature(made)
        config = blob_of(manifest, MANIFEST_TYPE, MANIFEST)
        signed = blob_of(signature, SIGNATURE_TYPE, SIGNATURE)
        tag = f"set-{made.key}"
        there = self._there(tag)
        with private_folder(Path(tempfile.gettempdir())) as work:
            packed = [self._packed(path, made, work) for path in made.paths]
            modules = {blob.title: blob for blob, _ in packed if blob.title}
            document = Artifact(config, signed, modules).document()
            parts: Parts = ((config, manifest), (signed, signature), *packed)
            new = there != document or not all(self.content.has(blob) for blob, _ in parts)
            if new:
                self.content.publish(tag, document, parts)
        self._hint(made.manifest)
        return new

    def module(self, blob: Blob, size: int, path: Path) -> None:
        """Write the module that a layer holds, which has to expand to `size` bytes."""
        packed = path.with_name(f"{path.name}.zst")
        self.content.save(blob, packed)
        try:
            expand(packed, path, size, self.commands)
        except ValueError as error:
            raise self.session.lying(f"{path.name}: {error}") from error
        except CommandError as error:
            raise StoreError(
                f"sets of a registry cannot be unpacked: {error.message}", hint=error.hint
            ) from error
        packed.unlink()

    def _described(self, key: str, manifest: bytes, found: Artifact) -> Manifest:
        """What the manifest says, once it agrees with what is there."""
        try:
            described = parse_manifest(manifest, f"set-{key[:12]}")
        except StoreError as error:
            raise self.session.lying(error.message) from error
        if described.key != key:
            raise self.session.lying(f"set-{key[:12]} is the set {described.key[:12]}")
        if {file.file for file in described.files} != set(found.modules):
            raise self.session.lying(f"the layers of set-{key[:12]} are not the modules of its manifest")
        for file in described.files:
            packed = found.modules[file.file].size
            if not 0 <= file.size <= _MOST_MODULE or packed > most_compressed(file.size):
                raise self.session.lying(f"{file.file} has {packed} bytes for {file.size}")
        return described

    def _there(self, tag: str) -> Optional[bytes]:
        """The image manifest of a tag; None for none, and for what cannot be one."""
        try:
            return self.content.document(tag)
        except Unbelievable:
            return None

    def _packed(self, path: Path, made: ModuleSet, work: Path) -> tuple[Blob, Path]:
        (described,) = (file for file in made.manifest.files if file.file == path.name)
        packed = work / f"{path.name}.zst"
        try:
            compress(path, packed, self.commands)
        except CommandError as error:
            raise StoreError(
                f"set {made.key[:12]} is not pushed: {error.message}", hint=error.hint
            ) from error
        blob = Blob(MODULE_TYPE, f"sha256:{sha256_file(packed)}", packed.stat().st_size, path.name)
        if sha256_file(path) != described.sha256:
            raise StoreError(f"{path} is not as its manifest says", hint="it is not pushed; build it again")
        return blob, packed

    def _hint(self, manifest: Manifest) -> None:
        """Let nodes with other kernels, and a fleet's controller, find it; without that it is found by its
        key.
        """
        recipe, tag = manifest.recipe, hints.own_tag(manifest)
        named = hints.kernel_tag(recipe.driver_version, recipe.kernel_release, recipe.arch)
        try:
            hints.add(self.content, filter(None, (named, tag)), manifest.key)
        except StoreError as error:
            _log.warning("others may not find the set in the registry", reason=error.message)


def open_registry(
    place: str,
    commands: Commands,
    *,
    authority: Optional[Path] = None,
    auth: Optional[Path] = None,
    proxies: Proxies = _STRAIGHT,
    limits: Limits = _LIMITS,
) -> Registry:
    """The registry at `HOST[:PORT]/REPOSITORY`; nothing is asked of it yet. UsageError for a bad value.

    `authority` has certificates of a private CA, `auth` the logins, as container tools keep them.
    """
    parsed = parse_place(place)
    transport = Transport(tls_context(authority), proxies, limits, commands.check)
    return Registry(Session(parsed, transport, read_login(auth, parsed)), commands)
