"""Each rule of `check_fit`, by hand."""

from __future__ import annotations

from typing import Any, Optional

import pytest
from attrs import evolve
from facts import LAYOUT, RELEASE, REST, SIGNATURE, VERMAGIC, driver, export, kernel, symbol

from nvdriver_build.elf import ModuleFacts
from nvdriver_build.fit import COMPATIBLE, EXACT, UNFIT, Finding, check_fit
from nvdriver_build.kernel import KernelTarget

KERNEL = kernel(
    {
        "printk": symbol(1),
        "gpl": symbol(2, gpl=True),
        "dma_buf_get": symbol(3, gpl=True, space="DMA_BUF"),
        "drm_open": symbol(4, "drivers/gpu/drm/drm"),
        "for_us": symbol(5, space="module:nvidia,kvm-*"),
    }
)


def findings(*modules: ModuleFacts, target: KernelTarget = KERNEL, **more: Any) -> list[Finding]:
    """What `check_fit` finds in a set; whether it fits has to agree with it."""
    fit = check_fit(modules, target, **more)
    assert (fit.fit == UNFIT) == bool(fit.findings)
    assert [module.name for module in fit.modules] == [module.name for module in modules]
    return [finding for _, finding in fit.findings]


def codes(*modules: ModuleFacts, target: KernelTarget = KERNEL, **more: Any) -> list[str]:
    return [finding.code for finding in findings(*modules, target=target, **more)]


def test_exact() -> None:
    """A module whose vermagic and CRCs are the kernel's fits exactly, and the CRCs are counted."""
    fit = check_fit([driver(needed={"printk": 1, "gpl": 2})], KERNEL)
    assert (fit.fit, fit.crcs_proven, fit.findings) == (EXACT, 3, ())


def test_nothing_does_not_fit() -> None:
    """No module at all is no set that fits."""
    assert check_fit([], KERNEL).fit == UNFIT


def test_crc() -> None:
    """A CRC that differs is told with the symbol and both values."""
    assert findings(driver(needed={"printk": 0xBAD})) == [
        Finding(
            "crc",
            "needs printk with CRC 0x00000bad, there is 0x00000001",
            symbol="printk",
            wanted="0x00000bad",
            found="0x00000001",
        )
    ]


def test_crc_of_module_layout() -> None:
    """module_layout stands for struct module; another CRC of it is another kernel."""
    assert codes(driver(versions={"module_layout": LAYOUT ^ 1})) == ["crc"]


def test_crc_is_compared_whole() -> None:
    """A CRC of 64 bits whose low half is right is wrong (kernel: versions[i].crc is an unsigned long)."""
    assert codes(driver(needed={"printk": (1 << 32) + 1})) == ["crc"]


def test_missing_symbol() -> None:
    """A symbol that nothing exports is missing; a weak one may be."""
    assert findings(driver(needed={"gone": 1})) == [
        Finding("missing-symbol", "needs gone, which nothing exports", symbol="gone")
    ]
    assert codes(driver(weak=["gone"])) == []


def test_weak_symbol_that_is_there() -> None:
    """A weak symbol that is exported is resolved, so its CRC counts."""
    assert codes(driver(needed={"printk": 1}, weak=["printk"])) == []
    assert codes(driver(needed={"printk": 9}, weak=["printk"])) == ["crc"]


def test_unversioned() -> None:
    """A symbol without a CRC is refused; the kernel takes it with a warning."""
    assert findings(driver(unversioned=["printk"])) == [
        Finding("unversioned", "needs printk without saying which version", symbol="printk")
    ]


def test_no_versions_at_all() -> None:
    """A module without __versions is refused for module_layout too, as the kernel does without -f."""
    assert codes(driver(versions={})) == ["unversioned"]


def test_kernel_without_modversions() -> None:
    """Such a kernel asks for no CRC, and none is counted."""
    plain = kernel(
        {"printk": symbol(0), "module_layout": symbol(0)}, {"MODVERSIONS": "n"}, rest="SMP mod_unload "
    )
    module = driver(versions={}, unversioned=["printk"], vermagic=f"{RELEASE} SMP mod_unload ")
    fit = check_fit([module], plain)
    assert (fit.fit, fit.crcs_proven) == (EXACT, 0)


