"""`Sets` of the fleet's plan: what a registry has, asked beside the rounds, so that none waits long."""

from __future__ import annotations

import base64
import binascii
import threading
import time
from pathlib import Path
from typing import Callable, Optional

import structlog
from attrs import define, field, frozen

from nvdriver_build.commands import Commands, SystemCommands
from nvdriver_build.config import Config, read_config
from nvdriver_build.errors import CannotVerify, NvdriverError, SigningError, StoreError
from nvdriver_build.fleet.controller.api import Api, Missing
from nvdriver_build.fleet.controller.kinds import SECRET
from nvdriver_build.fleet.manifests import Driver
from nvdriver_build.fleet.objects import texts
from nvdriver_build.fleet.plan import Sets, UnknownSets
from nvdriver_build.fleet.reasons import Reason
from nvdriver_build.registry import Limits, Proxies, Registry, Unbelievable, open_registry
from nvdriver_build.sets import Recipe
from nvdriver_build.signing import Trust, parse_certificates
from nvdriver_build.signing.cms import private_place

AGE = 60.0
"""Seconds after which a set that was not there, or a registry that did not answer, is asked for again."""
KEPT = 3600.0
"""The same of a set that was there: registries are pruned."""
PATIENCE = 5.0
"""Seconds that a round waits for the first answer about a kernel: else a Job would build what is there."""
ONCE = 15.0
"""The same, for a command that makes one round."""
_TICK = 0.2
_LIMITS = Limits(connect=5, silence=5, answer=10, attempts=2)
_MOST, _LONGEST = 16, 30.0
"""So many sets of one kernel are looked at, in so many seconds."""
_LOGIN = ".dockerconfigjson"
_MAIN = "nvidia"
"""The module that a driver's set has; the sets of nvidia-peermem have not."""
_log = structlog.get_logger()
_UNKNOWN = "what the registry has is not known"
Kernel = tuple[str, str]
"""A release, and the architecture."""


@define
class _Answer:
    """What is known of one kernel; `asked` is when it was asked for last, `since_built` whether `there`
    was asked for after a Job had built it.
    """

    there: Optional[bool] = None
    asked: Optional[float] = None
    pending: bool = False
    since_built: bool = False
    trouble: Optional[NvdriverError] = None


@define(eq=False)
class RegistrySets:
    """What `look` finds: asked once a minute for each kernel, and once an hour where a set was found. That
    is there until the registry says that it is not.

    Looks are made one after the other by a thread that ends when nothing is left to be asked; `changed` is
    called where an answer is another one than before and nobody has waited for it. A round waits only for the
    first answer about a kernel, at most `patience` seconds, and not while an earlier one is overdue. `check`
    may raise then.
    """

    asks = True

    look: Callable[[str, str], bool]
    patience: float = PATIENCE
    changed: Callable[[], None] = lambda: None
    check: Callable[[], None] = lambda: None
    clock: Callable[[], float] = time.monotonic
    _answers: dict[Kernel, _Answer] = field(factory=dict)
    _wanted: list[tuple[Kernel, bool]] = field(factory=list)
    _changes: threading.Condition = field(factory=threading.Condition)
    _running: bool = False
    _overdue: bool = False
    _waiting: Optional[Kernel] = None

    def has(self, kernel: str, arch: str, built: bool = False) -> Optional[bool]:
        """Whether a set is there; None where that is not known (yet), also since a Job has `built` it."""
        with self._changes:
            answer = self._answers.setdefault((kernel, arch), _Answer())
            first, old = answer.asked is None, built and not answer.since_built and answer.there is False
            if self._due(answer) or (old and not answer.pending):
                self._ask((kernel, arch), answer, built)
            if first:
                self._waiting = (kernel, arch)
                self._wait(answer)
                self._waiting = None
            return None if old else answer.there

    def reasons(self) -> tuple[Reason, ...]:
        """Why an answer could not be had, each said once."""
        with self._changes:
            troubles = [each.trouble for each in self._answers.values() if each.trouble is not None]
        found = {Reason("RegistryUnknown", _told(error), error.hint or "") for error in troubles}
        return tuple(sorted(found))

    def _due(self, answer: _Answer) -> bool:
        if answer.asked is None:
            return True
        age = KEPT if answer.there and answer.trouble is None else AGE
        return not answer.pending and self.clock() - answer.asked >= age

    def _ask(self, kernel: Kernel, answer: _Answer, built: bool) -> None:
        answer.asked, answer.pending = self.clock(), True
        self._wanted.append((kernel, built))
        if not self._running:
            self._running = True
            threading.Thread(target=self._work, name="registry", daemon=True).start()

    def _wait(self, answer: _Answer) -> None:
        until = self.clock() + self.patience
        while answer.pending and not self._overdue:
            if self.clock() >= until:
                self._overdue = True
                return
            self._changes.wait(_TICK)
            self.check()

    def _work(self) -> None:
        while True:
            with self._changes:
                if not self._wanted:
                    self._running = False
                    return
                kernel, built = self._wanted.pop(0)
            there, trouble = self._looked(kernel)
            with self._changes:
                self._answers[kernel].since_built = built
                new = self._keep(kernel, there, trouble)
                self._changes.notify_all()
            if new:
                self.changed()

    def _keep(self, kernel: Kernel, there: Optional[bool], trouble: Optional[NvdriverError]) -> bool:
        """Whether that is new to everybody: a round that waits for it needs no other one."""
        answer, waiting = self._answers[kernel], self._waiting == kernel
        before = (answer.there, answer.trouble and answer.trouble.message)
        if there is None and answer.there:
            there = True  # until the registry says that it is not
        answer.there, answer.trouble, answer.pending, self._overdue = there, trouble, False, False
        return before != (there, trouble and trouble.message) and not waiting

    def _looked(self, kernel: Kernel) -> tuple[Optional[bool], Optional[NvdriverError]]:
        try:
            return self.look(*kernel), None
        except NvdriverError as error:
            _log.warning(_UNKNOWN, kernel=kernel[0], reason=error.message)
            return None, error
        except Exception as error:  # a bug must end no round, and is to be seen
            _log.exception(_UNKNOWN, kernel=kernel[0])
            told = f"{type(error).__name__}: {error}"
            return None, NvdriverError(told, hint="this is a bug: please report it")


