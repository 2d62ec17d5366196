"""How this node gets a set that fits: from its store, built here, or built in the toolkit beside us."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Callable, Collection, Optional

import structlog
from attrs import frozen

from nvdriver_build.commands import Commands
from nvdriver_build.config import Config
from nvdriver_build.elf import ModuleFacts
from nvdriver_build.errors import HeadersError, NoSigningKey, SourceError, ToolkitError
from nvdriver_build.files import publish, read_plain
from nvdriver_build.fit import UNFIT
from nvdriver_build.kernel import prove, target_from_headers
from nvdriver_build.loader.devices import mellanox_present
from nvdriver_build.loader.host import DRIVER
from nvdriver_build.mofed import PEERMEM, Peers
from nvdriver_build.node.look import Describe, Kernel, kernel_trust, module_kind, source_place
from nvdriver_build.node.peermem import MofedPlace, Patience, wait_for_mofed
from nvdriver_build.node.status import Reporter
from nvdriver_build.node.stores import outside, own_store, trust
from nvdriver_build.obtain import Elsewhere, Obtained, Wish, modules_to_build, obtain, opened_source, unfit
from nvdriver_build.sets import ModuleSet, Recipe
from nvdriver_build.signing import ENROLL, Identity, KernelTrust, read_identity, who
from nvdriver_build.source import Source
from nvdriver_build.store import Store
from nvdriver_build.toolkit import Order, Sidecar

Progress = Callable[[int, int, float], None]
_LOG_LIMIT = 64 * 1024 * 1024
"""Bytes of a build's log that are kept; make writes less than one of these MiB."""
_log = structlog.get_logger()


@frozen
class Driver:
    """What is to be loaded: the driver's set and, where it is wanted, that of nvidia-peermem.

    `others` are MOFED's modules: none of these names is the kernel's own then.
    """

    set: ModuleSet
    peermem: Optional[ModuleSet] = None
    others: Collection[str] = ()

    @property
    def key(self) -> str:
        """Names all of it."""
        return self.set.key + (self.peermem.key if self.peermem else "")

    def read(self) -> tuple[ModuleFacts, ...]:
        """What the ELF of each module says now."""
        return (*self.set.read(), *(self.peermem.read() if self.peermem else ()))


