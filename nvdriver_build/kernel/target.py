"""`KernelTarget`: one kernel that modules are meant for, read from headers or from its module folder."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import lzma
import os
import re
from pathlib import Path
from typing import Iterator, Mapping, NamedTuple, Optional

from attrs import field, frozen

from nvdriver_build.elf import read_module
from nvdriver_build.errors import HeadersError, HeadersMismatch, ModuleFormatError
from nvdriver_build.kernel.config import digest, parse_config
from nvdriver_build.kernel.headers import Headers

_PREEMPT = re.compile(r'CONFIG_(PREEMPT\w*)\)?\s*\n\s*#\s*define\s+MODULE_VERMAGIC_PREEMPT\s+"(\w+ )"')
_RANDSTRUCT = re.compile(r'RANDSTRUCT_HASHED_SEED\s+"([0-9a-f]+)"')
_SHUFFLED = (
    ("RANDSTRUCT", "randstruct_hash.h", "RANDSTRUCT_"),
    ("GCC_PLUGIN_RANDSTRUCT", "randomize_layout_hash.h", "RANDSTRUCT_PLUGIN_"),
)
ARCHITECTURES = {"x86_64": "x86_64", "arm64": "arm64", "aarch64": "arm64"}
"""`uname -m` and ELF names to the name that this package uses."""


class Symbol(NamedTuple):
    """A row of Module.symvers (kernel: scripts/mod/modpost.c, write_dump)."""

    crc: int
    module: str
    gpl_only: bool
    namespace: Optional[str]


@frozen
class KernelTarget:
    """One kernel that modules are meant for.

    `arch` is `x86_64` or `arm64`, `flavour` `standard`, `rt`, `64k` or `debug`. `symbols` are the exports by
    name; `vermagic` is the whole string with its trailing space, as modules carry it.
    """

    release: str
    arch: str
    flavour: str
    vermagic: str
    symbols: Mapping[str, Symbol] = field(repr=False)
    config: Mapping[str, str] = field(repr=False)
    symvers_sha256: str
    config_sha256: str
    origin: str

    @property
    def modversions(self) -> bool:
        """Whether this kernel compares CRCs."""
        return self.config.get("MODVERSIONS") == "y"

    @property
    def compiler(self) -> Optional[str]:
        """The text of the compiler that this kernel was built with."""
        return self.config.get("CC_VERSION_TEXT")

    @property
    def config_digest(self) -> str:
        """sha256 over the settings that can change a module's layout."""
        return digest(self.config)


def target_from_headers(headers: Headers) -> KernelTarget:
    """The kernel that headers belong to; HeadersError where a file is missing, empty or damaged."""
    symvers = _read(headers.output / "Module.symvers")
    raw_config = _read(headers.output / ".config")
    config = parse_config(raw_config.decode("utf-8", "replace"))
    build = b"" if _has_crcs(config) else (headers.uts_version or "").encode()  # no CRC tells it
    vermagic_h = headers.sources / "include/linux/vermagic.h"
    text = _read(vermagic_h).decode("utf-8", "replace") if vermagic_h.exists() else ""
    return KernelTarget(
        release=headers.release,
        arch=_arch(config, headers.output),
        flavour=flavour(headers.release, config),
        vermagic=_vermagic(headers.release, config, text, _randstruct(headers.output, config)),
        symbols=parse_symvers(symvers, str(headers.output / "Module.symvers"), _has_crcs(config)),
        config=config,
        symvers_sha256=hashlib.sha256(symvers + build).hexdigest(),
        config_sha256=hashlib.sha256(raw_config).hexdigest(),
        origin=str(headers.output),
    )


def target_from_modules(tree: Path, release: str) -> KernelTarget:
    """The kernel whose module folder `tree` is (RHEL's kernel-core puts symvers and config there).

    Raises HeadersError where the folder does not hold them, HeadersMismatch where it is another kernel's.
    """
    symvers = read_node_symvers(tree)
    if symvers is None:
        raise HeadersError(
            f"no kernel headers are here, and {tree} has no symvers.gz or symvers.xz",
            hint="give kernel headers (--headers, NVDRIVER_HEADERS), or run in the Driver Toolkit",
        )
    raw_config = _read(tree / "config")
    config = parse_config(raw_config.decode("utf-8", "replace"))
    vermagic = module_vermagic(tree) or _vermagic(release, config, "", "")
    if vermagic.partition(" ")[0] != release:
        raise HeadersMismatch(
            f"the modules in {tree} are of kernel {vermagic.partition(' ')[0]}, not {release}",
            hint="give the module folder of the kernel that runs",
        )
    return KernelTarget(
        release=release,
        arch=_arch(config, tree),
        flavour=flavour(release, config),
        vermagic=vermagic,
        symbols=parse_symvers(symvers, f"{tree}/symvers", _has_crcs(config)),
        config=config,
        symvers_sha256=hashlib.sha256(symvers).hexdigest(),
        config_sha256=hashlib.sha256(raw_config).hexdigest(),
        origin=str(tree),
    )


_SYMVERS = (("symvers.gz", gzip.decompress), ("symvers.xz", lzma.decompress))


