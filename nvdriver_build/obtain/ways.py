"""The ways, in their order; `obtain` reads as the list of them."""

from __future__ import annotations

import contextlib
import time
from typing import Optional

import structlog

from nvdriver_build.build import Progress
from nvdriver_build.commands import Commands
from nvdriver_build.errors import FitError, NoSigningKey, SigningError
from nvdriver_build.kernel import Headers, KernelTarget
from nvdriver_build.obtain.beside import fetch, ordered
from nvdriver_build.obtain.fitting import UNENFORCED, require_fit
from nvdriver_build.obtain.making import build
from nvdriver_build.obtain.outside import Outside
from nvdriver_build.obtain.signed import own_only, signed
from nvdriver_build.obtain.wish import Elsewhere, Obtained, Wish
from nvdriver_build.sets import Recipe
from nvdriver_build.store import Store
from nvdriver_build.toolkit import Order, Shared

_WAIT_FOR_OTHER = 3600.0
_WAIT_OUTSIDE = 600.0
"""Seconds for all that is outside for a set, with its turn: a pod has 1,200 s to start, and may build it."""
_log = structlog.get_logger()


def obtain(
    wish: Wish,
    store: Store,
    commands: Commands,
    *,
    progress: Optional[Progress] = None,
    elsewhere: Optional[Elsewhere] = None,
    outside: Optional[Outside] = None,
) -> Obtained:
    """Get a set that fits the target; raise what the last way that could serve raises.

    `elsewhere` builds where there are no headers here, `outside` has what others have built. FitError, with
    every finding, where a set does not fit; HeadersError where something would have to be built and nothing
    to build with is there.
    """
    return _obtain(wish, wish.recipe(), store, commands, progress, elsewhere, outside)


def _obtain(
    wish: Wish,
    recipe: Recipe,
    store: Store,
    commands: Commands,
    progress: Optional[Progress],
    elsewhere: Optional[Elsewhere] = None,
    outside: Optional[Outside] = None,
) -> Obtained:
    found = _find(wish, recipe, store)
    if found is not None:
        return found
    found = _reuse(wish, recipe, store)
    if found is not None:
        return found
    _log.info("not in the store", key=recipe.key[:12], why=store.explain_miss(recipe))
    asked = outside.before(time.monotonic() + _WAIT_OUTSIDE) if outside else None
    found, serves = asked.take(wish, recipe, store) if asked else (None, False)
    if found is not None:
        return found
    with store.building(recipe.key, _WAIT_FOR_OTHER, commands.check), contextlib.ExitStack() as turn:
        found = _find(wish, recipe, store)
        if found is None and asked and serves:
            found = turn.enter_context(asked.turn(wish, recipe, store))
        return found or _make(wish, recipe, store, commands, progress, elsewhere, outside)


def _make(
    wish: Wish,
    recipe: Recipe,
    store: Store,
    commands: Commands,
    progress: Optional[Progress],
    elsewhere: Optional[Elsewhere],
    outside: Optional[Outside],
) -> Obtained:
    if wish.certificate is not None:
        made = signed(
            wish,
            wish.certificate,
            recipe,
            store,
            commands,
            lambda unsigned: _obtain(
                unsigned,
                unsigned.recipe(),
                own_only(store) if wish.signer else store,
                commands,
                progress,
                elsewhere,
            ),
        )
        if outside and wish.signer:
            outside.give(made.set)
        return made
    _require_unenforced(wish)
    if wish.headers is None and elsewhere is not None:
        return fetch(wish, recipe, store, elsewhere, progress, commands.check)
    return build(wish, recipe, store, commands, progress)


def _require_unenforced(wish: Wish) -> None:
    if wish.enforced:
        raise NoSigningKey(
            f"kernel {wish.target.release} takes signed modules only, and what is built here is not signed",
            hint=UNENFORCED,
        )


def _find(wish: Wish, recipe: Recipe, store: Store) -> Optional[Obtained]:
    for each in wish.serving(recipe):
        found = store.find(each)
        if found is None:
            continue
        try:
            return Obtained(found, require_fit(found, wish.target, wish.trust), "store")
        except SigningError as error:
            if each == recipe:
                raise
            _log.warning("a set is passed over", key=found.key[:12], why=error.message)
    return None


def _reuse(wish: Wish, recipe: Recipe, store: Store) -> Optional[Obtained]:
    """A set that was built for another kernel, and is proven to fit this one."""
    if not wish.reuse or not wish.target.modversions:
        return None
    served = wish.serving(recipe)
    for found in (each for one in served for each in store.fitting(one, wish.target)):
        built_for = found.manifest.recipe.kernel_release
        try:
            fit = require_fit(found, wish.target, wish.trust)
        except (FitError, SigningError) as error:
            _log.info("a set of another kernel does not fit", key=found.key[:12], why=error.message)
            continue
        _log.warning(
            "a set that was built for another kernel is used: all CRCs and the configuration are equal",
            key=found.key[:12],
            built_for=built_for,
            kernel=recipe.kernel_release,
            crcs=fit.crcs_proven,
        )
        return Obtained(found, fit, "store")
    return None


def build_ordered(
    order: Order,
    shared: Shared,
    headers: Headers,
    target: KernelTarget,
    commands: Commands,
    progress: Progress,
) -> str:
    """Build what was ordered from beside, into the shared store; the set's key. Raises as `obtain` does."""
    wish = ordered(order, shared, headers, target, commands)
    return _obtain(wish, order.recipe, Store(shared.store), commands, progress).set.key
