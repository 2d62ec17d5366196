"""Does a set fit? If not, the error that says so."""

from __future__ import annotations

from nvdriver_build.errors import FitError, NvdriverError, SigningError
from nvdriver_build.fit import UNFIT, Fit, check_fit
from nvdriver_build.kernel import KernelTarget
from nvdriver_build.sets import ModuleSet
from nvdriver_build.signing import KernelTrust

UNENFORCED = (
    "sign them, after their last change, with a key that the kernel trusts: NVDRIVER_SIGN_KEY and "
    "NVDRIVER_SIGN_CERT, a certificate enrolled by `mokutil --import` or in the firmware's db; or "
    "switch the enforcement off (module.sig_enforce, Secure Boot, lockdown)"
)


def require_fit(module_set: ModuleSet, target: KernelTarget, trust: KernelTrust) -> Fit:
    """`check_fit` of what is on disk now; FitError that names the findings where it does not fit.

    SigningError where only the signatures are not as the kernel that `trust` is of takes them.
    """
    fit = check_fit(
        module_set.read(),
        target,
        built_config=module_set.manifest.config_digest,
        signatures_enforced=trust.enforced,
        signed=trust.signed(module_set),
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
