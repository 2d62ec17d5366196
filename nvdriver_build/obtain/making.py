"""A build here."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Iterator, Optional, Sequence

import structlog

from nvdriver_build import __version__
from nvdriver_build.build import Build, Progress, build_modules, copy_modules, make_flags, measure
from nvdriver_build.commands import Commands
from nvdriver_build.errors import BuildError, HeadersError
from nvdriver_build.files import private_folder, sha256_file
from nvdriver_build.kernel import Headers, find_compiler
from nvdriver_build.obtain.fitting import require_fit
from nvdriver_build.obtain.wish import Obtained, Wish
from nvdriver_build.sets import Provenance, Recipe, describe
from nvdriver_build.store import Store

_log = structlog.get_logger()


def build(
    wish: Wish, recipe: Recipe, store: Store, commands: Commands, progress: Optional[Progress]
) -> Obtained:
    if wish.headers is None:
        raise HeadersError(
            f"no set for driver {recipe.driver_version} on {recipe.kernel_release} in {store.root}, "
            "and no kernel headers here to build one",
            hint="run in the Driver Toolkit of this kernel, or put a set into the store",
        )
    compiler = find_compiler(wish.target, commands, allow_mismatch=wish.allow_compiler_mismatch)
    jobs = wish.jobs or measure().jobs(wish.job_memory)
    build = Build(
        wish.source, wish.headers, wish.target, compiler, wish.modules, jobs, wish.debug_info, wish.symvers
    )
    _log.info(
        "building",
        driver=recipe.driver_version,
        kernel=recipe.kernel_release,
        jobs=jobs,
        compiler=compiler.text,
    )
    kernel = _kernel_files(wish.headers)
    with store.workspace() as work, _build_folder(work) as folder:
        modules = build_modules(
            build, folder, commands, store.log(recipe.key), progress, store.kept(recipe.key)
        )
        if wish.source.digest != recipe.source_digest or _kernel_files(wish.headers) != kernel:
            raise BuildError(
                f"{wish.source.root}, or the headers at {wish.headers.output}, changed during the build",
                hint="build again, once nobody writes there",
            )
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
        fit = require_fit(made, wish.target, wish.trust)
        return Obtained(store.add(place, recipe.key), fit, "built", jobs)


def _kernel_files(headers: Headers) -> Sequence[str]:
    """What the key says of the kernel: a package may replace it within the minutes of a build."""
    try:
        return [sha256_file(headers.output / name) for name in ("Module.symvers", ".config")]
    except OSError as error:
        raise HeadersError(f"the headers cannot be read: {error}", hint="install them again") from error


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
