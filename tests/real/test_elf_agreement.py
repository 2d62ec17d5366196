"""What `read_module` says of every module of a whole kernel package is what kmod and the kernel's build say.

By hand against any other package: NVDRIVER_TEST_MODULES names its folder of modules, NVDRIVER_TEST_SYMVERS
its Module.symvers.
"""

from __future__ import annotations

import os
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import pytest
from attrs import frozen

from nvdriver_build.elf import Export, ModuleFacts, canonical_name, read_module

pytestmark = pytest.mark.real

SHARDS = 8
"""Parts of the package, so that workers share them."""
SIGNATURE = ("sig_id", "signer", "sig_key", "sig_hashalgo", "signature")
"""What modinfo adds to .modinfo."""


@frozen
class Package:
    """The modules of a kernel package, and its Module.symvers."""

    modules: Path
    symvers: Path


@pytest.fixture(scope="session", params=["kernel_a", "kernel_arm64"])
def package(request: pytest.FixtureRequest) -> Package:
    """A kernel of the kit, or the package that the environment names."""
    if "NVDRIVER_TEST_MODULES" in os.environ:
        return Package(Path(os.environ["NVDRIVER_TEST_MODULES"]), Path(os.environ["NVDRIVER_TEST_SYMVERS"]))
    kernel = request.getfixturevalue(request.param)
    return Package(kernel.modules / "kernel", kernel.headers / "Module.symvers")


def files(package: Package) -> List[Path]:
    """Every module of the package, in a fixed order."""
    return sorted(path for path in package.modules.rglob("*.ko*") if path.is_file())


@pytest.fixture(scope="module", params=range(SHARDS))
def facts(request: pytest.FixtureRequest, package: Package) -> List[ModuleFacts]:
    """Our reading of one part of the package."""
    paths = files(package)[request.param :: SHARDS]
    assert len(paths) > 100, "not a whole kernel package"
    return [read_module(path, digest=False) for path in paths]


def output(*command: str, check: bool = True) -> bytes:
    """What a program prints."""
    return subprocess.run(command, check=check, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout


def modinfo(facts: Sequence[ModuleFacts], *options: str) -> List[str]:
    """The strings that `modinfo` prints of these modules, one after the other."""
    data = output("modinfo", "-0", *options, *(module.path for module in facts))
    return data.decode("utf-8", "backslashreplace").split("\0")[:-1]


def records(lines: Sequence[str]) -> Dict[str, List[Tuple[str, str]]]:
    """modinfo's entries by file, in their order."""
    found: Dict[str, List[Tuple[str, str]]] = {}
    entries: List[Tuple[str, str]] = []
    for line in lines:
        if line.startswith("filename:"):
            entries = found[line.split(None, 1)[1]] = []
        elif line.startswith("parm:"):
            entries.append(("parm", line[len("parm:") :].lstrip()))
        else:
            key, _, value = line.partition("=")
            entries.append((key, value))
    return found


def parameters(module: ModuleFacts) -> List[str]:
    """Parameters as modinfo merges them from `parm` (name and description) and `parmtype`."""
    descriptions = dict(text.split(":", 1) for text in module.all("parm"))
    types = dict(text.split(":", 1) for text in module.all("parmtype"))
    return [f"{name}:{descriptions[name]} ({types[name]})" for name in descriptions.keys() & types] + [
        f"{name}:{text}"
        for one, other in ((descriptions, types), (types, descriptions))
        for name, text in one.items()
        if name not in other
    ]


def test_modinfo(facts: List[ModuleFacts]) -> None:
    """Every .modinfo entry is as modinfo has it: parameters merged and in its order, all else in ours."""
    theirs = records(modinfo(facts))
    for module in facts:
        ours = [entry for entry in module.modinfo if entry[0] not in ("parm", "parmtype")]
        wanted = [entry for entry in theirs[module.path] if entry[0] not in (*SIGNATURE, "parm")]
        assert ours == wanted, module.path
        assert sorted(parameters(module)) == sorted(v for k, v in theirs[module.path] if k == "parm")
        assert module.name == canonical_name(Path(module.path).name)


@pytest.mark.parametrize("key", ["depends", "vermagic", "license", "import_ns", "alias", "firmware"])
def test_modinfo_field(facts: List[ModuleFacts], key: str) -> None:
    """`all` gives the values that `modinfo -F` gives."""
    assert [value for module in facts for value in module.all(key)] == modinfo(facts, "-F", key)


def test_signature(facts: List[ModuleFacts]) -> None:
    """Signer, key and hash are modinfo's, and a module without signature has none there either."""
    theirs = records(modinfo(facts))
    for module in facts:
        wanted = {key: value for key, value in theirs[module.path] if key in SIGNATURE}
        signature = module.signature
        if signature is None:
            assert not wanted, module.path
            continue
        assert signature.signer == wanted["signer"]
        assert signature.serial == wanted["sig_key"].replace(":", "").lower()
        assert signature.hash == wanted["sig_hashalgo"]
        assert str(signature.signer) in str(signature.issuer)


def modversions(path: str) -> Dict[str, int]:
    """Symbols and CRCs by `modprobe --dump-modversions`, which fails where a module has none."""
    lines = output("modprobe", "--dump-modversions", path, check=False).decode().splitlines()
    return {symbol: int(crc, 16) for crc, symbol in (line.split("\t") for line in lines)}


def test_needed_versions(facts: List[ModuleFacts]) -> None:
    """The CRCs that a module wants are those that modprobe dumps; every undefined symbol has one."""
    for module in facts:
        assert module.needed == modversions(module.path), module.path
        if module.needed:
            assert set(module.undefined) <= set(module.needed) | {"_GLOBAL_OFFSET_TABLE_"}, module.path


def crc_of(text: str) -> Optional[int]:
    """A CRC of Module.symvers, where zero stands for none."""
    return int(text, 16) or None


def test_exports(facts: List[ModuleFacts], package: Package) -> None:
    """Exports, with CRC, namespace and GPL mark, are the rows of Module.symvers of the same module."""
    rows: Dict[str, Dict[str, Export]] = defaultdict(dict)
    for line in package.symvers.read_text().splitlines():
        crc, symbol, module, kind, namespace = line.split("\t")
        assert kind in ("EXPORT_SYMBOL", "EXPORT_SYMBOL_GPL")
        export = Export(crc=crc_of(crc), gpl_only=kind.endswith("_GPL"), namespace=namespace or None)
        rows[canonical_name(Path(module).name)][symbol] = export
    for fact in facts:
        assert fact.exports == rows.get(fact.name, {}), fact.path


def test_undefined_symbols(facts: List[ModuleFacts]) -> None:
    """Undefined symbols, weak ones apart, are those that `nm` prints."""
    plain = [module for module in facts if module.path.endswith(".ko")]
    theirs: Dict[str, Dict[str, List[str]]] = {module.path: {"U": [], "w": [], "v": []} for module in plain}
    for line in output("nm", "-u", "-A", *theirs).decode().splitlines() if plain else ():
        path, _, symbol = line.rpartition(":")
        kind, name = symbol.split()
        theirs[path][kind].append(name)
    for module in plain:
        assert list(module.undefined) == sorted(theirs[module.path]["U"]), module.path
        assert list(module.weak) == sorted(theirs[module.path]["w"] + theirs[module.path]["v"]), module.path