def test_two_builds_of_one_release_without_modversions() -> None:
    """No CRC tells them apart: the configuration has to be the one that the set was built with."""
    plain = kernel(
        {"printk": symbol(0), "module_layout": symbol(0)}, {"MODVERSIONS": "n"}, rest="SMP mod_unload "
    )
    module = driver(versions={}, unversioned=["printk"], vermagic=f"{RELEASE} SMP mod_unload ")
    assert check_fit([module], plain, built_config=plain.config_digest).fit == EXACT
    fit = check_fit([module], plain, built_config="0" * 64)
    assert (fit.fit, [finding.code for _, finding in fit.findings]) == (UNFIT, ["config"])
    assert check_fit([driver()], KERNEL, built_config="0" * 64).fit == EXACT, "CRCs tell, here"


def test_export_without_crc() -> None:
    """A module that exports a symbol without a CRC is refused, as the kernel does without -f."""
    assert findings(driver(exports={"nv": export(None)})) == [
        Finding("unversioned", "exports nv without saying which version", symbol="nv")
    ]


@pytest.mark.parametrize(
    "vermagic",
    [
        "6.1.0-9-amd64 SMP mod_unload modversions ",  # not preempt
        "6.1.0-9-amd64 SMP preempt mod_unload modversions",  # no blank at its end
        "6.1.0-9-amd64",
        "6.1.0-10-amd64 SMP preempt_rt mod_unload modversions ",
        "6.1.0-10-amd64 SMP preempt mod_unload ",
    ],
)
def test_vermagic(vermagic: str) -> None:
    """Another vermagic does not fit, whatever the configuration; both are told."""
    wanted = Finding(
        "vermagic", f"has vermagic {vermagic!r}, the kernel asks for {VERMAGIC!r}", None, VERMAGIC, vermagic
    )
    assert findings(driver(vermagic=vermagic), built_config=KERNEL.config_digest) == [wanted]


def test_compatible() -> None:
    """Another release with the same rest, all CRCs and the same configuration is compatible."""
    other = driver(needed={"printk": 1}, vermagic=f"6.1.0-10-amd64 {REST}")
    fit = check_fit([other, driver("nvidia_uvm")], KERNEL, built_config=KERNEL.config_digest)
    assert [module.fit for module in fit.modules] == [COMPATIBLE, EXACT]
    assert fit.fit == COMPATIBLE


def test_compatible_needs_versions_of_the_older_form() -> None:
    """Without a section __versions the kernel compares the release, too (has_crcs of same_magic is that)."""
    module = evolve(driver(vermagic=f"6.1.0-10-amd64 {REST}"), has_versions=False)
    fit = check_fit([module], KERNEL, built_config=KERNEL.config_digest)
    assert (fit.fit, [finding.code for _, finding in fit.findings]) == (UNFIT, ["vermagic"])
    assert check_fit([evolve(module, modinfo=driver().modinfo)], KERNEL).fit == EXACT


def test_compatible_needs_a_known_configuration() -> None:
    """What was built with an unknown configuration fits its own release only."""
    [finding] = findings(driver(vermagic=f"6.1.0-10-amd64 {REST}"))
    assert finding.code == "vermagic"
    assert finding.message == "is of kernel 6.1.0-10-amd64, built with an unknown configuration"


def test_compatible_needs_the_same_configuration() -> None:
    """CRCs do not see inlines and macros: with another configuration nothing is compatible."""
    [finding] = findings(driver(vermagic=f"6.1.0-10-amd64 {REST}"), built_config="0" * 64)
    assert (finding.code, finding.wanted, finding.found) == ("config", KERNEL.config_digest, "0" * 64)
    assert "6.1.0-10-amd64 with another configuration than 6.1.0-9-amd64 has" in finding.message


def test_compatible_needs_modversions() -> None:
    """Without modversions only exact exists."""
    rest = "SMP mod_unload "
    plain = kernel({}, {"MODVERSIONS": "n"}, rest=rest)
    module = driver(versions={}, vermagic=f"6.1.0-10-amd64 {rest}")
    assert codes(module, target=plain, built_config=plain.config_digest) == ["vermagic"]


