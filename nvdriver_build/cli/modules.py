"""`build`, `verify` and `inspect`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Optional

import attrs
import click

from nvdriver_build.cli import emit, say
from nvdriver_build.cli.logs import log_options
from nvdriver_build.commands import SystemCommands
from nvdriver_build.config import host_modules, read_config
from nvdriver_build.elf import ModuleFacts, read_module
from nvdriver_build.errors import UsageError
from nvdriver_build.fit import UNFIT, Fit, check_fit
from nvdriver_build.kernel import KernelTarget, find_headers, target_from_headers
from nvdriver_build.loader.host import Host
from nvdriver_build.node.look import kernel_trust, look
from nvdriver_build.sets import MANIFEST, ModuleSet, facts_document, open_set
from nvdriver_build.signing import NOT_KNOWN

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("paths", nargs=-1, required=True, type=_PATH)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
@log_options
def inspect(paths: tuple[Path, ...], as_json: bool) -> None:
    """What the ELF of PATHS says: module files, or folders of them."""
    modules = [read_module(path) for path in _module_files(paths)]
    if as_json:
        emit({"modules": [facts_document(module) for module in modules]})
        return
    for module in modules:
        _print_module(module)


def _print_module(module: ModuleFacts) -> None:
    say(module.path)
    signer = module.signature.signer if module.signature else None
    for name, value in (
        ("name", module.name),
        ("version", module.version),
        ("vermagic", module.vermagic),
        ("license", module.license),
        ("depends", ", ".join(module.depends)),
        ("symbols", f"{len(module.needed)} needed, {len(module.exports)} exported"),
        ("build id", module.build_id),
        ("signed", f"by {signer}" if module.signature else "no"),
        ("sha256", module.sha256),
    ):
        say(f"  {name + ':':<10} {value if value is not None else '-'}")


@click.command()
@click.argument("paths", nargs=-1, required=True, type=_PATH)
@click.option("--headers", type=_PATH, help="Kernel headers: a build tree, a Debian pair, or a DTK root.")
@click.option("--kernel-release", help="The kernel of the headers that is meant, where there are several.")
@click.option("--running", is_flag=True, help="Compare with the kernel that runs here.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
@log_options
def verify(
    paths: tuple[Path, ...],
    headers: Optional[Path],
    kernel_release: Optional[str],
    running: bool,
    as_json: bool,
) -> None:
    """Do PATHS (module files, or a set's folder) fit that kernel? Exit 13 if not."""
    if (headers is None) != running:
        raise UsageError("one kernel to compare with is needed", hint="give either --headers H or --running")
    if running and kernel_release is not None:
        raise UsageError(
            "--kernel-release chooses among headers", hint="give --headers H instead of --running"
        )
    target = (
        _running_target() if headers is None else target_from_headers(find_headers(headers, kernel_release))
    )
    modules = [read_module(path, digest=False) for path in _module_files(paths)]
    described = _described(paths)
    trust = kernel_trust(Host(), SystemCommands(read_config().path)) if running else NOT_KNOWN
    fit = check_fit(
        modules,
        target,
        built_config=described.manifest.config_digest if described else None,
        signatures_enforced=trust.enforced,
        signed=trust.signed(described) if described else None,
    )
    if as_json:
        emit(fit_document(fit, target))
    else:
        _print_fit(fit, target)
    if fit.fit == UNFIT:
        raise click.exceptions.Exit(13)


def _running_target() -> KernelTarget:
    """The kernel that runs, from what is proven to describe it."""
    return look(read_config(), Host(lib_modules=host_modules()), os.uname().machine).target


def _module_files(paths: tuple[Path, ...]) -> list[Path]:
    files = []
    for path in paths:
        found = sorted(path.glob("*.ko*")) if path.is_dir() else [path]
        if not found:
            raise UsageError(
                f"{path} has no modules (*.ko, *.ko.xz, *.ko.gz, *.ko.zst)", hint="name files or a set"
            )
        files.extend(found)
    return files


def _described(paths: tuple[Path, ...]) -> Optional[ModuleSet]:
    """A set's manifest says with which configuration it was built, and who signed it; files alone do not."""
    if len(paths) == 1 and (paths[0] / MANIFEST).is_file():
        return open_set(paths[0], check=False)
    return None


def fit_document(fit: Fit, target: KernelTarget) -> dict[str, Any]:
    """The document of `verify` (docs/contracts.md)."""
    return {
        "target": {
            "release": target.release,
            "arch": target.arch,
            "flavour": target.flavour,
            "vermagic": target.vermagic,
        },
        "fit": fit.fit,
        "modules": [attrs.asdict(module) for module in fit.modules],
    }


def _print_fit(fit: Fit, target: KernelTarget) -> None:
    for module in fit.modules:
        say(f"{module.name:<18} {module.fit}")
        for finding in module.findings:
            say(f"  {finding.code}: {finding.message}")
    proven = f"{fit.crcs_proven} CRCs compared" if target.modversions else "no modversions: no CRC was proven"
    say(f"{fit.fit} for {target.release} ({proven})")
