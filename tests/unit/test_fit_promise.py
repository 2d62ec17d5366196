"""The promise of `fit`: no set that it accepts is refused by the kernel; a set built well is accepted."""

from __future__ import annotations

import random
from typing import Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence

from attrs import evolve
from facts import CONFIG, LAYOUT, RELEASE, REST, SIGNATURE, driver, export, kernel, symbol
from hypothesis import event, given, note, settings
from hypothesis import strategies as st
from kernel_loader import Loader, Refused

from nvdriver_build.elf import Export, ModuleFacts
from nvdriver_build.fit import COMPATIBLE, EXACT, UNFIT, check_fit
from nvdriver_build.kernel import KernelTarget, Symbol

NAMES = ("nvidia", "nvidia_uvm", "nvidia_modeset")
LICENSES = ("Dual MIT/GPL", "Dual MIT/GPL", "GPL v2", "GPL v2", "NVIDIA", "MIT", None)
SPACES = (None, None, "DMA_BUF", "module:nvidia*", "module:nvidia-uvm,nvidia")
VERMAGICS = (f"6.1.0-10-amd64 {REST}", f"6.1.0-11-amd64 {REST}", f"{RELEASE} SMP ", "")
OWNERS = ("vmlinux", "vmlinux", "drivers/gpu/drm/drm", "drivers/acpi/video")
ALLOW_IMPORTS = "MODULE_ALLOW_MISSING_NAMESPACE_IMPORTS"
SETTINGS = ("DEBUG_INFO_BTF_MODULES", "MODULE_ALLOW_BTF_MISMATCH", ALLOW_IMPORTS)


class World(NamedTuple):
    """A kernel, a set for it, the configuration it was built with, and whether signatures are enforced."""

    target: KernelTarget
    modules: List[ModuleFacts]
    built_config: Optional[str]
    enforced: bool = False


@st.composite
def kernels(draw: st.DrawFn) -> KernelTarget:
    """A kernel with six symbols."""
    names = [f"k{number}" for number in range(6)]
    rows = st.builds(
        symbol, st.integers(1, 4), st.sampled_from(OWNERS), gpl=st.booleans(), space=st.sampled_from(SPACES)
    )
    config = dict.fromkeys(draw(st.sets(st.sampled_from(SETTINGS))), "y")
    if draw(st.integers(0, 5)) == 0:
        plain = {name: draw(rows)._replace(crc=0) for name in names}
        return kernel({**plain, "module_layout": symbol(0)}, {**config, "MODVERSIONS": "n"}, rest="SMP ")
    return kernel({name: draw(rows) for name in names}, config)


def consistent(
    target: KernelTarget,
    name: str,
    chosen: List[str],
    others: Mapping[str, ModuleFacts],
    license: Optional[str],
) -> ModuleFacts:
    """A module that uses `chosen`, of the kernel and of other modules, as modpost would have made it."""
    needed: Dict[str, int] = {}
    depends, imports = set(), set()
    for each in chosen:
        provider = others.get(each)
        found: Export | Symbol = provider.exports[each] if provider else target.symbols[each]
        owner = provider.name if provider else target.symbols[each].module.split("/")[-1]
        needed[each] = found.crc or 0
        depends |= {owner} - {"vmlinux"}
        imports |= (
            {found.namespace} if found.namespace and not found.namespace.startswith("module:") else set()
        )
    exports = {f"{name}_{n}": export(7 if target.modversions else None, gpl=n == 1) for n in range(2)}
    return driver(
        name,
        needed,
        exports=exports,
        depends=sorted(depends),
        license=license,
        imports=sorted(imports),
        vermagic=target.vermagic,
        versions=None if target.modversions else {},
    )


@st.composite
def worlds(draw: st.DrawFn, licenses: tuple[Optional[str], ...] = LICENSES) -> World:
    """A kernel and a set that was built for it."""
    target = draw(kernels())
    modules: List[ModuleFacts] = []
    for name in NAMES[: draw(st.integers(1, 3))]:
        others = {each: module for module in modules for each in module.exports}
        usable = sorted([*others, *(row for row in target.symbols if row != "module_layout")])
        usable = [each for each in usable if each in others or _allowed(target.symbols[each], name)]
        chosen = draw(st.lists(st.sampled_from(usable), unique=True, max_size=5)) if usable else []
        modules.append(consistent(target, name, chosen, others, draw(st.sampled_from(licenses))))
    return World(target, modules, target.config_digest)


