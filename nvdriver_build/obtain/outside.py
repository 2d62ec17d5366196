"""A set from outside of the node: nothing of it is believed but what a trusted certificate has signed."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from typing import Callable, Iterator, Optional

import structlog
from attrs import evolve, frozen

from nvdriver_build.commands import Commands
from nvdriver_build.errors import FitError, NvdriverError, SigningError, StoreError
from nvdriver_build.files import publish
from nvdriver_build.kernel import KernelTarget
from nvdriver_build.obtain.fitting import require_fit
from nvdriver_build.obtain.wish import Obtained, Wish
from nvdriver_build.registry.turns import Turns
from nvdriver_build.sets import (
    FOREIGN,
    UNREADABLE,
    Manifest,
    ModuleSet,
    Recipe,
    explain_miss,
    open_set,
    parse_manifest,
)
from nvdriver_build.signing import TRUST_HINT, Trust
from nvdriver_build.store import Offer, Remote, Store, Unbelievable

ORIGIN = "registry"
_CANDIDATES, _SEARCH = 64, 120.0
"""So many sets of other kernels are looked at, in so many seconds: a build takes about as long."""
_log = structlog.get_logger()


def vouching(trust: Trust, commands: Commands) -> Callable[[ModuleSet], None]:
    """Asks for the signature of a set that others built: SigningError unless it is by one trusted now."""

    def vouch(found: ModuleSet) -> None:
        where = f"set {found.key[:12]} from {found.foreign}"
        trust.require(found.manifest_bytes, found.signature, where, commands)

    return vouch


@frozen
class Outside:
    """A place outside of the node, and who may have built what is there. It is waited for until `until`."""

    remote: Remote
    trust: Trust
    commands: Commands
    turns: Optional[Turns] = None
    until: float = math.inf

    def before(self, until: float) -> Outside:
        """The same, which is not waited for after `until` of the monotonic clock."""
        return evolve(self, remote=self.remote.before(until), until=until)

    def take(self, wish: Wish, recipe: Recipe, store: Store) -> tuple[Optional[Obtained], bool]:
        """A set from there that fits, in the node's own store by now, if there is one; whether it serves.

        What is wrong with that place, or with what it has, is told and does not end anything: there are
        other ways. One set that is damaged hides no other one.
        """
        if not self.trust.certificates:
            _log.warning(f"{self.remote} is not asked: no certificate is configured", hint=TRUST_HINT)
            return None, False
        try:
            for key, served in self._keys(wish, recipe):
                found = self._taken(key, wish, served, store)
                if found is not None:
                    return found, True
        except StoreError as error:
            _log.warning(f"{self.remote} does not serve", reason=error.message, hint=error.hint)
            return None, isinstance(error, Unbelievable)  # a note of what fits: whoever builds mends it
        return None, True

    def _keys(self, wish: Wish, recipe: Recipe) -> Iterator[tuple[str, Recipe]]:
        """The keys that are wanted, then others that might do, as long as the place is worth asking.

        Each with the recipe that its set would stand for.
        """
        served = wish.serving(recipe)
        yield from ((each.key, each) for each in served)
        if not wish.reuse or not wish.target.modversions:
            return
        until = min(self.until, time.monotonic() + _SEARCH)
        others = ((key, each) for each in served for key in self.remote.candidates(each, wish.target))
        for pair in itertools.islice(others, _CANDIDATES):
            yield pair
            if time.monotonic() > until:
                _log.warning(f"{self.remote} names many sets that do not fit, slowly: no more is asked for")
                return

    @contextlib.contextmanager
    def turn(self, wish: Wish, recipe: Recipe, store: Store) -> Iterator[Optional[Obtained]]:
        """What somebody else has built meanwhile; None: build it, while the others wait."""

        def there() -> Optional[Obtained]:
            with contextlib.suppress(StoreError):  # it served a moment ago
                found = (self._taken(each.key, wish, each, store) for each in wish.serving(recipe))
                return next((each for each in found if each is not None), None)
            return None

        if self.turns is None:
            yield None
            return
        builds = wish.signer is not None
        with self.turns.turn(recipe.key, there, builds=builds, until=self.until) as found:
            yield found

    def _taken(self, key: str, wish: Wish, recipe: Recipe, store: Store) -> Optional[Obtained]:
        try:
            offer = self.remote.offer(key)
        except Unbelievable as error:
            self._tell_refused(key, error)
            return None
        if offer is None:
            return None
        try:
            manifest = self._require_signed(offer, key)
            if key != recipe.key:
                _require_like(manifest, recipe, wish.target)
            return self._fetched(offer, wish, store)
        except (SigningError, FitError, StoreError) as error:
            self._tell_refused(key, error)
            return None

    def _tell_refused(self, key: str, error: NvdriverError) -> None:
        _log.warning(
            f"a set of {self.remote} is refused", key=key[:12], reason=error.message, hint=error.hint
        )

    def _require_signed(self, offer: Offer, key: str) -> Manifest:
        """The manifest, once its signature is good, and it is the one that was asked for."""
        where = f"set {key[:12]} of {self.remote}"
        self.trust.require(offer.manifest, offer.signature, where, self.commands)
        manifest = parse_manifest(offer.manifest, where)
        if manifest.key != key:
            raise StoreError(
                f"{where} is another one, {manifest.key[:12]}",
                hint="somebody has put it under a name that is not its own",
            )
        return manifest

    def _fetched(self, offer: Offer, wish: Wish, store: Store) -> Obtained:
        with self._brought(offer, store) as made:
            fit = require_fit(made, wish.target, wish.trust)
            return Obtained(store.add(made.folder, made.key), fit, ORIGIN)

    @contextlib.contextmanager
    def _brought(self, offer: Offer, store: Store) -> Iterator[ModuleSet]:
        """What is offered, in a private folder of the store, proven to be of somebody trusted."""
        with store.workspace() as work:
            place = work / "set"
            offer.fetch(place)
            publish(place / FOREIGN, f"{self.remote}\n")
            made = open_set(place)
            vouching(self.trust, self.commands)(made)
            yield made

    def pull(self, key: str, store: Store) -> ModuleSet:
        """The set of a key, in the node's own store by now, whatever kernel it is for.

        StoreError where there is none that can be taken, SigningError where nobody trusted has signed it.
        """
        if not self.trust.certificates:
            message = f"{self.remote} is not asked: no certificate is configured that could have signed a set"
            raise SigningError(message, hint=TRUST_HINT)
        offer = self.remote.offer(key)
        if offer is None:
            raise StoreError(f"{self.remote} has no set {key}", hint="`store push` it where it is")
        self._require_signed(offer, key)
        with self._brought(offer, store) as made:
            return store.add(made.folder, key)

    def give(self, found: ModuleSet) -> None:
        """Let others have a set that was signed here; that place's troubles are told, and end nothing."""
        try:
            pushed = self.remote.push(found)
            _log.info(f"{'put into' if pushed else 'already in'} {self.remote}", key=found.key[:12])
        except NvdriverError as error:
            _log.warning(f"{self.remote} did not take the set", reason=error.message, hint=error.hint)


def _require_like(manifest: Manifest, recipe: Recipe, target: KernelTarget) -> None:
    """FitError where a set of another kernel cannot do, by its manifest: before any of it moves.

    The place names what might do; a set of another driver, however well signed, is never what was asked for.
    """
    if manifest.recipe.family != recipe.family:
        raise FitError(explain_miss(recipe, [manifest.recipe]))
    if manifest.config_digest != target.config_digest:
        raise FitError(f"it was built with another configuration than that of {target.release}")
    try:
        lacking = _lacking(manifest, target)
    except UNREADABLE as error:
        raise FitError(f"its manifest does not say what it needs ({type(error).__name__})") from error
    if lacking is not None:
        raise FitError(f"{lacking} is not the same in {target.release}")


def _lacking(manifest: Manifest, target: KernelTarget) -> Optional[str]:
    """The first symbol that the modules need, and that `target` has not, or not with that CRC."""
    facts = [file.facts for file in manifest.files]
    own = {name for each in facts for name in (*each["symbols_exported"], *each["weak"])}
    for name, crc in ((name, crc) for each in facts for name, crc in each["symbols_needed"].items()):
        there = target.symbols.get(name)
        if name not in own and (there is None or there.crc != int(crc, 16)):
            return str(name)
    return None
