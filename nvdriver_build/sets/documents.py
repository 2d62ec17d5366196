"""What a module's ELF says, as the object of JSON documents."""

from __future__ import annotations

from typing import Any

from attrs import asdict

from nvdriver_build.elf import ModuleFacts


def facts_document(facts: ModuleFacts) -> dict[str, Any]:
    """The object of `inspect` for one module (contracts.md, JSON documents)."""
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
