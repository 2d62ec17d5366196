"""The private module root: what modprobe gets to see in place of the host's /lib/modules.

    ROOT/lib/modules/R/updates/     copies of our modules: SELinux lets no module be loaded from everywhere
    ROOT/lib/modules/R/kernel/...   links to the in-tree modules that they need, and no others
    ROOT/lib/modules/R/modules.*    of depmod, over these few (a whole tree takes it seconds)
    ROOT/lib -> usr/lib             some builds of kmod look in one, some in the other
    ROOT/modprobe.d/                the options of our modules, and nothing of the host's
    ROOT/depmod.d/                  empty, for the same reason

It is filled in a private folder and renamed into place. A crash leaves the old one, none, or the new one;
every run makes it anew, so nothing is forced to the disk.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Collection, Iterable, Iterator, Mapping, Optional, Sequence

from attrs import frozen

from nvdriver_build.commands import CommandError, Commands
from nvdriver_build.elf import ModuleFacts
from nvdriver_build.errors import LoadError
from nvdriver_build.files import private_folder, publish, remove
from nvdriver_build.loader.in_tree import InTree, read_in_tree, required_files
from nvdriver_build.loader.parameters import Parameters, modprobe_options

HELPERS = ("i2c_core", "ipmi_msghandler", "ipmi_devintf")
"""Modules that NVIDIA's container loads first where the kernel has them."""
_FROM_KERNEL = ("modules.order", "modules.builtin", "modules.builtin.modinfo")
_DEPMOD_TIMEOUT = 60.0


@frozen
class ModuleRoot:
    """A module root in its place: our modules with their build ids, and the optional in-tree ones in it."""

    path: Path
    release: str
    build_ids: Mapping[str, Optional[str]]
    helpers: tuple[str, ...]

    def modprobe(self, *arguments: str) -> tuple[str, ...]:
        """A modprobe command that sees this root and its options alone."""
        options = ("-d", str(self.path), "-C", str(self.path / "modprobe.d"), "-S", self.release)
        return ("modprobe", *options, *arguments)


def prepare_root(
    place: Path,
    release: str,
    modules: Sequence[ModuleFacts],
    tree: Path,
    commands: Commands,
    *,
    parameters: Optional[Parameters] = None,
    others: Collection[str] = (),
) -> ModuleRoot:
    """Make the root of `modules` at `place`, which is replaced; `tree` is the host's lib/modules/R.

    `others` are modules that others load in place of in-tree ones (MOFED's): no file here is theirs.
    LoadError where an in-tree module is needed and missing, where depmod or a write fails.
    """
    in_tree = read_in_tree(tree)
    needed = required_files(modules, in_tree, others)
    helpers = {name: files for name in HELPERS if (files := in_tree.files_of(name))}
    with _written(place), private_folder(place.parent) as private:
        folder = _layout(private, release)
        _copy_ours(folder / "updates", modules)
        _link_in_tree(folder, in_tree, (*needed, *(file for files in helpers.values() for file in files)))
        publish(private / "modprobe.d" / "nvdriver-build.conf", modprobe_options(parameters or {}))
        _depmod(private, folder, release, modules, commands)
        remove(place)
        private.rename(place)
    return ModuleRoot(place, release, {facts.name: facts.build_id for facts in modules}, tuple(helpers))


@contextlib.contextmanager
def _written(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LoadError(
            f"the module root {place} cannot be made: {error}",
            hint="the container's own file system must be writable, with about 100 MiB of space left",
        ) from error


def _layout(private: Path, release: str) -> Path:
    folder = private / "usr" / "lib" / "modules" / release
    folder.mkdir(parents=True)
    (private / "lib").symlink_to("usr/lib")
    (private / "depmod.d").mkdir()
    return folder


def _copy_ours(folder: Path, modules: Sequence[ModuleFacts]) -> None:
    folder.mkdir()
    for facts in modules:
        shutil.copyfile(facts.path, folder / Path(facts.path).name)


def _link_in_tree(folder: Path, tree: InTree, files: Iterable[str]) -> None:
    for file in (*dict.fromkeys(files), *(name for name in _FROM_KERNEL if (tree.path / name).is_file())):
        link = folder / file
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to((tree.path / file).absolute())


def _depmod(
    private: Path, folder: Path, release: str, modules: Sequence[ModuleFacts], commands: Commands
) -> None:
    argv = ("depmod", "-b", str(private), "-C", str(private / "depmod.d"), release)
    try:
        finished = commands.run(argv, timeout=_DEPMOD_TIMEOUT)
    except CommandError as error:
        raise LoadError(str(error), hint=error.hint) from error
    indexed = read_in_tree(folder).lines if finished.ok else {}
    lost = [facts.name for facts in modules if facts.name not in indexed]
    if lost:
        raise LoadError(
            f"depmod (exit {finished.exit_code}) did not index {', '.join(lost)}: {finished.output.strip()}",
            hint="the container's kmod must be able to read these modules, and those they are linked with",
        )
