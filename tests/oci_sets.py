"""Signed sets of small files that are no modules, with the facts that a registry looks at."""

from __future__ import annotations

import base64
import hashlib
import random
from pathlib import Path
from typing import Optional

from attrs import evolve
from keys import Identity
from module_sets import PROVENANCE

from nvdriver_build.commands import SystemCommands
from nvdriver_build.sets import SIGNATURE, Manifest, ModuleFile, ModuleSet, Recipe, write_manifest
from nvdriver_build.signing import sign_manifest

VERMAGIC = "SMP preempt mod_unload modversions "


def write_signed(
    folder: Path, of: Recipe, signer: Optional[Identity], *, size: int = 4000, layout: int = 0x160C03AF
) -> ModuleSet:
    """Write a set whose modules hold half noise; signed by `signer`, or with a signature of nobody."""
    folder.mkdir(parents=True)
    files = []
    for name in of.modules:
        noise = random.Random(f"{name} {of.key}")
        data = bytes(noise.randrange(256) for _ in range(size // 2)) + b"\0" * (size // 2)
        (folder / f"{name}.ko").write_bytes(data)
        facts = {
            "name": name.replace("-", "_"),
            "symbols_needed": {"module_layout": f"{layout:#010x}"},
            "symbols_exported": {},
            "weak": [],
        }
        files.append(ModuleFile(f"{name}.ko", hashlib.sha256(data).hexdigest(), len(data), facts))
    manifest = Manifest(
        of.key, of, "standard", f"{of.kernel_release} {VERMAGIC}", "3" * 64, PROVENANCE, tuple(files)
    )
    if of.certificate is not None and signer is not None:
        manifest = evolve(manifest, certificate=base64.b64encode(signer.certificate.der).decode())
    write_manifest(folder, manifest)
    made = ModuleSet(folder, manifest)
    sign(made, signer)
    return made


def sign(made: ModuleSet, signer: Optional[Identity]) -> None:
    """Sign the manifest anew."""
    signature = (
        sign_manifest(made.manifest_bytes, signer.signer, SystemCommands()) if signer else b"of nobody"
    )
    (made.folder / SIGNATURE).write_bytes(signature)


def other(of: Recipe, release: str) -> Recipe:
    """The same for another kernel."""
    return evolve(of, kernel_release=release, symvers_sha256="8" * 64)