@frozen
class Ways:
    """The ways of this node. `sidecar` is None where the driver's container has no toolkit beside it."""

    config: Config
    commands: Commands
    mofed: MofedPlace
    sidecar: Optional[Sidecar] = None

    @property
    def describe(self) -> Optional[Describe]:
        """Who can say what the kernel is where the node itself does not."""
        return self.sidecar.headers if self.sidecar and not self.config.image_missing else None

    def prepare(self) -> None:
        """Let the container beside us start its end, whether it will be needed or not."""
        if self.sidecar is not None:
            _told_only(self.sidecar.prepare)

    def dismiss(self) -> None:
        """Nothing more is wanted of the container beside us."""
        if self.sidecar is not None:
            _told_only(self.sidecar.dismiss)

    def get(self, kernel: Kernel, report: Reporter, progress: Progress) -> Driver:
        """What is to be loaded on the kernel that runs; raises as `obtain`.

        SourceError for a source of another version, LoadError where MOFED is wanted and does not come.
        """
        store, others = own_store(self.config, self.commands), outside(self.config, self.commands)
        elsewhere = self._elsewhere(kernel, store, report)
        place, kind = source_place(self.config), module_kind(self.config, self.commands)
        with opened_source(place, kind, store, self.commands, self.config.run_sha256) as source:
            require_version(self.config, source, place)
            wish = self._wish(source, kernel)
            report.tell(
                driver_version=source.version, kernel_release=kernel.running.release, proof=wish.proof
            )
            obtained = obtain(
                wish, store, self.commands, progress=progress, elsewhere=elsewhere, outside=others
            )
            report.tell(
                key=obtained.set.key,
                origin=obtained.origin,
                fit=obtained.fit.fit,
                built_for=obtained.set.manifest.recipe.kernel_release,
            )
            _told(obtained)
            if not self._wants_peermem():
                return Driver(obtained.set)
            mofed = wait_for_mofed(
                self.mofed, wish.target.arch, wish.target.release, Patience(self.commands.check)
            )
            nvidia = next(facts for facts in obtained.set.read() if facts.name == DRIVER)
            peers = Peers(mofed, nvidia)
            try:
                beside = obtain(
                    wish.peermem(peers.symvers, mofed.sha256),
                    store,
                    self.commands,
                    elsewhere=elsewhere,
                    outside=others,
                )
            except NoSigningKey as error:
                _leave_out(error, report)
                return Driver(obtained.set)
            _told(beside)
            (peermem,) = beside.set.read()
            fit = peers.check(
                peermem,
                wish.target,
                built_config=beside.set.manifest.config_digest,
                signatures_enforced=wish.trust.enforced,
                signed={**wish.trust.signed(obtained.set), **wish.trust.signed(beside.set)},
            )
            if fit.fit == UNFIT:
                raise unfit(fit, wish.target)
            return Driver(obtained.set, beside.set, mofed.modules)

    def _wants_peermem(self) -> bool:
        if not self.config.rdma:
            return False
        present = mellanox_present(self.mofed.host)
        if not present:
            _log.info("no Mellanox device: nvidia-peermem is not wanted here")
        return present

    def _trust(self, identity: Identity) -> KernelTrust:
        """What the kernel makes of signatures; told, where it asks for none, if it does not trust ours."""
        trust = kernel_trust(self.mofed.host, self.commands)
        if identity.certificate and not trust.enforced and trust.holds(identity.certificate) is False:
            _log.warning(
                "this kernel does not trust the certificate that modules are signed by: it asks for no "
                "signatures, takes them and is tainted",
                certificate=who(identity.certificate),
                hint=ENROLL,
            )
        return trust

    def _wish(self, source: Source, kernel: Kernel) -> Wish:
        config = self.config
        identity = read_identity(config.sign_key, config.sign_cert, config.sign_pin_file)
        return Wish(
            source=source,
            target=kernel.target,
            headers=kernel.headers,
            proof=f"{kernel.proof.by}: {kernel.proof.detail}",
            modules=modules_to_build(source),
            jobs=self.config.jobs,
            job_memory=self.config.job_memory,
            allow_compiler_mismatch=self.config.compiler_mismatch,
            trust=self._trust(identity),
            certificate=identity.certificate,
            signer=identity.signer,
            signers=trust(self.config).certificates,
            reuse=self.config.reuse,
        )

    def _elsewhere(self, kernel: Kernel, store: Store, report: Reporter) -> Optional[Elsewhere]:
        if self.config.image_missing:
            return self._no_toolkit
        if self.sidecar is None:
            return None
        sidecar = self.sidecar

        def build(wish: Wish, recipe: Recipe, progress: Optional[Progress]) -> Path:
            with sidecar.headers(recipe.kernel_release) as headers:
                proof = prove(headers, target_from_headers(headers), kernel.running, kernel.tree)
            _log.info("the toolkit's headers are the running kernel's", proof=proof.by, why=proof.detail)
            order = Order(
                recipe,
                f"{proof.by}: {proof.detail}",
                wish.jobs,
                wish.job_memory,
                wish.allow_compiler_mismatch,
                wish.symvers,
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


def _leave_out(error: NoSigningKey, report: Reporter) -> None:
    """Say that the driver comes up without nvidia-peermem: a node that cannot sign it keeps its GPUs."""
    left_out = NoSigningKey(
        f"{PEERMEM} is left out, there is no GPUDirect RDMA on this node: {error.message}",
        hint=f"{PEERMEM} is built and signed on the node, against its MOFED: give it NVDRIVER_SIGN_KEY and "
        "NVDRIVER_SIGN_CERT; or set GPU_DIRECT_RDMA_ENABLED=false",
    )
    _log.warning(left_out.message, hint=left_out.hint)
    report.tell(peermem_error=left_out.document())


def _told_only(act: Callable[[], None]) -> None:
    """A shared folder that takes nothing ends nobody who has a set: who needs it will be told."""
    try:
        act()
    except ToolkitError as error:
        _log.warning("the container beside cannot be told", reason=error.message)


def _told(obtained: Obtained) -> None:
    modules = ", ".join(obtained.set.manifest.recipe.modules)
    _log.info(
        "a set that fits",
        modules=modules,
        key=obtained.set.key[:12],
        fit=obtained.fit.fit,
        origin=obtained.origin,
    )
    provenance = obtained.set.manifest.provenance
    if "IGNORE_CC_MISMATCH=1" in provenance.make_flags:
        _log.warning("it was built by another compiler than its kernel was", compiler=provenance.compiler)


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
        publish(place, read_plain(log, _LOG_LIMIT), durable=False)
