"""What the kernel has against a signature, by what is known of it."""

from __future__ import annotations

from typing import Mapping, Optional

import pytest
from facts import SIGNATURE, driver, kernel

from nvdriver_build.fit import Signed, check_fit

CONFIG = {"MODULE_SIG": "y", "CRYPTO_SHA256": "y"}
OTHER_HASH = {"MODULE_SIG": "y", "CRYPTO_SHA512": "y"}
GOOD = Signed(genuine=True, trusted=True, signer="CN", meant=True)
NOT_TRUSTED = Signed(genuine=True, trusted=False, signer="CN", meant=True)
CHANGED = Signed(genuine=False, trusted=True, signer="CN", meant=True)
BOTH = Signed(genuine=False, trusted=False, signer="CN", meant=True)
NOT_KNOWN = Signed(genuine=None, trusted=None, signer="CN", meant=True)


def said(
    signed: Signed, enforced: Optional[bool], config: Mapping[str, str] = CONFIG, *, signature: bool = True
) -> str:
    module = driver(signature=SIGNATURE if signature else None)
    fit = check_fit(
        [module], kernel(config=config), signatures_enforced=enforced, signed={module.name: signed}
    )
    assert {finding.code for _, finding in fit.findings} <= {"signature"}
    return "; ".join(finding.message for _, finding in fit.findings)


@pytest.mark.parametrize(("signed", "enforced", "idle"), [
    (GOOD, "", ""),
    (NOT_TRUSTED, "is signed by CN, which this kernel does not trust", ""),
    (CHANGED, "not of these bytes by CN", "not of these bytes by CN"),
    (BOTH, "does not trust", "not of these bytes by CN"),
    (NOT_KNOWN, "", ""),
])  # fmt: skip
def test_signed(signed: Signed, enforced: str, idle: str) -> None:
    """An unknown key counts where signatures are enforced, changed bytes everywhere, the unknown never."""
    for told, wanted in ((True, enforced), (False, idle)):
        found = said(signed, told)
        assert wanted in found if wanted else found == ""


def test_unsigned() -> None:
    """A signature that was there once is told as lost."""
    assert "is not signed, and" in said(Signed(), True, signature=False)
    assert "stripped after signing" in said(GOOD, True, signature=False)
    assert said(GOOD, False, signature=False) == ""


def test_digests() -> None:
    """A digest that the kernel was built without is told; of a kernel without a configuration nothing is."""
    assert "over a sha256 digest, which this kernel does not have" in said(GOOD, True, OTHER_HASH)
    assert said(GOOD, False, OTHER_HASH) == ""
    assert said(GOOD, True, {}) == ""


def test_its_configuration_counts_only_where_the_kernel_does_not_run() -> None:
    """MODULE_SIG_FORCE enforces; what the running kernel says outweighs it."""
    force = {**CONFIG, "MODULE_SIG_FORCE": "y"}
    assert said(NOT_TRUSTED, None, force) != ""
    assert said(NOT_TRUSTED, False, force) == said(NOT_TRUSTED, None) == ""
