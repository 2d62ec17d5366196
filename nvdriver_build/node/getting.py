"""How this node gets a set that fits: from its store, built here, or built in the toolkit beside us."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Callable, Optional

import structlog
from attrs import frozen

from nvdriver_build.commands import Commands
from nvdriver_build.config import Config
from nvdriver_build.errors import HeadersError, SourceError
from nvdriver_build.kernel import prove, target_from_headers
from nvdriver_build.node.look import Describe, Kernel, module_kind, source_place
from nvdriver_build.node.status import Reporter
from nvdriver_build.obtain import Elsewhere, Obtained, Wish, modules_to_build, obtain, opened_source
from nvdriver_build.sets import Recipe
from nvdriver_build.source import Source
from nvdriver_build.store import Store
from nvdriver_build.toolkit import Order, Sidecar

Progress = Callable[[int, int, float], None]
_log = structlog.get_logger()


@frozen
class Ways:
    """The ways of this node. `sidecar` is None where the driver's container has no toolkit beside it."""

    config: Config
    commands: Commands
    sidecar: Optional[Sidecar] = None

    @property
    def describe(self) -> Optional[Describe]:
        """Who can say what the kernel is where the node itself does not."""
        return self.sidecar.headers if self.sidecar and not self.config.image_missing else None

    def prepare(self) -> None:
        """Let the container beside us start its end, whether it will be needed or not."""
        if self.sidecar is not None:
            self.sidecar.prepare()

    def dismiss(self) -> None:
        """Nothing more is wanted of the container beside us."""
        if self.sidecar is not None:
            self.sidecar.dismiss()

    def get(self, kernel: Kernel, report: Reporter, progress: Progress) -> Obtained:
        """A set for the kernel that runs; raises as `obtain`, SourceError for a source of another version."""
        store = Store(self.config.store)
        elsewhere = self._elsewhere(kernel, store, report)
        place, kind = source_place(self.config), module_kind(self.config, self.commands)
        with opened_source(place, kind, store, self.commands, self.config.run_sha256) as source:
            require_version(self.config, source, place)
            wish = self._wish(source, kernel)
            report.tell(
                driver_version=source.version, kernel_release=kernel.running.release, proof=wish.proof
            )
            obtained = obtain(wish, store, self.commands, progress=progress, elsewhere=elsewhere)
        report.tell(key=obtained.set.key, origin=obtained.origin, fit=obtained.fit.fit)
        _log.info("a set that fits", key=obtained.set.key[:12], fit=obtained.fit.fit, origin=obtained.origin)
        return obtained

    def _wish(self, source: Source, kernel: Kernel) -> Wish:
        return Wish(
            source=source,
            target=kernel.target,
            headers=kernel.headers,
            proof=f"{kernel.proof.by}: {kernel.proof.detail}",
            modules=modules_to_build(source),
            jobs=self.config.jobs,
            job_memory=self.config.job_memory,
            allow_compiler_mismatch=self.config.compiler_mismatch,
            signatures_enforced=kernel.security.enforces,
        )

    def _elsewhere(self, kernel: Kernel, store: Store, report: Reporter) -> Optional[Elsewhere]:
        if self.config.image_missing:
            return self._no_toolkit
        if self.sidecar is None:
            return None
        sidecar = self.sidecar

        def build(wish: Wish, recipe: Recipe, progress: Optional[Progress]) -> Path:
            headers = sidecar.headers(recipe.kernel_release)
            proof = prove(headers, target_from_headers(headers), kernel.running, kernel.tree)
            _log.info("the toolkit's headers are the running kernel's", proof=proof.by, why=proof.detail)
            order = Order(
                recipe,
                f"{proof.by}: {proof.detail}",
                wish.jobs,
                wish.job_memory,
                wish.allow_compiler_mismatch,
            )
            report.tell(proof=order.proof)
            try:
                return sidecar.build(order, wish.source, progress)
            finally:
                _keep(sidecar.log(recipe.key), store.log(recipe.key))

        return build

    def _no_toolkit(self, wish: Wish, recipe: Recipe, progress: Optional[Progress]) -> Path:
        raise HeadersError(
            f"no set for driver {recipe.driver_version} on {recipe.kernel_release} in {self.config.store}, "
            "and the cluster has no Driver Toolkit image for RHCOS "
            f"{self.config.rhcos_version or 'of this node'} (RHCOS_IMAGE_MISSING)",
            hint="ImageStream driver-toolkit in namespace openshift should have a tag of that name; or put a "
            "set into the store. Nothing is installed from package repositories",
        )


def require_version(config: Config, source: Source, place: Path) -> None:
    """The source has to be of the version that was asked for, where one was."""
    if config.driver_version not in (None, source.version):
        raise SourceError(
            f"DRIVER_VERSION is {config.driver_version}, the source {place} is {source.version}",
            hint="give the source of the version that is meant",
        )


def _keep(log: Path, place: Path) -> None:
    """The log of a build outlives the pod, for people; the build does not fail for want of it."""
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(log, place)
