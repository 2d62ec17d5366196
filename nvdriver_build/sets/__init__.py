"""`ModuleSet`: built modules in a folder, with the manifest of what they are and how they were made.

Its key is known before anything is built: sha256 over the canonical JSON of `Recipe` (contracts.md, The
build key).
"""

from nvdriver_build.sets.documents import facts_document
from nvdriver_build.sets.folder import (
    FOREIGN,
    MANIFEST,
    MANIFEST_LIMIT,
    SIGNATURE,
    TELLING,
    UNREADABLE,
    Manifest,
    ModuleFile,
    ModuleSet,
    Provenance,
    describe,
    not_read,
    open_set,
    parse_manifest,
    write_manifest,
)
from nvdriver_build.sets.recipe import SCHEMA, Recipe, explain_miss

__all__ = [
    "FOREIGN",
    "MANIFEST",
    "MANIFEST_LIMIT",
    "SCHEMA",
    "SIGNATURE",
    "TELLING",
    "UNREADABLE",
    "Manifest",
    "ModuleFile",
    "ModuleSet",
    "Provenance",
    "Recipe",
    "describe",
    "explain_miss",
    "facts_document",
    "not_read",
    "open_set",
    "parse_manifest",
    "write_manifest",
]
