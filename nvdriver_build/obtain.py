"""Where modules come from, in order: the local store, a build here. (What is loaded already stays: `node`.)

Every way ends in the same `check_fit` against the kernel, and none falls back to package repositories.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Iterator, Optional, Sequence

import structlog
from attrs import frozen

from nvdriver_build import __version__
from nvdriver_build.build import JOB_MEMORY, Build, Progress, build_modules, copy_modules, make_flags, measure
from nvdriver_build.commands import Commands
from nvdriver_build.errors import (
    BuildError,
    FitError,
    HeadersError,
    NvdriverError,
    SigningError,
    SourceError,
    UsageError,
)
from nvdriver_build.files import private_folder
from nvdriver_build.fit import UNFIT, Fit, check_fit
from nvdriver_build.kernel import Headers, KernelTarget, find_compiler
from nvdriver_build.sets import ModuleSet, Provenance, Recipe, describe
from nvdriver_build.source import MODULES, Source, open_source
from nvdriver_build.store import Store

PEERMEM = "nvidia-peermem"
"""Real only against MOFED's symvers, else a stub whose init fails (docs/architecture.md): not built."""
UNENFORCED = (
    "sign them with a key that the kernel trusts, or switch the enforcement off "
    "(module.sig_enforce, Secure Boot, lockdown)"
)
_WAIT_FOR_OTHER = 3600.0
_log = structlog.get_logger()


@frozen
class Wish:
    """Which modules are wanted, and what may be used to get them. `headers` is None where none are there."""

    source: Source
    target: KernelTarget
    headers: Optional[Headers]
    proof: str
    modules: tuple[str, ...]
    jobs: Optional[int] = None
    job_memory: int = JOB_MEMORY
    debug_info: bool = False
    allow_compiler_mismatch: bool = False
    signatures_enforced: bool = False

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
            f"{PEERMEM} is not built: without MOFED's Module.symvers it is a stub whose init fails",
            hint="leave it out; building against MOFED is on the way",
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


def obtain(
    wish: Wish,
    store: Store,
    commands: Commands,
    *,
    progress: Optional[Progress] = None,
) -> Obtained:
    """Get a set that fits the target; raise what the last way that could serve raises.

    FitError, with every finding, where a set does not fit; HeadersError where something would have to
    be built and nothing to build with is there.
    """
    recipe = wish.recipe()
    found = _find(wish, recipe, store)
    if found is not None:
        return found
    _log.info("not in the store", key=recipe.key[:12], why=store.explain_miss(recipe))
    with store.building(recipe.key, _WAIT_FOR_OTHER, commands.check):
        return _find(wish, recipe, store) or _build(wish, recipe, store, commands, progress)


def _find(wish: Wish, recipe: Recipe, store: Store) -> Optional[Obtained]:
    found = store.find(recipe)
    if found is None:
        return None
    return Obtained(found, require_fit(found, wish.target, wish.signatures_enforced), "store")


def _build(
    wish: Wish, recipe: Recipe, store: Store, commands: Commands, progress: Optional[Progress]
) -> Obtained:
    if wish.signatures_enforced:
        raise SigningError(
            f"kernel {recipe.kernel_release} takes signed modules only, and what is built here is not signed",
            hint=UNENFORCED,
        )
    if wish.headers is None:
        raise HeadersError(
            f"no set for driver {recipe.driver_version} on {recipe.kernel_release} in {store.root}, "
            "and no kernel headers here to build one",
            hint="run in the Driver Toolkit of this kernel, or put a set into the store",
        )
    compiler = find_compiler(wish.target, commands, allow_mismatch=wish.allow_compiler_mismatch)
    jobs = wish.jobs or measure().jobs(wish.job_memory)
    build = Build(wish.source, wish.headers, wish.target, compiler, wish.modules, jobs, wish.debug_info)
    _log.info(
        "building",
        driver=recipe.driver_version,
        kernel=recipe.kernel_release,
        jobs=jobs,
        compiler=compiler.text,
    )
    with store.workspace() as work, _build_folder(work) as folder:
        modules = build_modules(build, folder, commands, store.log(recipe.key), progress)
        place = work / "set"
        copy_modules(modules, place)
        made = describe(
            place,
            recipe,
            _provenance(build, wish),
            flavour=wish.target.flavour,
            vermagic=wish.target.vermagic,
            config_digest=wish.target.config_digest,
        )
        fit = require_fit(made, wish.target, wish.signatures_enforced)
        return Obtained(store.add(place, recipe.key), fit, "built", jobs)


@contextlib.contextmanager
def _build_folder(work: Path) -> Iterator[Path]:
    """Where to build: in `work`, but for a store of the host's, by /proc/1/root.

    make would take the path of its current folder from the host's root, and that is another place here.
    """
    if not work.is_relative_to("/proc"):
        yield work
        return
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(private_folder(Path(tempfile.gettempdir())))
        except OSError as error:
            raise BuildError(
                f"there is no folder to build in: {error}", hint="mount a volume at /tmp"
            ) from error
        yield folder


def _provenance(build: Build, wish: Wish) -> Provenance:
    return Provenance(
        tool=__version__,
        compiler=build.compiler.text,
        make_flags=make_flags(build, Path("TREE")),
        proof=wish.proof,
    )


def require_fit(module_set: ModuleSet, target: KernelTarget, signatures_enforced: bool) -> Fit:
    """`check_fit` of what is on disk now; FitError that names the findings where it does not fit."""
    fit = check_fit(
        module_set.read(),
        target,
        built_config=module_set.manifest.config_digest,
        signatures_enforced=signatures_enforced,
    )
    if fit.fit == UNFIT:
        raise unfit(fit, target)
    return fit


def unfit(fit: Fit, target: KernelTarget) -> NvdriverError:
    """The error for a set that does not fit: the first findings and how many there are.

    SigningError where signatures are all that lacks, FitError else.
    """
    findings = fit.findings
    if all(finding.code == "signature" for _, finding in findings):
        name, finding = findings[0]
        others = f"; nor are {len(findings) - 1} others" if len(findings) > 1 else ""
        return SigningError(
            f"{name} {finding.message}{others}",
            hint=UNENFORCED,
        )
    shown = "; ".join(f"{name} {finding.message}" for name, finding in findings[:3])
    more = f"; and {len(findings) - 3} more" if len(findings) > 3 else ""
    return FitError(
        f"the modules do not fit kernel {target.release}: {shown}{more}",
        hint="build them against the headers of this kernel; 'nvdriver-build verify' lists every finding",
    )
