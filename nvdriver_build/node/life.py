"""`Node`: the stages of a driver's life, in their order."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from pathlib import Path
from typing import Callable, Iterator, Mapping, Optional

import structlog
from attrs import define, frozen

from nvdriver_build.commands import Commands
from nvdriver_build.config import Config
from nvdriver_build.errors import LoadError, NoGpuError, NvdriverError, Stopped, UsageError
from nvdriver_build.loader.devices import claimants, nvidia_devices
from nvdriver_build.loader.host import Host, driver_modules, missing
from nvdriver_build.loader.kernel_log import Journal
from nvdriver_build.loader.load import load
from nvdriver_build.loader.parameters import Parameters, for_modules, read_parameters
from nvdriver_build.loader.root import ModuleRoot, prepare_root
from nvdriver_build.loader.unload import require_unused, unload
from nvdriver_build.node.getting import Driver, Ways
from nvdriver_build.node.look import Kernel, kernel_trust, look
from nvdriver_build.node.own_version import MOUNTED, require_own_version
from nvdriver_build.node.peermem import MODULE as PEERMEM
from nvdriver_build.node.status import Reporter
from nvdriver_build.node.userland import Userland, undo_quietly
from nvdriver_build.obtain import require_fit
from nvdriver_build.readiness import Readiness
from nvdriver_build.sets import open_set

INTERVAL = 0.5
"""Seconds between two looks at the loaded modules."""
_log = structlog.get_logger()


@frozen
class Loadable:
    """A set that is ready to load, with its parameters; `digest` names both together."""

    root: ModuleRoot
    parameters: Parameters
    digest: str

    @property
    def needed(self) -> Mapping[str, Optional[str]]:
        """What has to be live for the driver to be ready, by module.

        nvidia-peermem comes and goes with MOFED, and a container of its own looks after it.
        """
        return {name: build_id for name, build_id in self.root.build_ids.items() if name != PEERMEM}


@define
class Node:
    """One node and the driver on it.

    `stop` raises Stopped once a signal came, and `commands` end then; `leaving` run to their end even so.
    """

    config: Config
    host: Host
    machine: str
    commands: Commands
    leaving: Commands
    journal: Journal
    stop: Callable[[], None]
    progress: Callable[[int, int, float], None]
    readiness: Readiness
    ways: Ways
    userland: Userland
    modules: Path = Path("/run/nvdriver-build/modules")
    pause: Callable[[float], None] = time.sleep
    os_release: Path = MOUNTED

    def run(self) -> None:
        """The whole life. Returns after a signal, with the driver unloaded; else raises what ended it."""
        with self._owned() as report:
            self._live(report)

    @contextlib.contextmanager
    def _owned(self) -> Iterator[Reporter]:
        """The node is ours, nothing is announced, and what ends us is told."""
        with self.readiness.owned():
            self.readiness.withdraw()
            report = Reporter(self.readiness)
            try:
                yield report
            except NvdriverError as error:
                report.failed(error)
                raise
            except Exception as error:  # a bug, or a place that is foul: people look here, too
                report.failed(NvdriverError(f"{type(error).__name__}: {error}"))
                raise
            finally:
                with contextlib.ExitStack() as last:
                    last.callback(self._clear)
                    undo_quietly(self.userland)
                    if not driver_modules(self.host):
                        self.userland.clean()

    def _clear(self) -> None:
        """Leave no readiness; what cannot be cleared must not hide what ended us."""
        with contextlib.suppress(UsageError):
            self.readiness.clear()

    def _live(self, report: Reporter) -> None:
        try:
            loadable = self.bring_up(report)
            self._watch(loadable, report)
        except Stopped as end:
            _log.info("asked to end", signal=end.signal)
            with contextlib.suppress(UsageError):  # whatever the disk says, the driver has to go
                self.readiness.withdraw()
            report.tell(ready=False)
            with report.stage("leave"):
                self.leave()

    def bring_up(self, report: Reporter) -> Loadable:
        """From nothing to announced."""
        loadable = self.make_ready(report)
        with self._stage(report, "load"):
            self._load(loadable, report)
        with self._stage(report, "start"):
            self.userland.after_load(loadable.root)
        with self._stage(report, "ready"):
            self._announce(loadable, report)
        return loadable

    def make_ready(self, report: Reporter) -> Loadable:
        """From nothing to a set that fits, ready to load."""
        with self._stage(report, "look"):
            require_own_version(self.config, self.host.proc, self.os_release)
            self.ways.prepare()
            self._require_gpu()
            self.userland.require_supported()
            kernel = look(self.config, self.host, self.machine, describe=self.ways.describe)
            _log.info(
                "kernel", release=kernel.running.release, proof=kernel.proof.by, why=kernel.proof.detail
            )
        with self._stage(report, "obtain"):
            driver = self.ways.get(kernel, report, self._progress(report))
            self.ways.dismiss()
        with self._stage(report, "prepare"):
            return self._prepare(driver, kernel, report)

    @contextlib.contextmanager
    def _stage(self, report: Reporter, name: str) -> Iterator[None]:
        self.stop()
        with report.stage(name):
            yield

    def _require_gpu(self) -> None:
        devices, claims = nvidia_devices(self.host), claimants(self.host)
        if not devices:
            raise NoGpuError(
                "there is no NVIDIA GPU on this node",
                hint="`lspci -d 10de:` should list it; keep the driver off nodes without one",
            )
        taken = [claim for claim in claims if claim.device is not None]
        if len(taken) == len(devices):
            raise LoadError(
                f"every GPU of this node is taken: {', '.join(map(str, taken))}",
                hint="keep it from loading (kernel argument module_blacklist=nouveau), or unbind it",
            )

    def _progress(self, report: Reporter) -> Callable[[int, int, float], None]:
        def both(done: int, total: int, elapsed: float) -> None:
            self.progress(done, total, elapsed)
            report.progress(done, total, elapsed)

        return both

    def _prepare(self, driver: Driver, kernel: Kernel, report: Reporter) -> Loadable:
        facts = driver.read()
        parameters, notices = for_modules(read_parameters(self.config.parameters), facts)
        for notice in notices:
            _log.warning(notice)
        root = prepare_root(
            self.modules,
            kernel.running.release,
            facts,
            kernel.tree,
            self.commands,
            parameters=parameters,
            others=driver.others,
        )
        loadable = Loadable(root, parameters, _digest(driver.key, parameters))
        report.tell(modules=loadable.needed)
        return loadable

    def _load(self, loadable: Loadable, report: Reporter) -> None:
        """Attach where the same set is live with the same parameters; else unload what is there, and load."""
        if self._is_loaded(loadable):
            self.userland.before_load(loadable.parameters)
            if missing(self.host, loadable.root.build_ids):
                self._insert(loadable)
            report.tell(origin="loaded")
            _log.info("attached: the same set is live already")
            return
        if driver_modules(self.host):
            _log.info("another driver is loaded: unloading it")
            self.leave()
        self.readiness.forget()  # of one that others unloaded, too
        self.userland.before_load(loadable.parameters)
        self._insert(loadable)

    def _insert(self, loadable: Loadable) -> None:
        """Load what is not live yet."""
        result = load(loadable.root.build_ids, loadable.root, self.commands, self.host, self.journal)
        for notice in result.notices:
            _log.warning(notice)
        _log.info("loaded", seconds={name: round(seconds, 3) for name, seconds in result.seconds.items()})

    def _is_loaded(self, loadable: Loadable) -> bool:
        """Build ids say which set it is; the digests, kept as long as it is loaded, its parameters."""
        same = self.readiness.holds(loadable.digest, self.config.config_digest)
        return same and not missing(self.host, loadable.needed)

    def _announce(self, loadable: Loadable, report: Reporter, *, restore: bool = False) -> None:
        lost = missing(self.host, loadable.needed)
        if lost:
            raise LoadError(f"not ready: {'; '.join(lost)}", hint="something unloaded the driver meanwhile")
        report.tell(ready=True, error=None)
        self.readiness.keep(loadable.digest, self.config.config_digest)
        self.readiness.announce(report.status, restore=restore)

    def _watch(self, loadable: Loadable, report: Reporter) -> None:
        """Until a signal: no readiness while a module is lost, readiness again once it is back."""
        report.tell(stage="watch")
        was_confirmed = False
        while True:
            self.stop()
            lost = (*missing(self.host, loadable.needed), *self.userland.down())
            if lost and report.status.ready:
                was_confirmed = self.readiness.withdraw()
                error = LoadError(f"the driver is not whole: {'; '.join(lost)}", hint="restart the pod")
                report.failed(error)
            elif not lost and not report.status.ready:
                self._announce(loadable, report, restore=was_confirmed)
                _log.info("the driver is whole again")
            self.readiness.beat()
            self.pause(INTERVAL)

    def load_set(self, folder: Path) -> None:
        """Load the set in `folder` as `run` would, once it is proven to fit the running kernel."""
        with self._owned() as report:
            try:
                self._load_set(folder, report)
            except Stopped:
                self.leave()
                raise

    def _load_set(self, folder: Path, report: Reporter) -> None:
        with self._stage(report, "look"):
            self._require_gpu()
            kernel = look(self.config, self.host, self.machine)
        with self._stage(report, "verify"):
            found = open_set(folder)
            fit = require_fit(found, kernel.target, kernel_trust(self.host, self.commands))
            recipe = found.manifest.recipe
            built = {"driver_version": recipe.driver_version, "built_for": recipe.kernel_release}
            report.tell(key=found.key, fit=fit.fit, **built)
        with self._stage(report, "prepare"):
            loadable = self._prepare(Driver(found), kernel, report)
        with self._stage(report, "load"):
            self._load(loadable, report)

    def leave(self) -> None:
        """Take the driver away, and all that came with it; InUseError, with the holders, where it is used."""
        self.userland.undo()
        if driver_modules(self.host):
            # The state file holds until the driver goes: after a refusal the next run can still attach.
            require_unused(self.host)
            self.readiness.forget()
            names = unload(self.host, self.leaving)
            _log.info("unloaded", modules=names)
        self.userland.clean()

    def uninstall(self) -> None:
        """Leave a node as if no driver had been there; InUseError where it is in use."""
        with self._owned():
            self.leave()


def _digest(key: str, parameters: Parameters) -> str:
    text = json.dumps([key, {name: list(words) for name, words in parameters.items()}], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
