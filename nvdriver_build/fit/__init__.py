"""`check_fit`: does a set of modules fit a kernel? Pure: facts in, answer out.

    providers   who exports what a module needs, and who is proprietary
    rules       the kernel's reasons against a module
    signatures  those against its signature

The rules are those of the kernel's loader, and stricter where docs/contracts.md says so.
"""

from __future__ import annotations

from typing import Mapping, Optional, Sequence

from attrs import frozen

from nvdriver_build.elf import ModuleFacts
from nvdriver_build.fit.providers import find_providers, find_tainted
from nvdriver_build.fit.rules import Finding, Surroundings, find
from nvdriver_build.fit.signatures import Signed
from nvdriver_build.kernel import KernelTarget

__all__ = ["COMPATIBLE", "EXACT", "UNFIT", "Finding", "Fit", "ModuleFit", "Signed", "check_fit"]

EXACT, COMPATIBLE, UNFIT = "exact", "compatible", "unfit"


@frozen
class ModuleFit:
    """The verdict on one module."""

    name: str
    fit: str
    findings: tuple[Finding, ...]


@frozen
class Fit:
    """The verdict on a set: that of its worst module. `crcs_proven` is how many CRCs were compared."""

    fit: str
    modules: tuple[ModuleFit, ...]
    crcs_proven: int

    @property
    def findings(self) -> tuple[tuple[str, Finding], ...]:
        """Every finding with its module's name."""
        return tuple((module.name, finding) for module in self.modules for finding in module.findings)


def check_fit(
    modules: Sequence[ModuleFacts],
    target: KernelTarget,
    *,
    built_config: Optional[str] = None,
    signatures_enforced: Optional[bool] = None,
    signed: Optional[Mapping[str, Signed]] = None,
) -> Fit:
    """Whether `modules`, taken together, fit `target`.

    `built_config` is the digest of the configuration that the set was built with (KernelTarget.config_digest
    of its own kernel), needed for `compatible`. With `signatures_enforced` an unsigned module does not fit,
    nor one whose certificate the kernel does not trust; None: as its configuration says. `signed` is what is
    known of signatures, by module.
    """
    providers = [find_providers(module, target, modules) for module in modules]
    tainted = find_tainted(modules, providers)
    forced = target.config.get("MODULE_SIG_FORCE") == "y"
    enforced = forced if signatures_enforced is None else signatures_enforced
    verdicts = []
    for number, (module, mine) in enumerate(zip(modules, providers)):
        around = Surroundings(
            target, modules, modules[:number], mine, tainted, built_config, enforced, signed or {}
        )
        findings = tuple(find(module, around))
        verdicts.append(ModuleFit(module.name, _grade(module, target, findings), findings))
    grades = {verdict.fit for verdict in verdicts}
    worst = next((grade for grade in (UNFIT, COMPATIBLE, EXACT) if grade in grades), UNFIT)
    proven = sum(len(module.needed) for module in modules) if target.modversions else 0
    return Fit(worst, tuple(verdicts), proven)


def _grade(module: ModuleFacts, target: KernelTarget, findings: Sequence[Finding]) -> str:
    if findings:
        return UNFIT
    return EXACT if module.vermagic == target.vermagic else COMPATIBLE