def test_format() -> None:
    """A module without vermagic is none that is finished."""
    assert codes(driver(vermagic=None)) == ["format"]


@pytest.mark.parametrize("setting", ["y", "n"])
def test_btf_of_another_kernel(setting: str) -> None:
    """Type information of another kernel is refused where the kernel reads it; that of its own is fine."""
    reader = kernel(config={"DEBUG_INFO_BTF_MODULES": setting, "MODULE_ALLOW_BTF_MISMATCH": "y"})
    other = driver(vermagic=f"6.1.0-10-amd64 {REST}", btf=True)
    expected = ["format"] if setting == "y" else []
    assert codes(other, target=reader, built_config=reader.config_digest) == expected
    assert codes(driver(btf=True), target=reader) == []


@pytest.mark.parametrize(
    ("machine", "bits", "byteorder", "found"),
    [
        ("arm64", 64, "little", "arm64, 64 bit, little endian"),
        ("x86_64", 32, "little", "x86_64, 32 bit, little endian"),
        ("x86_64", 64, "big", "x86_64, 64 bit, big endian"),
    ],
)
def test_architecture(machine: str, bits: int, byteorder: str, found: str) -> None:
    """Another machine, word size or byte order does not fit."""
    [finding] = findings(driver(machine=machine, bits=bits, byteorder=byteorder))
    assert (finding.code, finding.wanted, finding.found) == (
        "architecture", "x86_64, 64 bit, little endian", found,
    )  # fmt: skip


def test_namespace() -> None:
    """A symbol of a namespace needs its import."""
    assert codes(driver(needed={"dma_buf_get": 3}, imports=["DMA_BUF"])) == []
    assert findings(driver(needed={"dma_buf_get": 3}, imports=["OTHER"])) == [
        Finding(
            "namespace",
            "uses dma_buf_get without importing namespace DMA_BUF",
            symbol="dma_buf_get",
            wanted="DMA_BUF",
        )
    ]


def test_namespace_imports_may_be_forgiven() -> None:
    """A kernel that is configured so asks for no import."""
    lax = kernel(KERNEL.symbols, {"MODULE_ALLOW_MISSING_NAMESPACE_IMPORTS": "y"})
    assert codes(driver(needed={"dma_buf_get": 3, "for_us": 5}), target=lax) == []


@pytest.mark.parametrize(
    ("name", "space", "may"),
    [
        ("nvidia", "module:nvidia", True),
        ("nvidia", "module:nvidia_uvm", False),
        ("nvidia_uvm", "module:nvidia", False),
        ("nvidia_uvm", "module:kvm,nvidia-uvm", True),
        ("nvidia_uvm", "module:nvidia*", True),
        ("nvidia_uvm", "module:nvidia-*,kvm", True),
        ("nvidia", "module:*", True),
        ("nvidia", "module:n*a", False),
        ("nvidia", "module:nvidi?", False),
        ("nvidia", "module:[n]vidia", False),
        ("nvidia", "module:", False),
        ("nvidia", "module:kvm,", False),
    ],
)
def test_symbol_for_some_modules(name: str, space: str, may: bool) -> None:
    """Since Linux 6.16 an export can name its users: - is _, and only a `*` at the end is special."""
    target = kernel({"for_us": symbol(5, space=space)})
    assert codes(driver(name, {"for_us": 5}), target=target) == ([] if may else ["namespace"])


def test_nobody_imports_a_namespace_of_modules() -> None:
    """The kernel refuses a module that imports one."""
    assert codes(driver(imports=["module:nvidia"])) == ["namespace"]


def test_gpl_only() -> None:
    """Only a license of the kernel's list may use a GPL-only symbol."""
    assert codes(driver(needed={"gpl": 2}, license="GPL v2")) == []
    assert findings(driver(needed={"gpl": 2}, license="NVIDIA")) == [
        Finding("gpl-only", "has license 'NVIDIA' and uses gpl, which is for GPL modules only", symbol="gpl")
    ]


