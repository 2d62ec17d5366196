"""Module sets of small files, for tests that do not look into the modules."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Mapping

from nvdriver_build.sets import Manifest, ModuleFile, ModuleSet, Provenance, Recipe, write_manifest
from nvdriver_build.store import Store

PROVENANCE = Provenance(tool="0", compiler="gcc 12", make_flags=("-g0",), proof="none")


def recipe(**fields: Any) -> Recipe:
    """A recipe for two modules; `fields` differ from it."""
    values: Mapping[str, Any] = {
        "driver_version": "999.10.01",
        "source_digest": "5" * 64,
        "kind": "open",
        "modules": ("nvidia", "nvidia-uvm"),
        "kernel_release": "6.1.0-1-amd64",
        "arch": "x86_64",
        "symvers_sha256": "1" * 64,
        "config_sha256": "2" * 64,
        **fields,
    }
    return Recipe(**values)


def write_set(folder: Path, of: Recipe, size: int = 2000) -> ModuleSet:
    """Write a set of files that are no modules; the manifest comes last, as always."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name in of.modules:
        data = f"{name} of {of.key} ".encode() * (size // 70)
        (folder / f"{name}.ko").write_bytes(data)
        facts = {"name": name.replace("-", "_"), "size": len(data)}
        files.append(ModuleFile(f"{name}.ko", hashlib.sha256(data).hexdigest(), len(data), facts))
    manifest = Manifest(
        of.key, of, "standard", f"{of.kernel_release} SMP ", "3" * 64, PROVENANCE, tuple(files)
    )
    write_manifest(folder, manifest)
    return ModuleSet(folder, manifest)


def put(store: Store, of: Recipe, size: int = 2000) -> ModuleSet:
    """Publish such a set in a store."""
    with store.workspace() as work:
        write_set(work / "set", of, size)
        return store.add(work / "set", of.key)