def has_symvers(tree: Path) -> bool:
    """Whether a module folder says what its kernel exports."""
    return any((tree / name).exists() for name, _ in _SYMVERS)


def read_node_symvers(tree: Path) -> Optional[bytes]:
    """The unpacked symvers.gz or symvers.xz of a module folder; None where there is none."""
    try:
        for name, unpack in _SYMVERS:
            if (tree / name).exists():
                return unpack((tree / name).read_bytes())
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise HeadersError(f"{tree}/{name} cannot be read: {error}", hint="reinstall kernel-core") from error
    return None


def in_tree_modules(tree: Path) -> Iterator[Path]:
    """The modules that came with the kernel, in a fixed order, found only as far as they are asked for."""
    for folder, folders, files in os.walk(tree / "kernel"):
        folders.sort()
        yield from (Path(folder, name) for name in sorted(files) if ".ko" in name)


def module_vermagic(tree: Path) -> Optional[str]:
    """The vermagic of one of the modules that came with the kernel."""
    for path in itertools.islice(in_tree_modules(tree), 3):
        try:
            return read_module(path, digest=False).vermagic
        except ModuleFormatError:
            continue
    return None


def parse_symvers(data: bytes, origin: str, crcs: bool = True) -> Mapping[str, Symbol]:
    """Read Module.symvers; HeadersError with the line where it is empty or damaged.

    With `crcs`, a file whose CRCs are all zero is damaged too.
    """
    symbols: dict[str, Symbol] = {}
    for number, line in enumerate(data.decode("utf-8", "replace").split("\n"), 1):
        if line:
            name, symbol = _symvers_row(line, origin, number)
            symbols[name] = symbol
    if not symbols:
        raise HeadersError(f"{origin} is empty", hint="reinstall the kernel headers")
    if not data.endswith(b"\n"):
        raise HeadersError(
            f"{origin} ends within a line: it is cut short", hint="reinstall the kernel headers"
        )
    if crcs and not any(symbol.crc for symbol in symbols.values()):
        raise HeadersError(
            f"{origin} has no CRC although the kernel has modversions", hint="reinstall the kernel headers"
        )
    return symbols


def _symvers_row(line: str, origin: str, number: int) -> tuple[str, Symbol]:
    try:
        crc, name, module, export, *rest = line.split("\t")
        if not export.startswith("EXPORT_") or not name:
            raise ValueError(export)
        return name, Symbol(int(crc, 16), module, "_GPL" in export, (rest or [""])[0] or None)
    except ValueError:
        raise HeadersError(
            f"{origin}, line {number}: {line[:80]!r} is not 'CRC, symbol, module, EXPORT_..., namespace'",
            hint="reinstall the kernel headers",
        ) from None


def flavour(release: str, config: Mapping[str, str]) -> str:
    """`rt`, `64k`, `debug` or `standard`; the configuration counts before the name."""
    if config.get("PREEMPT_RT") == "y":
        return "rt"
    if config.get("ARM64_64K_PAGES") == "y":
        return "64k"
    return "debug" if re.search(r"[+.-]debug\b", release) else "standard"


def _has_crcs(config: Mapping[str, str]) -> bool:
    return config.get("MODVERSIONS") == "y"


def _arch(config: Mapping[str, str], origin: Path) -> str:
    if not config:
        raise HeadersError(f"{origin}: the configuration is empty", hint="reinstall the kernel headers")
    for name, arch in (("X86_64", "x86_64"), ("ARM64", "arm64")):
        if config.get(name) == "y":
            return arch
    raise HeadersError(
        f"{origin}: the configuration is neither of x86_64 nor of arm64",
        hint="other architectures are not supported",
    )


def _randstruct(output: Path, config: Mapping[str, str]) -> str:
    """The word for shuffled structures, which has other names up to Linux 5.18; empty where none are."""
    for setting, header, word in _SHUFFLED:
        path = output / "include/generated" / header
        match = _RANDSTRUCT.search(path.read_text(errors="replace")) if path.exists() else None
        if match and config.get(setting) == "y":
            return word + match.group(1)
    return ""


def _vermagic(release: str, config: Mapping[str, str], vermagic_h: str, randstruct: str) -> str:
    """VERMAGIC_STRING of include/linux/vermagic.h and arch/*/include/asm/vermagic.h."""
    words = [
        ("SMP ", config.get("SMP") == "y"),
        (_preempt(config, vermagic_h), True),
        ("mod_unload ", config.get("MODULE_UNLOAD") == "y"),
        ("modversions ", config.get("MODVERSIONS") == "y"),
        ("aarch64", config.get("ARM64") == "y"),
        (randstruct, True),
    ]
    return f"{release} " + "".join(word for word, there in words if there)


def _preempt(config: Mapping[str, str], vermagic_h: str) -> str:
    """What the header says for this configuration: its branches and their order change between kernels."""
    branches = _PREEMPT.findall(vermagic_h) or [("PREEMPT_BUILD", "preempt "), ("PREEMPT_RT", "preempt_rt ")]
    return next((word for name, word in branches if config.get(name) == "y"), "")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise HeadersError(
            f"{path} cannot be read: {error.strerror}", hint="reinstall the kernel headers"
        ) from error
