"""What the bytes of a kernel module say: `read_module` gives `ModuleFacts`, or raises `ModuleFormatError`.

    content     the module as one seekable stream, whatever it is compressed with
    layout      ELF header and sections, inside the bounds that the kernel checks too
    symbols     symbol table: what the module needs and what it exports
    signature   the signature that `sign-file` appends
    appended    the bytes that it is of
    reader      all of it together, with .modinfo, symbol versions and the build id
    facts       the values

Only the sections that are needed are read, each under a cap, so neither an unstripped module of 185 MB
nor a hostile file takes much memory.
"""

from nvdriver_build.elf.appended import (
    appended_signature,
    as_appended,
    unsigned_bytes,
    unsigned_digest,
)
from nvdriver_build.elf.facts import Export, ModuleFacts, Signature, canonical_name
from nvdriver_build.elf.reader import read_module

__all__ = [
    "Export",
    "ModuleFacts",
    "Signature",
    "appended_signature",
    "as_appended",
    "canonical_name",
    "read_module",
    "unsigned_bytes",
    "unsigned_digest",
]
