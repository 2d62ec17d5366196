"""A kernel that Secure Boot has locked down: our verdict on signatures and its own, the real driver on it."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Callable, Dict, Mapping, NamedTuple, Tuple

import pytest
from keys import Identity, make_identity
from real_build import RealBuild
from sample_driver import make_sample_driver

from nvdriver_build.commands import SystemCommands
from nvdriver_build.elf import as_appended, unsigned_bytes
from nvdriver_build.sets import ModuleSet, describe, open_set
from nvdriver_build.signing import sign_set

from .firmware import secure_boot
from .kit import Kit, KitKernel
from .machine import Machine
from .test_driver import SLOW, Node
from .test_reuse import build_sample

pytestmark = [pytest.mark.vm, pytest.mark.real]


class Case(NamedTuple):
    """A set whose signatures are not as they should be: what we say of it, what the kernel logs of it."""

    ours: str
    kernel: str


UNSIGNED = "Loading of unsigned module is rejected"
REFUSED: Mapping[str, Case] = {
    "unsigned": Case("is not signed, and the kernel takes signed modules only", UNSIGNED),
    "unknown": Case("which this kernel does not trust", "Loading of module with unavailable key is rejected"),
    "tampered": Case("has a signature that is not of these bytes", ""),
    "stripped": Case("is not signed any more, it was stripped after signing", UNSIGNED),
    "attributes": Case("has a signature that is not of these bytes", ""),
}


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return make_identity(tmp_path_factory.mktemp("ours"), "Our build key")


@pytest.fixture(scope="module")
def sets(
    ours: Identity, kernel_a: KitKernel, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, ModuleSet]:
    """The sample driver, signed by us, and what is made of that."""
    root = tmp_path_factory.mktemp("sets")
    source = make_sample_driver(root / "sample", kind="open")
    unsigned = open_set(build_sample(source, kernel_a, root / "built"))
    good = signed(unsigned, root / "good", ours)
    return {
        "unsigned": unsigned,
        "good": good,
        "sha512": signed(unsigned, root / "sha512", ours, "sha512"),
        "unknown": signed(unsigned, root / "unknown", make_identity(root / "theirs", "Their key")),
        "tampered": changed(good, root / "tampered", tamper),
        "stripped": changed(good, root / "stripped", strip),
        "attributes": changed(good, root / "attributes", lambda path: with_attributes(path, ours)),
    }


def signed(unsigned: ModuleSet, place: Path, by: Identity, hash_name: str = "sha256") -> ModuleSet:
    return sign_set(unsigned, place, by.signer, SystemCommands(), hash_name)


def changed(good: ModuleSet, place: Path, change: Callable[[Path], None]) -> ModuleSet:
    """A copy with each module changed, and a manifest that knows nothing of that."""
    shutil.copytree(good.folder, place)
    manifest = good.manifest
    for path in good.paths:
        change(place / path.name)
    return describe(
        place,
        manifest.recipe,
        manifest.provenance,
        flavour=manifest.flavour,
        vermagic=manifest.vermagic,
        config_digest=manifest.config_digest,
        certificate=manifest.certificate,
    )


def tamper(path: Path) -> None:
    """One letter of a text that the module has for people."""
    data = path.read_bytes()
    assert b"license=Dual" in data
    path.write_bytes(data.replace(b"license=Dual MIT/GPL", b"license=Dual BSD/GPL"))


def strip(path: Path) -> None:
    subprocess.run(["strip", "--strip-debug", str(path)], check=True)


def with_attributes(path: Path, by: Identity) -> None:
    """As `openssl cms` signs unless it is told otherwise."""
    path.write_bytes(unsigned_bytes(path))
    argv = ["openssl", "cms", "-sign", "-binary", "-nocerts", "-md", "sha256", "-outform", "DER"]
    argv += ["-in", str(path), "-signer", str(by.file), "-inkey", str(by.key)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, check=True)
    path.write_bytes(path.read_bytes() + as_appended(done.stdout))


def sign_file(kernel: KitKernel, by: Identity, module: Path) -> None:
    """With the kernel's own program."""
    program = next(kernel.headers.parents[2].rglob("sign-file"))
    subprocess.run([str(program), "sha256", str(by.key), str(by.file), str(module)], check=True)