def _allowed(row: Symbol, name: str) -> bool:
    return row.namespace != "module:nvidia-uvm,nvidia" or name in ("nvidia", "nvidia_uvm")


Change = Callable[[random.Random, ModuleFacts], ModuleFacts]


def _modinfo(module: ModuleFacts, key: str, *values: str) -> ModuleFacts:
    rest = [entry for entry in module.modinfo if entry[0] != key]
    return evolve(module, modinfo=tuple(rest + [(key, value) for value in values]))


def _other_crc(dice: random.Random, module: ModuleFacts) -> ModuleFacts:
    name = dice.choice(sorted(module.needed) or ["module_layout"])
    return evolve(module, needed={**module.needed, name: dice.choice([0, 1, 2, LAYOUT, 1 << 40])})


def _no_crc(dice: random.Random, module: ModuleFacts) -> ModuleFacts:
    name = dice.choice(sorted(module.needed) or [""])
    return evolve(module, needed={other: crc for other, crc in module.needed.items() if other != name})


def _more_symbols(dice: random.Random, module: ModuleFacts) -> ModuleFacts:
    name = dice.choice(
        ["k0", "k1", "k2", "k3", "k4", "k5", "gone", "nvidia_0", "nvidia_1", "_GLOBAL_OFFSET_TABLE_"]
    )
    crcs = {**module.needed, name: dice.randint(1, 4)} if dice.random() < 0.7 else module.needed
    if dice.random() < 0.2:
        return evolve(module, needed=crcs)
    if dice.random() < 0.5:
        return evolve(module, needed=crcs, weak=tuple(sorted({*module.weak, name})))
    return evolve(module, needed=crcs, undefined=tuple(sorted({*module.undefined, name})))


def _weak(dice: random.Random, module: ModuleFacts) -> ModuleFacts:
    name = dice.choice(module.undefined or ("gone",))
    left = tuple(other for other in module.undefined if other != name)
    return evolve(module, undefined=left, weak=(*module.weak, name))


def _other_export(dice: random.Random, module: ModuleFacts) -> ModuleFacts:
    name = dice.choice(["k0", "k1", "nvidia_0", "nvidia_uvm_0", "nvidia_modeset_1"])
    crc = dice.choice([None, 7, 8])
    return evolve(module, exports={**module.exports, name: export(crc, gpl=dice.random() < 0.5)})


def _other_depends(dice: random.Random, module: ModuleFacts) -> ModuleFacts:
    return _modinfo(module, "depends", ",".join(_some(dice, ["drm", "video", "nvidia", "nvidia-uvm", "x"])))


def _some(dice: random.Random, values: Sequence[str]) -> List[str]:
    return dice.sample(values, k=dice.randint(0, 2))


CHANGES: tuple[Change, ...] = (
    _other_crc,
    _no_crc,
    _more_symbols,
    _weak,
    _other_export,
    _other_depends,
    lambda dice, module: evolve(module, needed={}),
    lambda dice, module: evolve(module, btf=True),
    lambda dice, module: evolve(module, signature=SIGNATURE),
    lambda dice, module: evolve(module, name=dice.choice([*NAMES, "drm"])),
    lambda dice, module: evolve(module, machine="arm64"),
    lambda dice, module: evolve(module, bits=32),
    lambda dice, module: _modinfo(module, "license", dice.choice(["MIT", "GPL v2"])),
    lambda dice, module: _modinfo(module, "import_ns", *_some(dice, ["DMA_BUF", "X", "module:x"])),
    lambda dice, module: _modinfo(module, "vermagic", *_some(dice, VERMAGICS)),
)


def change(world: World, dice: random.Random, times: int) -> World:
    """The same world with some things wrong."""
    modules = list(world.modules)
    for _ in range(times):
        place = dice.randrange(len(modules))
        modules[place] = dice.choice(CHANGES)(dice, modules[place])
    if dice.random() < 0.2:
        dice.shuffle(modules)
    if dice.random() < 0.1:
        modules.append(dice.choice(modules))
    configs = [world.built_config, world.built_config, None, "0" * 64]
    return World(world.target, modules, dice.choice(configs), enforced=dice.random() < 0.2)


def accepts(world: World, dice: random.Random) -> bool:
    """Whether modprobe and the kernel take the set."""
    try:
        Loader(world.target, dice, enforced=world.enforced).load(world.modules)
    except Refused as reason:
        event(f"kernel: {str(reason).split(' ')[0]}")
        return False
    return True


def verdict(world: World) -> str:
    fit = check_fit(
        world.modules, world.target, built_config=world.built_config, signatures_enforced=world.enforced
    )
    return fit.fit