@pytest.mark.parametrize("license", ["NVIDIA", "MIT", "Linux-OpenIB", "GPLv2", "gpl", "", None])
def test_licenses_that_are_not_the_gpl(license: Optional[str]) -> None:
    """A module may have any other license, or none, as long as it uses no GPL-only symbol."""
    assert codes(driver(needed={"printk": 1}, license=license)) == []
    assert codes(driver(needed={"gpl": 2}, license=license)) == ["gpl-only"]


def test_gpl_only_and_weak() -> None:
    """A weak GPL-only symbol counts too; the kernel would leave it unresolved."""
    assert codes(driver(needed={"gpl": 2}, weak=["gpl"], license="MIT")) == ["gpl-only"]


def test_gpl_only_of_the_set() -> None:
    """What a module of the set exports for GPL modules only counts too."""
    core = driver(exports={"nv": export(7, gpl=True)})
    assert codes(core, driver("nvidia_uvm", {"nv": 7}, depends=["nvidia"], license="MIT")) == ["gpl-only"]


def proprietary_set(last_needs: dict[str, int]) -> tuple[ModuleFacts, ...]:
    """nvidia is proprietary; each of the others, all under the GPL, uses the one before it."""
    core = driver(exports={"nv": export(7)}, license="NVIDIA")
    middle = driver("nvidia_uvm", {"nv": 7}, depends=["nvidia"], exports={"uvm": export(8)})
    upper = driver("nvidia_modeset", {"uvm": 8}, depends=["nvidia-uvm"], exports={"kms": export(9)})
    return core, middle, upper, driver("nvidia_drm", {"kms": 9, **last_needs}, depends=["nvidia-modeset"])


def test_taint_is_inherited() -> None:
    """Who uses a proprietary module counts as one, over any number of steps (kernel: inherit_taint)."""
    assert codes(*proprietary_set({"printk": 1})) == []
    [finding] = findings(*proprietary_set({"gpl": 2}))
    assert finding == Finding("gpl-only", "uses kms of a proprietary module and GPL-only gpl", symbol="gpl")
    assert codes(*reversed(proprietary_set({"gpl": 2}))) == ["gpl-only"]


def test_taint_of_others_does_not_matter() -> None:
    """A GPL module beside a proprietary one, not using it, may use GPL-only symbols."""
    assert codes(driver(license="NVIDIA"), driver("nvidia_uvm", {"gpl": 2})) == []


def test_dependency_in_the_set() -> None:
    """A module of the set serves another, whichever comes first; its CRC is compared."""
    core = driver(exports={"nv": export(7)})
    user = driver("nvidia_uvm", {"nv": 7}, depends=["nvidia"])
    assert codes(core, user) == codes(user, core) == []
    assert codes(core, driver("nvidia_uvm", {"nv": 6}, depends=["nvidia"])) == ["crc"]


def test_dependency_on_an_in_tree_module() -> None:
    """An in-tree module serves the set, and has to be named."""
    assert codes(driver(needed={"drm_open": 4}, depends=["drm"])) == []
    assert findings(driver(needed={"drm_open": 4})) == [
        Finding("dependency", "uses drm_open of module drm, on which it does not say to depend", symbol="drm")
    ]


def test_dependency_that_is_nowhere() -> None:
    """A module that depends on one which is in neither the set nor the kernel cannot be loaded."""
    assert findings(driver(depends=["i2c-core"])) == [
        Finding(
            "dependency",
            "depends on module i2c_core, which is in neither the set nor the kernel",
            symbol="i2c_core",
        )
    ]
    assert codes(driver(depends=["drm"])) == []


def test_own_exports_do_not_serve() -> None:
    """What a module says to need and to export at once is needed of others."""
    assert codes(driver(needed={"nv": 7}, exports={"nv": export(7)})) == ["missing-symbol"]


def test_dependency_in_a_circle() -> None:
    """Modules that depend on each other cannot be loaded in any order; nor can one that names itself."""
    one = driver(needed={"uvm": 8}, depends=["nvidia-uvm"], exports={"nv": export(7)})
    two = driver("nvidia_uvm", {"nv": 7}, depends=["nvidia"], exports={"uvm": export(8)})
    found = [(name, finding.code, finding.symbol) for name, finding in check_fit([one, two], KERNEL).findings]
    assert found == [(name, "dependency", name) for name in ("nvidia", "nvidia_uvm")]
    assert codes(driver(depends=["nvidia"])) == ["dependency"]
    assert codes(driver(), driver("a", depends=["nvidia"]), driver("b", depends=["nvidia", "a"])) == []


