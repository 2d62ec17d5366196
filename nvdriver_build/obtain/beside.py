"""A build in the toolkit beside us: what is ordered there, and what is taken from there."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Callable, Optional, Sequence

from attrs import evolve

from nvdriver_build.build import Progress
from nvdriver_build.commands import Commands
from nvdriver_build.errors import CannotRead, StoreError, ToolkitError
from nvdriver_build.files import FULL, copy_plain, remove
from nvdriver_build.kernel import Headers, KernelTarget
from nvdriver_build.obtain.fitting import require_fit
from nvdriver_build.obtain.wish import Elsewhere, Obtained, Wish, modules_to_build
from nvdriver_build.sets import MANIFEST, MANIFEST_LIMIT, TELLING, Recipe, explain_miss, open_set
from nvdriver_build.source import open_source
from nvdriver_build.store import Store
from nvdriver_build.toolkit import SAME_VERSION, Order, Shared

_MOST = 512 * 1024**2
"""Bytes that a module may have; nvidia.ko with its debug information has 0.2 GiB."""


def fetch(
    wish: Wish,
    recipe: Recipe,
    store: Store,
    elsewhere: Elsewhere,
    progress: Optional[Progress],
    check: Callable[[], None],
) -> Obtained:
    """Have it built elsewhere, and believe nothing of it: a copy that nobody else can change is checked."""
    folder = elsewhere(wish, recipe, progress)
    with store.workspace() as work:
        place = work / "set"
        try:
            _copy(folder, wish.modules, place, check)
            made = open_set(place)
        except (OSError, StoreError) as error:
            if isinstance(error, OSError) and error.errno in FULL:  # the store's to tell
                raise
            hint = "it stays there, and the next run looks at it again"
            if _is_theirs(error):
                remove(folder)  # or the other end would find it again, and see nothing wrong with a link
                hint = "only the two containers of the pod may write there; the next run has it built anew"
            raise ToolkitError(
                f"what the Driver Toolkit delivered in {folder} cannot be taken: {error}", hint=hint
            ) from error
        if made.manifest.recipe != recipe:
            raise ToolkitError(
                f"the Driver Toolkit delivered another set than was ordered: "
                f"{explain_miss(recipe, [made.manifest.recipe])}",
                hint=SAME_VERSION,
            )
        fit = require_fit(made, wish.target, wish.trust)
        return Obtained(store.add(place, recipe.key), fit, "built")


def _is_theirs(error: Exception) -> bool:
    """Whether it is what was delivered that is at fault, and not this machine just now."""
    if isinstance(error, OSError):
        return error.errno in (*TELLING, errno.EFBIG)
    return not isinstance(error, CannotRead)


def _copy(folder: Path, modules: Sequence[str], place: Path, check: Callable[[], None]) -> None:
    """Copy the files of a set out of a folder of others; OSError where one is a link, say, or has no end."""
    place.mkdir()
    copy_plain(folder / MANIFEST, place / MANIFEST, MANIFEST_LIMIT, check)
    for name in modules:
        copy_plain(folder / f"{name}.ko", place / f"{name}.ko", _MOST, check)


def ordered(order: Order, shared: Shared, headers: Headers, target: KernelTarget, commands: Commands) -> Wish:
    """What was ordered from beside, as a wish; ToolkitError where it cannot be made of what is here.

    That these headers are the node's was proven over there, by what they say: the bytes of its own
    Module.symvers and config may differ, and the key is made of those.
    """
    recipe = order.recipe
    source = open_source(shared.source(recipe.source_digest), recipe.kind, shared.root, commands)
    wish = Wish(
        source=source,
        target=evolve(target, symvers_sha256=recipe.symvers_sha256, config_sha256=recipe.config_sha256),
        headers=headers,
        proof=order.proof,
        modules=recipe.modules,
        jobs=order.jobs,
        job_memory=order.job_memory,
        debug_info=recipe.debug_info,
        allow_compiler_mismatch=order.allow_compiler_mismatch,
    )
    if order.symvers is not None:
        wish = wish.peermem(order.symvers, recipe.mofed_symvers_sha256)
    else:
        modules_to_build(source, recipe.modules)
    mine = wish.recipe()
    if mine != recipe:
        raise ToolkitError(
            f"what is ordered cannot be made here: {explain_miss(recipe, [mine])}",
            hint="both containers of the pod must see the same source and the same kernel: delete the pod",
        )
    return wish
