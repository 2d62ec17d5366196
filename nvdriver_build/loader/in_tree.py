"""The modules that come with a kernel, and what a driver's modules need of them.

Files of /lib/modules/R: modules.dep(5), and modules.builtin, a path a line (Documentation/kbuild/kbuild.rst).
"""

from __future__ import annotations

from pathlib import Path
from typing import Collection, Iterator, Mapping, Optional, Sequence

from attrs import frozen

from nvdriver_build.elf import ModuleFacts, canonical_name, read_module
from nvdriver_build.errors import LoadError


@frozen
class InTree:
    """One kernel's module folder. `lines` has, by name, a module's own path and then those it depends on."""

    path: Path
    builtin: frozenset[str]
    lines: Mapping[str, tuple[str, ...]]

    def files_of(self, name: str) -> Optional[tuple[str, ...]]:
        """The files, relative to `path`, that `name` needs, itself among them; None where it is not here."""
        if name in self.builtin:
            return ()
        files = self.lines.get(name)
        return files if files and all((self.path / file).is_file() for file in files) else None


def read_in_tree(path: Path) -> InTree:
    """Read a kernel's module folder, by its files where modules.dep is absent; no folder is an empty one."""
    listed = _lines(path / "modules.dep")
    builtin = frozenset(_name(line) for line in _lines(path / "modules.builtin") or ())
    return InTree(path, builtin, _listed(listed) if listed is not None else _Unlisted(path, builtin))


def required_files(
    modules: Sequence[ModuleFacts], tree: InTree, others: Collection[str] = ()
) -> tuple[str, ...]:
    """The in-tree files that `modules` need, each once; LoadError naming the first that is nowhere.

    `others` are modules that somebody else has loaded, such as MOFED's ib_core: their in-tree namesakes must
    not come in their place.
    """
    ours = {*others, *(facts.name for facts in modules)}
    files: dict[str, None] = {}
    for facts in modules:
        for name in map(canonical_name, facts.depends):
            if name not in ours:
                files.update(dict.fromkeys(_files_or_error(facts.name, name, tree)))
    return tuple(files)


def _files_or_error(module: str, name: str, tree: InTree) -> tuple[str, ...]:
    files = tree.files_of(name)
    if files is None:
        raise LoadError(
            f"missing in-tree dependency: {module} needs the module {name}, which {tree.path} does not have",
            hint="the kernel's own module packages (kernel-modules-core, kernel-modules) belong there; "
            "in a container the host's /lib/modules must be visible, by hostPID or by a mount",
        )
    return files


def _listed(lines: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
    split = (line.replace(":", " ", 1).split() for line in lines if ":" in line)
    return {_name(files[0]): tuple(files) for files in split}


class _Unlisted(Mapping[str, tuple[str, ...]]):
    """What modules.dep would list, worked out from the files for the modules that are asked for."""

    def __init__(self, path: Path, builtin: frozenset[str]) -> None:
        self._path = path
        self._builtin = builtin
        self._files = {_name(file.name): file for file in sorted(path.glob("kernel/**/*.ko*"))}

    def __getitem__(self, name: str) -> tuple[str, ...]:
        files: dict[str, None] = {}
        waiting = [name]
        while waiting:
            file = self._files[waiting.pop()]
            relative = str(file.relative_to(self._path))
            if relative not in files:
                files[relative] = None
                depends = map(canonical_name, read_module(file, digest=False).depends)
                waiting += [other for other in depends if other not in self._builtin]
        return tuple(files)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _name(path: str) -> str:
    return canonical_name(path.rpartition("/")[2].strip())


def _lines(path: Path) -> Optional[Sequence[str]]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
