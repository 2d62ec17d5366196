"""Which sets of other kernels might fit a kernel, without opening them.

    ROOT/index/FAMILY/KEY     `CRC symbol`, a line for each symbol that the set KEY needs of the kernel

FAMILY is a digest of all that has to be equal for `compatible` beside the symbols. An entry is a hint: it is
written once its set is published, and again where a set in use lacks it; whoever follows it opens the set and
proves it. So a crash between the two, or an index that is lost, costs a build at most.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from pathlib import Path
from typing import Callable, Collection, Iterator, Sequence

from attrs import frozen

from nvdriver_build.elf import ModuleFacts
from nvdriver_build.files import publish, read_plain
from nvdriver_build.kernel import KernelTarget
from nvdriver_build.sets import ModuleSet, Recipe

LAYOUT = "module_layout"
"""Its CRC differs between nearly any two kernels of different ABI: compared first."""
_LIMIT = 256 * 1024
"""Bytes that an entry may have; that of NVIDIA's modules has 30,000."""
_MOST = 4_000
"""Entries of a family that are looked at: in a folder that others share, there may be any number."""
_FIRST = 256
"""Bytes in which the first line ends: a CRC and the name of a symbol."""


@frozen
class Index:
    """The index in `root`, a store's folder."""

    root: Path

    def note(self, found: ModuleSet) -> None:
        """Have an entry for a published set; OSError or ModuleFormatError where there cannot be one."""
        manifest = found.manifest
        place = self._family(manifest.recipe, manifest.vermagic, manifest.config_digest) / found.key
        if not place.exists():
            publish(place, b"".join(_needed(found.read())))

    def candidates(
        self, recipe: Recipe, target: KernelTarget, check: Callable[[], None] = lambda: None
    ) -> Iterator[str]:
        """Keys of sets whose every symbol `target` has with that CRC, in no order.

        `check` is called before each entry that is looked at, and may raise.
        """
        there = {_line(name, symbol.crc) for name, symbol in target.symbols.items()}
        with contextlib.suppress(FileNotFoundError):
            places = self._family(recipe, target.vermagic, target.config_digest).iterdir()
            for place in itertools.islice(places, _MOST):
                check()
                if place.name != recipe.key and _within(place, there):
                    yield place.name

    def drop(self, key: str) -> None:
        """Forget a set."""
        for place in self._folder.glob(f"*/{key}"):
            place.unlink(missing_ok=True)

    def _family(self, recipe: Recipe, vermagic: str, config_digest: str) -> Path:
        return self._folder / family(recipe, vermagic, config_digest)

    @property
    def _folder(self) -> Path:
        return self.root / "index"


def family(recipe: Recipe, vermagic: str, config_digest: str) -> str:
    """The digest of all that sets have in common which may fit one kernel, beside the symbols."""
    text = json.dumps([recipe.family, vermagic.partition(" ")[2], config_digest], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _needed(modules: Sequence[ModuleFacts]) -> list[bytes]:
    """What the set asks of the kernel: not what its own modules export, nor what it can do without."""
    own = {name for module in modules for name in (*module.exports, *module.weak)}
    needed = {item for module in modules for item in module.needed.items() if item[0] not in own}
    return [_line(name, crc) for name, crc in sorted(needed, key=lambda item: (item[0] != LAYOUT, item))]


def _line(name: str, crc: int) -> bytes:
    return f"{crc:08x} {name}\n".encode()


def _within(place: Path, there: Collection[bytes]) -> bool:
    """Whether all that an entry names is there; an entry that went meanwhile names nothing that fits."""
    with contextlib.suppress(OSError):
        return all(  # the first line alone tells nearly all that do not fit
            line in there for limit in (_FIRST, _LIMIT) for line in _lines(read_plain(place, limit), limit)
        )
    return False


def _lines(data: bytes, limit: int) -> Sequence[bytes]:
    return data.splitlines(keepends=True)[: 1 if limit == _FIRST else None]