@settings(max_examples=1500, deadline=None)
@given(world=worlds(), dice=st.randoms(use_true_random=False), times=st.sampled_from([0, 1, 1, 2]))
def test_what_fits_is_accepted_by_the_kernel(world: World, dice: random.Random, times: int) -> None:
    """Whatever is wrong with a set: if it fits, the kernel loads every module of it."""
    world = change(world, dice, times)
    fit = verdict(world)
    event(f"fit: {fit}")
    note(f"{world}")
    if fit != UNFIT:
        assert accepts(world, dice)


@settings(max_examples=300, deadline=None)
@given(world=worlds(licenses=("Dual MIT/GPL", "GPL v2")), dice=st.randoms(use_true_random=False))
def test_what_was_built_for_a_kernel_fits_it(world: World, dice: random.Random) -> None:
    """A set as modpost makes it for a kernel fits that kernel exactly, and the kernel agrees."""
    assert verdict(world) == EXACT
    assert accepts(world, dice)


@settings(max_examples=300, deadline=None)
@given(world=worlds(), dice=st.randoms(use_true_random=False))
def test_licenses_are_judged_as_by_the_kernel(world: World, dice: random.Random) -> None:
    """For a set as modpost makes it only licenses can be wrong: there the kernel says the same."""
    assert (verdict(world) != UNFIT) == accepts(world, dice)


@settings(max_examples=200, deadline=None)
@given(
    world=worlds(licenses=("GPL",)),
    more=st.dictionaries(st.text("xyz", min_size=1, max_size=3), st.integers(1, 9)),
)
def test_more_symbols_of_the_kernel_do_not_matter(world: World, more: Dict[str, int]) -> None:
    """A set that fits still fits a kernel that exports more."""
    symbols = {**world.target.symbols, **{name: symbol(crc) for name, crc in more.items()}}
    assert verdict(world._replace(target=evolve(world.target, symbols=symbols))) == EXACT


@settings(max_examples=200, deadline=None)
@given(world=worlds(licenses=("GPL",)), data=st.data())
def test_one_other_crc_is_one_finding(world: World, data: st.DataObject) -> None:
    """Any one CRC that a module wants differently makes the set unfit, with exactly that finding."""
    if not world.target.modversions:
        return
    place = data.draw(st.integers(0, len(world.modules) - 1))
    module = world.modules[place]
    name = data.draw(st.sampled_from(sorted(module.needed)))
    crc = data.draw(st.integers(0, 2**32 - 1).filter(lambda value: value != module.needed[name]))
    modules = list(world.modules)
    modules[place] = evolve(module, needed={**module.needed, name: crc})
    [(who, finding)] = check_fit(modules, world.target).findings
    assert (who, finding.code, finding.symbol) == (module.name, "crc", name)
    assert (finding.wanted, finding.found) == (f"{crc:#010x}", f"{module.needed[name]:#010x}")


@settings(max_examples=200, deadline=None)
@given(world=worlds(licenses=("GPL",)), data=st.data())
def test_one_symbol_gone_is_one_finding(world: World, data: st.DataObject) -> None:
    """Any one symbol that the kernel exports no more is missing, for each module that uses it."""
    undefined = {name for module in world.modules for name in module.undefined}
    used = sorted(undefined.intersection(world.target.symbols))
    if not used:
        return
    gone = data.draw(st.sampled_from(used))
    symbols = {name: row for name, row in world.target.symbols.items() if name != gone}
    fit = check_fit(world.modules, evolve(world.target, symbols=symbols))
    users = [module.name for module in world.modules if gone in module.undefined]
    missing = [(who, finding.symbol) for who, finding in fit.findings if finding.code == "missing-symbol"]
    assert missing == [(user, gone) for user in users]


@settings(max_examples=200, deadline=None)
@given(world=worlds(licenses=("GPL",)), dice=st.randoms(use_true_random=False))
def test_another_release_is_compatible(world: World, dice: random.Random) -> None:
    """The same set on another release is compatible with modversions, else unfit; the kernel agrees."""
    rest = world.target.vermagic.partition(" ")[2]
    other = world._replace(
        target=evolve(world.target, release="6.1.0-10-amd64", vermagic=f"6.1.0-10-amd64 {rest}")
    )
    expected = COMPATIBLE if CONFIG.items() <= world.target.config.items() else UNFIT
    assert verdict(other) == expected
    assert accepts(other, dice) == (expected == COMPATIBLE)
