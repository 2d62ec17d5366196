"""What is wanted, and what came of it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Callable, Iterator, Optional, Sequence

from attrs import evolve, frozen

from nvdriver_build.build import JOB_MEMORY, Progress
from nvdriver_build.commands import Commands
from nvdriver_build.errors import SourceError, UsageError
from nvdriver_build.fit import Fit
from nvdriver_build.kernel import Headers, KernelTarget, parse_symvers
from nvdriver_build.mofed import PEERMEM, with_exports
from nvdriver_build.sets import ModuleSet, Recipe
from nvdriver_build.signing import NOT_KNOWN, Certificate, KernelTrust, Signer
from nvdriver_build.source import MODULES, Source, open_source
from nvdriver_build.store import Store


@frozen
class Wish:
    """Which modules are wanted, and what may be used to get them. `headers` is None where none are there.

    With `reuse` a set of another kernel will do that is proven to fit. Where there is a `certificate`,
    modules are wanted that it signed; `signer` can do that. `trust` is of the kernel that will load them.
    `symvers` is what other modules than the kernel's export, as text of Module.symvers, `target` has it, too.
    Without a `certificate` modules that one of `signers` signed do as well.
    """

    source: Source
    target: KernelTarget
    headers: Optional[Headers]
    proof: str
    modules: tuple[str, ...]
    jobs: Optional[int] = None
    job_memory: int = JOB_MEMORY
    debug_info: bool = False
    allow_compiler_mismatch: bool = False
    trust: KernelTrust = NOT_KNOWN
    reuse: bool = False
    symvers: Optional[str] = None
    mofed_sha256: Optional[str] = None
    certificate: Optional[Certificate] = None
    signer: Optional[Signer] = None
    signers: tuple[Certificate, ...] = ()

    def recipe(self) -> Recipe:
        """The recipe whose key the set will have."""
        return Recipe(
            driver_version=self.source.version,
            source_digest=self.source.digest,
            kind=self.source.kind,
            modules=self.modules,
            kernel_release=self.target.release,
            arch=self.target.arch,
            symvers_sha256=self.target.symvers_sha256,
            config_sha256=self.target.config_sha256,
            debug_info=self.debug_info,
            mofed_symvers_sha256=self.mofed_sha256,
            certificate=self.certificate.fingerprint if self.certificate else None,
        )

    def serving(self, recipe: Recipe) -> tuple[Recipe, ...]:
        """The recipes of sets that will do where `recipe` is wanted.

        A signature harms no kernel that asks for none; one that asks takes nothing else.
        """
        if recipe.certificate is not None:
            return (recipe,)
        signed = tuple(evolve(recipe, certificate=each.fingerprint) for each in self.signers)
        return signed if signed and self.enforced else (recipe, *signed)

    @property
    def enforced(self) -> bool:
        """Whether the kernel takes signed modules only: by its own word, else by its configuration."""
        told = self.trust.enforced
        return self.target.config.get("MODULE_SIG_FORCE") == "y" if told is None else told

    def unsigned(self) -> Wish:
        """The wish for what is signed then: whether a kernel would take it as it is does not matter."""
        return evolve(self, certificate=None, signer=None, signers=(), trust=KernelTrust(enforced=False))

    def peermem(self, symvers: str, mofed_sha256: Optional[str]) -> Wish:
        """The wish for nvidia-peermem, a set of its own, between MOFED and nvidia, which export `symvers`.

        It is real only against these, else a stub whose init fails. HeadersError where the text is damaged.
        """
        others = parse_symvers(symvers.encode(), "what MOFED and nvidia export")
        return evolve(
            self,
            modules=(PEERMEM,),
            target=with_exports(self.target, others),
            symvers=symvers,
            mofed_sha256=mofed_sha256,
        )


@frozen
class Obtained:
    """A set that fits, and where it came from: `store` or `built`. `jobs` is None unless built."""

    set: ModuleSet
    fit: Fit
    origin: str
    jobs: Optional[int] = None


def modules_to_build(source: Source, asked: Sequence[str] = ()) -> tuple[str, ...]:
    """The modules that were asked for, in load order; without a wish all but nvidia-peermem.

    Raises SourceError for one that the source does not have, UsageError for nvidia-peermem.
    """
    if PEERMEM in asked:
        raise UsageError(
            f"{PEERMEM} is not built with the others: without MOFED's exports it is a stub whose init fails",
            hint="leave it out; `run` builds it with GPU_DIRECT_RDMA_ENABLED=true, once MOFED is there",
        )
    there = source.modules
    unknown = [name for name in asked if name not in there]
    if unknown:
        raise SourceError(
            f"driver {source.version} has no module {', '.join(unknown)}; it has {', '.join(there)}",
            hint="name modules as NVIDIA does, such as nvidia-uvm",
        )
    wanted = asked or [name for name in there if name != PEERMEM]
    return tuple(name for name in MODULES if name in wanted)


@contextlib.contextmanager
def opened_source(
    place: Path, kind: str, store: Store, commands: Commands, run_sha256: Optional[str]
) -> Iterator[Source]:
    """The kernel tree at `place`; one that has to be unpacked is in the store's workspace meanwhile."""
    if place.is_dir():
        yield open_source(place.absolute(), kind, place, commands)
        return
    with store.workspace() as work:
        yield open_source(place.absolute(), kind, work, commands, run_sha256=run_sha256)


Elsewhere = Callable[[Wish, Recipe, Optional[Progress]], Path]
"""Has a set built somewhere else; the folder that it is in then."""
