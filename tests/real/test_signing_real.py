"""What we sign beside what the kernel's own program signs."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from keys import make_identity
from module_sets import PROVENANCE, recipe
from vm.kit import KitKernel

from nvdriver_build.commands import SystemCommands
from nvdriver_build.elf import unsigned_bytes
from nvdriver_build.sets import ModuleSet, describe
from nvdriver_build.signing import attach_signatures, sign_set

pytestmark = pytest.mark.toolchain


@pytest.mark.parametrize("hash_name", ["sha256", "sha384", "sha512"])
def test_byte_by_byte_as_sign_file(hash_name: str, kernel_a: KitKernel, tmp_path: Path) -> None:
    """With each digest, attached and detached: a module of the kernel itself, its own signature taken off."""
    unsigned, identity = a_set(kernel_a, tmp_path / "set"), make_identity(tmp_path / "keys", "Build key")
    program = next(kernel_a.headers.parents[2].rglob("sign-file"))
    words = [str(program), hash_name, str(identity.key), str(identity.file)]
    (theirs,) = (shutil.copy(path, tmp_path) for path in unsigned.paths)
    subprocess.run([words[0], "-d", *words[1:], str(theirs)], check=True)
    attached = attach_signatures(unsigned, tmp_path / "attached", identity.certificate, tmp_path)
    subprocess.run([*words, str(theirs)], check=True)
    ours = sign_set(unsigned, tmp_path / "ours", identity.signer, SystemCommands(), hash_name)
    made = [each.paths[0].read_bytes() for each in (ours, attached)]
    assert made == [Path(theirs).read_bytes()] * 2


def a_set(kernel: KitKernel, folder: Path) -> ModuleSet:
    assert kernel.modules is not None
    folder.mkdir()
    (module,) = kernel.modules.rglob("overlay.ko")
    (folder / "nvidia.ko").write_bytes(unsigned_bytes(module))
    return describe(
        folder,
        recipe(modules=("nvidia",)),
        PROVENANCE,
        flavour="standard",
        vermagic="6.1 SMP ",
        config_digest="3" * 64,
    )
