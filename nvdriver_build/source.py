"""Driver sources: NVIDIA's unpacked trees, Debian's source tarballs, archives of either, `.run` files.

A kernel tree is a folder as NVIDIA ships it: Makefile, Kbuild (which holds NV_VERSION_STRING), conftest.sh,
and a folder for each module; its core objects are prebuilt (`nv-kernel.o_binary`). A `.run` has the open
modules in `kernel-open/`, the proprietary ones in `kernel/`; Debian's tarballs in `modules/nvidia-*-kernel/`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tarfile
from pathlib import Path
from typing import Iterator, Optional

from attrs import field, frozen

from nvdriver_build.commands import CommandError, Commands
from nvdriver_build.errors import SourceError, UsageError
from nvdriver_build.files import FULL, sha256_file, sha256_tree
from nvdriver_build.files.archives import ArchiveError, unpack

OPEN, PROPRIETARY, AUTO = "open", "proprietary", "auto"
OPEN_BY_DEFAULT = 560
"""The first branch whose open modules are the default (docs/contracts.md: KERNEL_MODULE_TYPE)."""
MODULES = ("nvidia", "nvidia-uvm", "nvidia-modeset", "nvidia-drm", "nvidia-peermem")
"""The modules of NVIDIA's tree, in the order in which they are loaded."""
_NEEDS = {
    "nvidia-uvm": ("nvidia",),
    "nvidia-modeset": ("nvidia",),
    "nvidia-drm": ("nvidia", "nvidia-modeset"),
    "nvidia-peermem": ("nvidia",),
}
"""Whose symbols a module uses: without these beside it, modpost finds them undefined."""
_TREES = (".", "kernel-open", "kernel", "modules/nvidia-open-kernel", "modules/nvidia-kernel")
_VERSION = re.compile(r'NV_VERSION_STRING=\\"(\d+(?:\.\d+)+)\\"')
_LICENSE = re.compile(r'MODULE_LICENSE\("([^"]+)"\)')
_CORE_OBJECT = re.compile(r":=\s*\$\(src\)/(\S+\.o_binary)")
_BUILT = re.compile(
    r"(^|/)(conftest/|\.tmp_|Module\.symvers$|modules\.order$|nv_compiler\.h$|\..*\.cmd$|[^/]*\.(o|ko|mod|mod\.c|d)$)"
)
_RUN_LIMIT = 600.0
_PACKED = (b"\x1f\x8b", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")
"""The first bytes of gz (RFC 1952), xz (its file format, 2.1.1.1) and zst (RFC 8878)."""


@frozen
class Source:
    """One kernel tree: its folder, `open` or `proprietary`, the `names` of its files but build products."""

    root: Path
    version: str
    kind: str
    modules: tuple[str, ...]
    core_objects: tuple[str, ...]
    names: tuple[str, ...] = field(repr=False)

    @property
    def digest(self) -> str:
        """sha256 over the sorted relative paths and bytes of the tree (contracts.md, The build key)."""
        with _reading(self.root):
            return sha256_tree(self.root, self.names)


def open_source(
    place: Path, kind: str, work: Path, commands: Commands, *, run_sha256: Optional[str] = None
) -> Source:
    """Find the kernel tree of `kind` in a folder, an archive or a `.run` file; unpack into `work` if need be.

    Raises SourceError where there is none, where it is damaged, or where its core objects are missing. A
    `.run` is executed, hence only with its expected sha256.
    """
    with _reading(place):
        if not place.exists():
            raise SourceError(
                f"no driver source at {place}",
                hint="give NVIDIA's unpacked source, its tarball or its .run file",
            )
        is_folder, is_file = place.is_dir(), place.is_file()
    if not is_folder and not is_file:
        raise SourceError(f"{place} is neither a folder nor a file", hint="give the source itself")
    folder = place if is_folder else _unpacked(place, work, commands, run_sha256)
    with _reading(folder):
        trees = [_read_tree(tree) for tree in _kernel_trees(folder)]
    if not trees:
        raise SourceError(
            f"{place} holds no NVIDIA kernel tree: looked for Makefile, Kbuild and conftest.sh in it, "
            f"and in its {', '.join(_TREES[1:])}",
            hint="give the folder that NVIDIA-Linux-*.run -x makes, or its kernel-open/",
        )
    _require_one_version(trees, place)
    source = _of_kind(trees, kind, place)
    _require_core_objects(source)
    return source


@contextlib.contextmanager
def _reading(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SourceError(
            f"{place} cannot be read: {error}", hint="is all of it there, and readable for this user?"
        ) from error


def _kernel_trees(folder: Path) -> Iterator[Path]:
    tops = [folder, *(child for child in sorted(folder.glob("*")) if child.is_dir())]
    seen = set()
    for top in tops:
        for name in _TREES:
            tree = Path(os.path.realpath(top / name))  # resolve() raises for a loop of links
            if tree not in seen and all(
                (tree / part).is_file() for part in ("Makefile", "Kbuild", "conftest.sh")
            ):
                seen.add(tree)
                yield tree


def _read_tree(tree: Path) -> Source:
    version = _VERSION.search((tree / "Kbuild").read_text(errors="replace"))
    if version is None:
        raise SourceError(
            f"{tree}/Kbuild has no NV_VERSION_STRING: this is not NVIDIA's driver",
            hint="give NVIDIA's source",
        )
    names = tuple(_source_files(tree))
    return Source(
        root=tree,
        version=version.group(1),
        kind=_kind(tree),
        modules=tuple(name for name in MODULES if (tree / name / f"{name}.Kbuild").is_file()),
        core_objects=tuple(_core_objects(tree)),
        names=names,
    )


def _source_files(tree: Path) -> Iterator[str]:
    """The files of the tree, without what an earlier `make` in it has left."""
    for path in sorted(tree.rglob("*")):
        name = path.relative_to(tree).as_posix()
        if path.is_file() and not _BUILT.search(name):
            yield name


def _kind(tree: Path) -> str:
    licenses = {
        match.group(1)
        for path in sorted((tree / "nvidia").glob("*.c"))
        for match in _LICENSE.finditer(path.read_text(errors="replace"))
    }
    if not licenses:
        raise SourceError(
            f"{tree}/nvidia has no MODULE_LICENSE: it is not NVIDIA's", hint="give NVIDIA's source"
        )
    return PROPRIETARY if "NVIDIA" in licenses else OPEN


def _core_objects(tree: Path) -> Iterator[str]:
    for kbuild in sorted(tree.glob("*/*.Kbuild")):
        yield from _CORE_OBJECT.findall(kbuild.read_text(errors="replace"))


def _require_one_version(trees: list[Source], place: Path) -> None:
    found = sorted(f"{tree.version} in {tree.root}" for tree in trees)
    if len({tree.version for tree in trees}) > 1:
        raise SourceError(f"{place} holds several drivers: {', '.join(found)}", hint="give one of them")


def _require_core_objects(source: Source) -> None:
    missing = [name for name in source.core_objects if not (source.root / name).is_file()]
    if missing or not source.core_objects:
        raise SourceError(
            f"{source.root} has no core objects ({', '.join(missing) or 'nv-kernel.o_binary'}): "
            "it is a source of the interface layer only",
            hint="the open-gpu-kernel-modules repository lacks them: use NVIDIA's .run file, or "
            "Debian's nvidia-open-kernel-source",
        )


def _of_kind(trees: list[Source], kind: str, place: Path) -> Source:
    by_kind = {tree.kind: tree for tree in reversed(trees)}
    if kind != AUTO:
        if kind not in by_kind:
            raise SourceError(
                f"{place} has no {kind} kernel modules, only {', '.join(sorted(by_kind))} ones",
                hint=f"use --kind {next(iter(by_kind))}, or another source",
            )
        return by_kind[kind]
    default = OPEN if _branch(trees[0].version) >= OPEN_BY_DEFAULT else PROPRIETARY
    return by_kind.get(default) or trees[0]


def _branch(version: str) -> int:
    return int(version.split(".")[0])


def _unpacked(archive: Path, work: Path, commands: Commands, run_sha256: Optional[str]) -> Path:
    folder = work / "source"
    if archive.suffix == ".run":
        _extract_run(archive, folder, commands, run_sha256)
        return folder
    folder.mkdir(parents=True)
    try:
        unpack(archive, folder, commands.check)
    except ArchiveError as error:
        hint = error.hint or "fetch the archive again, from NVIDIA or Debian"
        raise SourceError(error.message, hint=hint) from error
    except OSError as error:
        if error.errno in FULL:  # the store's to tell
            raise
        raise SourceError(
            f"{archive} cannot be unpacked: {error.strerror}",
            hint="is it readable for this user, and may a file here be that large (ulimit -f)?",
        ) from error
    return folder


def _extract_run(archive: Path, folder: Path, commands: Commands, expected: Optional[str]) -> None:
    """NVIDIA's installer is a shell script that runs as whoever starts it: `-x` only unpacks.

    What runs is a copy that nobody else can change once its sum is known.
    """
    copy = folder.parent / "installer.run"
    with _reading(archive):
        shutil.copyfile(archive, copy)
        found = sha256_file(copy)
    _require_sum(archive, found, expected)
    try:
        finished = commands.run(["sh", str(copy), "-x", "--target", str(folder)], timeout=_RUN_LIMIT)
    except CommandError as error:
        raise SourceError(f"{archive} did not unpack: {error}", hint=error.hint) from error
    finally:
        copy.unlink()
    if not finished.ok:
        raise SourceError(
            f"{archive} -x ended with {finished.exit_code}: {finished.output.strip()[-300:]}",
            hint="fetch the .run file again; is there space left?",
        )


def _require_sum(archive: Path, found: str, expected: Optional[str]) -> None:
    if expected is None or found != expected.lower():
        reason = "no expected sha256 was given" if expected is None else f"expected sha256 {expected}"
        raise SourceError(
            f"{archive} is a program that would run as this user; {reason}, found {found}",
            hint="compare it with the sum that NVIDIA publishes, then give it as --run-sha256 "
            "(NVDRIVER_RUN_SHA256)",
        )


def split_names(text: str) -> tuple[str, ...]:
    """The names of modules in a list with commas; UsageError for a choice that cannot be linked."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        missing = [needed for needed in _NEEDS.get(name, ()) if needed not in names]
        if missing:
            raise UsageError(
                f"{name} cannot be built without {' and '.join(missing)}: it uses their symbols",
                hint=f"give {','.join((*missing, *names))}",
            )
    return names


def check_archive(place: Path, run_sha256: Optional[str]) -> None:
    """Look at an archive or a `.run` without unpacking it; SourceError where it is none, or another one."""
    with _reading(place):
        if place.suffix == ".run":
            _require_sum(place, sha256_file(place), run_sha256)
            return
        with place.open("rb") as file:
            packed = file.read(8).startswith(_PACKED)
        if not packed and not tarfile.is_tarfile(place):
            raise SourceError(
                f"{place} is no tar archive, plain or as gz, xz or zst",
                hint="give NVIDIA's unpacked source, its tarball or its .run file",
            )
