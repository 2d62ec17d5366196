"""Sets for kernels that do not run here: obtained as for a node, and put where the nodes will look."""

from __future__ import annotations

import time
from typing import Optional

from attrs import frozen

from nvdriver_build.build import Progress
from nvdriver_build.commands import Commands
from nvdriver_build.fit import EXACT
from nvdriver_build.obtain.outside import Outside
from nvdriver_build.obtain.ways import obtain
from nvdriver_build.obtain.wish import Obtained, Wish
from nvdriver_build.sets import ModuleSet
from nvdriver_build.store import Store


@frozen
class Prebuilt:
    """A set for one kernel: `why` says why it was compiled, or why it was not.

    `published` is whether others can take it now; None where there is no place for that.
    """

    kernel_release: str
    set: ModuleSet
    fit: str
    origin: str
    why: str
    published: Optional[bool]
    seconds: float


def prebuild(
    wish: Wish, store: Store, commands: Commands, outside: Optional[Outside], progress: Optional[Progress]
) -> Prebuilt:
    """Have a set for the kernel of `wish`, here and outside; raises as `obtain` and `Remote.push`."""
    started = time.monotonic()
    lacking = store.explain_miss(wish.recipe())
    found = obtain(wish, store, commands, progress=progress, outside=outside)
    published = None
    if outside is not None:
        outside.remote.push(found.set)
        published = True
    why = lacking if found.origin == "built" else _served(found)
    seconds = time.monotonic() - started
    return Prebuilt(wish.target.release, found.set, found.fit.fit, found.origin, why, published, seconds)


def _served(found: Obtained) -> str:
    if found.fit.fit == EXACT:
        return f"it was in the {found.origin} already"
    release = found.set.manifest.recipe.kernel_release
    return f"that of {release} fits: {found.fit.crcs_proven} symbol CRCs and the configuration are equal"