def _told(error: NvdriverError) -> str:
    return f"{_UNKNOWN}: {error.message}"


@frozen
class Looking:
    """A look into the registry of the settings: is there a set of `version` that the nodes would take?

    Signed by a certificate of the settings' `trust`, for a kernel of this very name and of the kind that is
    meant. Sets of other kernels that may fit are not counted: that takes the kernel's symbols. `login` gives
    a dockerconfigjson. StoreError where the answer cannot be had.
    """

    driver: Driver
    config: Config
    version: str
    login: Callable[[], Optional[bytes]]

    def __call__(self, kernel: str, arch: str) -> bool:
        commands = SystemCommands(self.config.path)
        with private_place() as folder:
            try:
                return self._look(folder, kernel, arch, commands)
            except NvdriverError as error:  # told the same each time, whatever the folder is called
                told = error.message.replace(f"{folder}/", "the settings' ")
                raise StoreError(told, hint=error.hint) from error

    def _look(self, folder: Path, kernel: str, arch: str, commands: Commands) -> bool:
        driver, until = self.driver, time.monotonic() + _LONGEST
        assert driver.registry and driver.trust
        registry = open_registry(
            driver.registry,
            commands,
            authority=_file(folder / "registry_ca", (driver.registry_ca or "").encode()),
            auth=_file(folder / "registry_auth_secret", self.login()) or self.config.registry_auth,
            proxies=Proxies(self.config.https_proxy, self.config.no_proxy or ()),
            limits=_LIMITS,
        ).before(until)
        trust = Trust(parse_certificates(driver.trust.encode(), "the settings' trust"))
        for key in registry.built_for(self.version, kernel, arch)[:_MOST]:
            recipe = _signed(registry, key, trust, commands)
            if recipe is not None and self._serves(recipe, kernel, arch, trust):
                return True
            if time.monotonic() > until:
                raise StoreError(f"{registry} names many sets for {kernel} that do not serve, slowly")
        return False

    def _serves(self, recipe: Recipe, kernel: str, arch: str, trust: Trust) -> bool:
        named = (recipe.driver_version, recipe.kernel_release, recipe.arch) == (self.version, kernel, arch)
        kind = self.driver.env.get("KERNEL_MODULE_TYPE", "auto")
        signers = {each.fingerprint for each in trust.certificates}
        unsigned = recipe.certificate is None and self.driver.sign_secret is None
        served = recipe.certificate in signers or unsigned  # where a Job signs, a kernel may ask for it
        driver = _MAIN in recipe.modules and kind in ("auto", recipe.kind)
        return named and driver and served


def _signed(registry: Registry, key: str, trust: Trust, commands: Commands) -> Optional[Recipe]:
    """The recipe of a set whose manifest somebody trusted has signed, and whose modules are there; None where
    there is none.
    """
    try:
        offer = registry.offer(key)
        if offer is None:
            return None
        trust.require(offer.manifest, offer.signature, f"set {key[:12]} of {registry}", commands)
        offer.require_modules()
    except CannotVerify:
        raise
    except (SigningError, Unbelievable) as error:
        _log.warning("a set does not count", key=key[:12], reason=error.message)
        return None
    return offer.described.recipe


def _file(path: Path, content: Optional[bytes]) -> Optional[Path]:
    """A file with this content; None where there is none."""
    if not content:
        return None
    path.touch(0o600)
    path.write_bytes(content)
    return path


class NotAsked(UnknownSets):
    """A registry is configured, and cannot be asked: why."""

    def __init__(self, why: str, hint: str) -> None:
        self._reason = Reason("RegistryUnknown", f"{_UNKNOWN}: {why}", hint)

    def reasons(self) -> tuple[Reason, ...]:
        """The reason."""
        return (self._reason,)


def registry_sets(
    driver: Optional[Driver],
    api: Optional[Api],
    patience: float = PATIENCE,
    check: Callable[[], None] = lambda: None,
) -> Optional[Sets]:
    """What the registry of the settings has; None without one. The login is in the Secret, by `api`, or in
    the file that NVDRIVER_REGISTRY_AUTH names.
    """
    if driver is None or driver.registry is None:
        return None
    config = read_config()
    version = driver.env.get("DRIVER_VERSION") or config.driver_version
    if not driver.trust:
        return NotAsked("the settings have no trust", "it has the certificates of those who may build")
    if not version:
        why = "which driver version the image has is not known here"
        return NotAsked(why, "DRIVER_VERSION in the settings' env says it")
    looking = Looking(driver, config, version, lambda: _login(driver, api))
    return RegistrySets(looking, patience=patience, check=check)


def _login(driver: Driver, api: Optional[Api]) -> Optional[bytes]:
    name = driver.registry_auth_secret
    if name is None or api is None:
        return None
    try:
        text = texts(api.get(SECRET, name, driver.namespace), "data").get(_LOGIN)
        return base64.b64decode(text, validate=True) if text else None
    except Missing:
        return None
    except binascii.Error:
        raise StoreError(f"the Secret {driver.namespace}/{name} has no {_LOGIN} that can be read") from None
