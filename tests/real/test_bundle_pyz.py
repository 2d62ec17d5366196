"""The bundle: one file for every Python that a Driver Toolkit may have, the same bytes each time."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import List, Tuple

import pytest
from bundled import VERSIONS, make_bundle, pythons
from elftools.elf.elffile import ELFFile

PYTHONS = pythons()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh bundle."""
    folder = tmp_path_factory.mktemp("bundle")
    done = make_bundle(folder)
    assert done.returncode == 0, done.stderr
    return folder


def python(version: str) -> str:
    if version not in PYTHONS:
        pytest.skip(f"this machine has no Python {version}")
    return PYTHONS[version]


def start(argv: List[str], home: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """As a toolkit starts it: nothing in the environment but these, a home that must stay empty."""
    home.mkdir(exist_ok=True)
    env = {"PATH": "/usr/bin:/bin", "HOME": str(home), **more}
    return subprocess.run(argv, env=env, cwd="/", capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_python(bundle: Path, version: str, tmp_path: Path) -> None:
    """3.9 and later run it with psutil, and write below SHIV_ROOT only; an older one says so (exit 10)."""
    argv = [python(version), "-I", str(bundle / "nvdriver-build.pyz"), "doctor", "--json"]
    done = start(argv, tmp_path / "home", SHIV_ROOT=str(tmp_path / "root"))
    if int(version.split(".")[1]) < 9:
        assert done.returncode == 10 and "3.9 or later is needed" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["schema"] == 1
    [unpacked] = (tmp_path / "root").glob("nvdriver-build.pyz_*")
    program = (
        f"import sys; sys.path.insert(0, {str(unpacked / 'site-packages/machine' / platform.machine())!r})"
    )
    said = start(
        [argv[0], "-I", "-c", program + "; import psutil; print(psutil.__file__)"], tmp_path / "home"
    )
    assert str(unpacked) in said.stdout, said.stderr
    assert list((tmp_path / "home").iterdir()) == []


@pytest.mark.parametrize("version", VERSIONS)
def test_folder(bundle: Path, version: str, tmp_path: Path) -> None:
    """The folder for images runs on the same Pythons, under the command's own name."""
    argv = [python(version), "-IB", str(bundle / "site-packages/nvdriver_bundle.py"), "--help"]
    done = start(argv, tmp_path / "home")
    if int(version.split(".")[1]) < 9:
        assert done.returncode == 10 and "3.9 or later is needed" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: nvdriver-build [OPTIONS]")
    assert list((tmp_path / "home").iterdir()) == []


def test_compiled_parts(bundle: Path) -> None:
    """Only psutil is compiled, once for each machine, and each is really for that machine."""
    compiled = sorted((bundle / "site-packages").rglob("*.so"))
    assert [path.relative_to(bundle / "site-packages/machine").parts[0] for path in compiled] == [
        "aarch64",
        "x86_64",
    ]
    for path, machine in zip(compiled, ("EM_AARCH64", "EM_X86_64")):
        with path.open("rb") as file:
            assert ELFFile(file)["e_machine"] == machine
        assert path.name.endswith(".abi3.so")


def test_equal_bytes(bundle: Path, tmp_path: Path) -> None:
    """Another run, at another time and with another umask, gives the same file and the same folder."""
    umask = os.umask(0o077)
    try:
        assert make_bundle(tmp_path / "again", TZ="Asia/Tokyo").returncode == 0
    finally:
        os.umask(umask)
    assert content(tmp_path / "again") == content(bundle)


def content(folder: Path) -> List[Tuple[str, int, float, bytes]]:
    """Name, mode, time (of what is inside site-packages) and bytes of every file."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name, status = path.relative_to(folder).as_posix(), path.stat()
            seconds = status.st_mtime if name.startswith("site-packages/") else 0.0
            found.append((name, status.st_mode, seconds, path.read_bytes()))
    return found


def test_replaced_whole(bundle: Path, tmp_path: Path) -> None:
    """A second run over an old bundle leaves nothing of the old one."""
    place = tmp_path / "place"
    shutil.copytree(bundle, place)
    (place / "site-packages/stale.py").touch()
    assert make_bundle(place).returncode == 0
    assert not (place / "site-packages/stale.py").exists()
    assert sorted(path.name for path in place.iterdir()) == ["nvdriver-build.pyz", "site-packages"]


def test_wheel_with_another_sum(bundle: Path, tmp_path: Path) -> None:
    """A wheel in the cache that is not the lock's is not used; without an index that ends with an error."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nvdriver-build/wheels"
    shutil.copytree(cache, tmp_path / "nvdriver-build/wheels")
    [wheel] = (tmp_path / "nvdriver-build/wheels").glob("tenacity-*.whl")
    wheel.write_bytes(wheel.read_bytes() + b"\0")
    done = make_bundle(tmp_path / "out", XDG_CACHE_HOME=str(tmp_path), PIP_NO_INDEX="1")
    assert done.returncode == 1
    assert "tenacity" in done.stderr and "bundle: error:" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "out").iterdir()) == []
