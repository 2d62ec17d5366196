"""A signed set, made of an unsigned one: nothing is compiled for a signature."""

from __future__ import annotations

from typing import Callable

import structlog
from attrs import evolve

from nvdriver_build.commands import Commands
from nvdriver_build.errors import NoSigningKey, SigningError
from nvdriver_build.obtain.fitting import UNENFORCED, require_fit
from nvdriver_build.obtain.wish import Obtained, Wish
from nvdriver_build.sets import ModuleSet, Recipe
from nvdriver_build.signing import Certificate, kernel_hash, sign_set, who
from nvdriver_build.store import Store

_log = structlog.get_logger()


def signed(
    wish: Wish,
    certificate: Certificate,
    recipe: Recipe,
    store: Store,
    commands: Commands,
    unsigned: Callable[[Wish], Obtained],
) -> Obtained:
    """What is wanted, signed here, of what `unsigned` gets; unsigned where there is no key and no need.

    SigningError, before anything is compiled, where the kernel would refuse what comes of it: NoSigningKey
    where that is for want of a key.
    """
    wish.trust.require(certificate)
    if wish.signer is None:
        _require_no_need(wish, certificate, recipe)
        return unsigned(wish.unsigned())
    made = unsigned(wish.unsigned())
    # Of a set of another kernel, the signed one is of that kernel, too.
    wanted = evolve(made.set.manifest.recipe, certificate=certificate.fingerprint)
    with store.workspace() as work:
        found = sign_set(made.set, work / "set", wish.signer, commands, kernel_hash(wish.target.config))
        fit = require_fit(found, wish.target, wish.trust)
        _log.info("signed", key=wanted.key[:12], of=made.set.key[:12], by=who(certificate))
        return evolve(made, set=store.add(found.folder, wanted.key), fit=fit)


def own_only(store: Store) -> Store:
    """The store without what others built: who signs it vouches for it, everywhere and for good."""

    def refuse(found: ModuleSet) -> None:
        raise SigningError(
            f"it came from {found.foreign}, and what is signed here has to be built here",
            hint="it is built anew",
        )

    return evolve(store, vouch=refuse)


def _require_no_need(wish: Wish, certificate: Certificate, recipe: Recipe) -> None:
    what = (
        f"no set for driver {recipe.driver_version} on {recipe.kernel_release} signed by {who(certificate)}"
    )
    if wish.enforced:
        raise NoSigningKey(
            f"{what}, no key here to sign one (NVDRIVER_SIGN_KEY), and this kernel takes signed modules only",
            hint=f"let a machine with the key build it for this kernel and publish it; or {UNENFORCED}",
        )
    _log.warning(
        "modules are used that nobody has signed: this kernel does not ask for it, and is tainted", why=what
    )