def test_symbol_that_moved_to_another_module() -> None:
    """Where another module than the one named exports the symbol, modprobe would not load it."""
    assert codes(driver(needed={"drm_open": 4}, depends=["drm_kms_helper"])) == ["dependency", "dependency"]


def test_set_replaces_an_in_tree_module() -> None:
    """A module of the set with an in-tree module's name takes its place: its CRCs count."""
    mine = driver("drm", exports={"drm_open": export(9)})
    assert codes(mine, driver(needed={"drm_open": 9}, depends=["drm"])) == []
    assert codes(mine, driver(needed={"drm_open": 4}, depends=["drm"])) == ["crc"]
    assert codes(driver("drm"), driver(needed={"drm_open": 4}, depends=["drm"])) == ["missing-symbol"]


def test_kernel_comes_before_the_set() -> None:
    """What the kernel itself exports is found first, and nobody may export it again."""
    mine = driver(exports={"printk": export(9)})
    assert findings(mine) == [Finding("duplicate", "exports printk, as vmlinux does", symbol="printk")]
    assert codes(mine, driver("nvidia_uvm", {"printk": 1})) == ["duplicate"]


def test_duplicates() -> None:
    """Neither a module nor a symbol may come twice; one that an in-tree module exports counts."""
    one, two = driver(exports={"nv": export(7)}), driver("nvidia_uvm", exports={"nv": export(7)})
    assert findings(one, two) == [Finding("duplicate", "exports nv, as nvidia does", symbol="nv")]
    assert codes(driver(), driver()) == ["duplicate"]
    assert codes(driver(needed={"gpl": 2}), driver(license="NVIDIA")) == ["duplicate"]
    assert codes(driver(exports={"drm_open": export(4)})) == ["duplicate"]


def test_signature() -> None:
    """An unsigned module fits unless signatures are enforced, here or by the kernel's configuration."""
    force = kernel(config={"MODULE_SIG_FORCE": "y"})
    signed = driver(signature=SIGNATURE)
    wanted = Finding("signature", "is not signed, and the kernel takes signed modules only")
    assert findings(driver(), signatures_enforced=True) == findings(driver(), target=force) == [wanted]
    assert codes(signed, signatures_enforced=True) == codes(signed, target=force) == []
    assert codes(driver()) == []


def test_global_offset_table_is_no_symbol() -> None:
    """The kernel does not look for it on x86_64; elsewhere it is a symbol as any other."""
    assert codes(driver(unversioned=["_GLOBAL_OFFSET_TABLE_"])) == []
    arm = kernel(KERNEL.symbols, arch="arm64")
    module = driver(unversioned=["_GLOBAL_OFFSET_TABLE_"], machine="arm64")
    assert codes(module, target=arm) == ["missing-symbol"]


def test_every_finding_is_told() -> None:
    """One finding does not hide another, and each has its module's name."""
    bad = driver(needed={"printk": 9, "gone": 1, "gpl": 2}, license="NVIDIA", vermagic="x", machine="arm64")
    fit = check_fit([driver("nvidia_uvm"), bad], KERNEL)
    assert {name for name, _ in fit.findings} == {"nvidia"}
    assert {finding.code for _, finding in fit.findings} == {
        "vermagic", "architecture", "crc", "missing-symbol", "gpl-only",
    }  # fmt: skip
    assert [module.fit for module in fit.modules] == [EXACT, UNFIT]


@pytest.mark.timeout(20)
def test_many_dependencies_that_nobody_has() -> None:
    """The kernel's modules are counted once, not for every name: a hostile `depends` has 100,000."""
    target = kernel({f"s{number}": symbol(1, f"drivers/m{number % 500}") for number in range(20_000)})
    module = driver(depends=[f"gone{number}" for number in range(20_000)])
    assert len(check_fit([module], target).findings) == 20_000
