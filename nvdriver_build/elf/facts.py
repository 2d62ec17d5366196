"""The values that `read_module` gives."""

from __future__ import annotations

import re
from typing import Mapping, Optional, Tuple

from attrs import frozen

_SUFFIX = re.compile(r"\.ko(\.(xz|gz|zst))?$")


def canonical_name(name: str) -> str:
    """The kernel's name of a module: `nvidia_uvm` for `nvidia-uvm` and for `nvidia-uvm.ko.xz`."""
    return _SUFFIX.sub("", name).replace("-", "_")


@frozen
class Signature:
    """The appended signature; a field that the signature does not hold is None."""

    signer: Optional[str]
    """Common name of the certificate's issuer, which is what `modinfo` calls the signer."""
    issuer: Optional[str]
    """The issuer's whole name, readable."""
    serial: Optional[str]
    """The certificate's serial number in lower-case hex: `sig_key` of `modinfo` without its colons."""
    hash: Optional[str]
    """Digest algorithm by its Linux name, such as `sha256`."""


@frozen
class Export:
    """A symbol that a module offers to others."""

    crc: Optional[int]
    """None where the module was built without modversions."""
    gpl_only: bool
    namespace: Optional[str]


@frozen
class ModuleFacts:
    """What one module says of itself. Text that is not UTF-8 has its odd bytes as `\\xNN`."""

    path: str
    name: str
    """Canonical."""
    modinfo: Tuple[Tuple[str, str], ...]
    """Every entry of .modinfo, in its order."""
    machine: str
    """As `uname -m` says it, but `arm64` for aarch64."""
    bits: int
    byteorder: str
    """`little` or `big`."""
    needed: Mapping[str, int]
    """CRCs that the module wants, by symbol, `module_layout` too; empty without modversions."""
    undefined: Tuple[str, ...]
    """Undefined symbols of the symbol table, sorted, without the weak ones."""
    weak: Tuple[str, ...]
    """Undefined weak symbols, sorted: the kernel loads the module without them."""
    exports: Mapping[str, Export]
    build_id: Optional[str]
    signature: Optional[Signature]
    sha256: Optional[str]
    """Of the uncompressed module, signature included; None where no digest was asked for."""
    size: int
    """Bytes of the uncompressed module, signature included."""
    btf: bool = False
    """Whether it holds type information, which refers to that of one kernel."""
    has_versions: bool = True
    """Whether there is a section __versions; CRCs of the newer form alone do not free it from the release."""

    def first(self, key: str) -> Optional[str]:
        """The first value of a .modinfo key, which is the one that the kernel takes."""
        return next(iter(self.all(key)), None)

    def all(self, key: str) -> Tuple[str, ...]:
        """Every value of a .modinfo key."""
        return tuple(value for name, value in self.modinfo if name == key)

    @property
    def version(self) -> Optional[str]:
        """MODULE_VERSION."""
        return self.first("version")

    @property
    def vermagic(self) -> Optional[str]:
        """The kernel that the module was built for; it may end in a blank."""
        return self.first("vermagic")

    @property
    def srcversion(self) -> Optional[str]:
        """modpost's digest of the module's sources."""
        return self.first("srcversion")

    @property
    def license(self) -> Optional[str]:
        """The first MODULE_LICENSE."""
        return self.first("license")

    @property
    def depends(self) -> Tuple[str, ...]:
        """Modules whose symbols this one uses, spelled as in .modinfo."""
        return tuple(name for name in (self.first("depends") or "").split(",") if name)

    @property
    def import_ns(self) -> Tuple[str, ...]:
        """Symbol namespaces that the module imports."""
        return self.all("import_ns")