VERDICTS = """
import json, os, sys
from pathlib import Path
from nvdriver_build.commands import SystemCommands
from nvdriver_build.errors import SigningError
from nvdriver_build.config import read_config
from nvdriver_build.loader.host import Host
from nvdriver_build.node.look import kernel_trust, look
from nvdriver_build.obtain import require_fit
from nvdriver_build.sets import open_set
host = Host()
target = look(read_config(), host, os.uname().machine).target
verdicts = {}
for source in ("keyctl", "proc"):
    trust = kernel_trust(host, SystemCommands() if source == "keyctl" else SystemCommands("/nowhere"))
    verdicts[source] = {}
    for name, folder in json.loads(sys.argv[1]).items():
        try:
            verdicts[source][name] = require_fit(open_set(Path(folder)), target, trust).fit
        except SigningError as error:
            verdicts[source][name] = error.message
json.dump(verdicts, open("verdicts", "w"))
"""


def our_verdicts(node: Node, sets: Mapping[str, ModuleSet]) -> Dict[str, Dict[str, str]]:
    """What we say of each set: asked once, since a start of Python takes seconds in there."""
    folders = json.dumps({name: str(each.folder) for name, each in sets.items()})
    argv = shlex.join([sys.executable, "-c", VERDICTS, folders])
    node.vm.run(f"{node.export}{argv}", timeout=SLOW)
    found: Dict[str, Dict[str, str]] = json.loads((node.vm.share / "verdicts").read_text())
    return found


def their_verdict(vm: Machine, folder: Path) -> Tuple[bool, str]:
    """Whether the kernel takes the first module of a set, and what it logs."""
    done = vm.run(f"dmesg -C; insmod {folder}/nvidia.ko NVreg_SampleWithoutGpu=1", check=False)
    log = vm.run("dmesg; rmmod nvidia 2>/dev/null || true").stdout
    assert done.code == 0 or "Key was rejected by service" in done.stderr
    return done.code == 0, log


def test_secure_boot(
    kit: Kit,
    kernel_a: KitKernel,
    fakegpu: Path,
    ours: Identity,
    sets: Mapping[str, ModuleSet],
    real_build_a: RealBuild,
    tmp_path: Path,
) -> None:
    """In one boot: what is wrong with a signature is told before modprobe, and the kernel refuses it, too;
    what we have signed it takes; `run` signs and loads the real driver."""
    gpu = Path(shutil.copy(fakegpu, tmp_path / "fakegpu.ko"))
    sign_file(kernel_a, ours, gpu)
    firmware = secure_boot(tmp_path, [ours.file])
    with Machine(kernel_a, kit.busybox, tmp_path, firmware=firmware) as vm:
        node = Node(vm, kernel_a, real_build_a)
        vm.run(f"! insmod {fakegpu}; insmod {gpu}; modprobe -a drm_kms_helper video")
        said = our_verdicts(node, sets)
        assert said["keyctl"] == said["proc"]
        for name, module_set in sets.items():
            taken, log = their_verdict(vm, module_set.folder)
            case = REFUSED.get(name)
            if case is None:
                assert (said["proc"][name], taken) == ("exact", True), log
            else:
                assert case.ours in said["proc"][name]
                assert (taken, case.kernel in log) == (False, True), log
        refused_before_modprobe(node, sets["unknown"])
        real_driver_is_signed_and_loaded(node, ours)


def refused_before_modprobe(node: Node, unknown: ModuleSet) -> None:
    """`load` ends with 14, naming the certificate and what to do, before it starts modprobe."""
    fake = f"printf '#!/bin/sh\ntouch {node.vm.share}/tried\n' >modprobe; chmod +x modprobe"
    node.vm.run(f"mkdir fake; cd fake; {fake}")
    done = node.command(f"load {unknown.folder}", f"export PATH={node.vm.share}/fake:$PATH\n")
    assert done.code == 14, done.stderr
    assert "Their key (subject key id " in done.stderr
    assert "mokutil --import" in done.stderr
    assert not (node.vm.share / "tried").exists()


def real_driver_is_signed_and_loaded(node: Node, ours: Identity) -> None:
    """The unsigned set of the store is signed on the node, and the kernel takes it untainted by that."""
    node.export += f"export NVDRIVER_SIGN_KEY='{ours.key}' NVDRIVER_SIGN_CERT='{ours.file}'\n"
    node.start()
    node.await_ready()
    status = node.status()
    assert (status["ready"], status["fit"], status["origin"]) == (True, "exact", "store")
    manifest = json.loads(node.vm.run(f"cat {node.store}/sets/{status['key']}/manifest.json").stdout)
    assert manifest["recipe"]["certificate"] == ours.certificate.fingerprint
    assert "535.261.03" in node.vm.run("cat /proc/driver/nvidia/version").stdout
    assert "(OE)" not in node.loaded(), "E: an unsigned module"
    assert int(node.vm.run("cat /proc/sys/kernel/tainted").stdout) & UNSIGNED_TAINT == 0
    assert node.end() == 0


UNSIGNED_TAINT = 1 << 13
"""TAINT_UNSIGNED_MODULE of include/linux/panic.h."""
