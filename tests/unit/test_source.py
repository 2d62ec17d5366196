"""Where a driver's source is found, what it is, and how it is told that it is none."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Callable, Dict

import pytest
from sample_driver import CORE_OBJECTS, FOLDERS, MODULES, VERSION, make_sample_driver
from sample_driver.archives import ESCAPES, pack, pack_escaping, pack_run
from sample_driver.damage import remove_core_objects
from trees import write_tree

from nvdriver_build.commands import SystemCommands
from nvdriver_build.errors import SourceError
from nvdriver_build.source import AUTO, OPEN, PROPRIETARY, Source, open_source

COMMANDS = SystemCommands()


@pytest.fixture(scope="session")
def unpacked_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample driver as an unpacked `.run`: nobody may write to it."""
    return make_sample_driver(tmp_path_factory.mktemp("sample") / "NVIDIA-Linux-x86_64-999.10.01")


@pytest.fixture
def copy(unpacked_run: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(unpacked_run, tmp_path / "copy"))


def find(place: Path, kind: str = AUTO, **more: str) -> Source:
    """`open_source`, with a new folder to unpack to beside the source."""
    work = place.parent / f"work-{place.name}-{kind}"
    work.mkdir()
    return open_source(place, kind, work, COMMANDS, **more)


@pytest.mark.parametrize("kind", [OPEN, PROPRIETARY])
def test_unpacked_run(unpacked_run: Path, kind: str, tmp_path: Path) -> None:
    """An unpacked `.run` has both kinds; each is told by its version, modules and core objects."""
    source = open_source(unpacked_run, kind, tmp_path, COMMANDS)
    assert source.root == unpacked_run / FOLDERS[kind]
    assert (source.version, source.kind) == (VERSION, kind)
    assert source.modules == MODULES
    assert sorted(source.core_objects) == sorted(CORE_OBJECTS)
    assert "Kbuild" in source.names
    assert set(CORE_OBJECTS) < set(source.names)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("kind", "folder"), sorted(FOLDERS.items()))
def test_kernel_tree_itself(unpacked_run: Path, kind: str, folder: str, tmp_path: Path) -> None:
    """The kernel tree may be given itself; its kind is read from its licenses, not from its name."""
    tree = Path(shutil.copytree(unpacked_run / folder, tmp_path / "any-name"))
    assert find(tree).kind == kind


def test_links_to_a_tree(unpacked_run: Path, tmp_path: Path) -> None:
    """A link to the source is followed; the same tree is not found twice."""
    link = tmp_path / "link"
    link.symlink_to(unpacked_run)
    (tmp_path / "top").mkdir()
    (tmp_path / "top/a").symlink_to(unpacked_run)
    (tmp_path / "top/b").symlink_to(unpacked_run)
    assert find(link).root == find(tmp_path / "top").root == unpacked_run / "kernel-open"


@pytest.mark.parametrize(
    ("version", "kind"),
    [("535.261.03", PROPRIETARY), ("555.58.02", PROPRIETARY), ("560.28.03", OPEN), ("999.10.01", OPEN)],
)
def test_auto_is_open_from_560_on(tmp_path: Path, version: str, kind: str) -> None:
    """Where there are both kinds, the branch decides which one is the default."""
    assert find(make_sample_driver(tmp_path / "driver", version=version)).kind == kind


@pytest.mark.parametrize(("version", "kind"), [("535.261.03", OPEN), ("999.10.01", PROPRIETARY)])
def test_auto_takes_what_there_is(tmp_path: Path, version: str, kind: str) -> None:
    """Where there is one kind only, the default is that one."""
    assert find(make_sample_driver(tmp_path / "driver", version=version, kind=kind)).kind == kind


def test_kind_that_is_not_there(tmp_path: Path) -> None:
    """A kind that was asked for by name and is not there is told, with the one that is."""
    driver = make_sample_driver(tmp_path / "driver", kind=OPEN)
    with pytest.raises(SourceError, match="has no proprietary kernel modules, only open ones") as caught:
        find(driver, PROPRIETARY)
    assert str(caught.value.hint).startswith("use --kind open")


def test_modules_of_a_smaller_driver(copy: Path) -> None:
    """Only modules that the source has are named."""
    shutil.rmtree(copy / "kernel-open/nvidia-peermem")
    assert find(copy, OPEN).modules == MODULES[:-1]


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.xz", "tar.zst"])
def test_archives(unpacked_run: Path, tmp_path: Path, suffix: str) -> None:
    """A tar archive, packed in any way or not, gives the driver that its folder gives."""
    archive = pack(unpacked_run, tmp_path / f"driver.{suffix}")
    assert _facts(find(archive, OPEN)) == _facts(find_in_place(unpacked_run, OPEN, tmp_path))


def test_debian_layout(unpacked_run: Path, tmp_path: Path) -> None:
    """Debian's tarballs hold the kernel tree in modules/nvidia-open-kernel or modules/nvidia-kernel."""
    for kind, name in ((OPEN, "nvidia-open-kernel"), (PROPRIETARY, "nvidia-kernel")):
        top = tmp_path / kind / "modules"
        shutil.copytree(unpacked_run / FOLDERS[kind], top / name)
        assert find(top.parent).kind == kind
        assert find(pack(top, tmp_path / f"{name}.tar.xz")).kind == kind


@pytest.mark.parametrize("given", [str.lower, str.upper])
def test_run_file(unpacked_run: Path, tmp_path: Path, given: Callable[[str], str]) -> None:
    """A `.run` whose sha256 is the expected one is unpacked by itself."""
    run = pack_run(unpacked_run, tmp_path / "NVIDIA.run", VERSION)
    digest = hashlib.sha256(run.read_bytes()).hexdigest()
    source = find(run, OPEN, run_sha256=given(digest))
    assert _facts(source) == _facts(find_in_place(unpacked_run, OPEN, tmp_path))


@pytest.mark.parametrize(
    ("expected", "reason"), [(None, "no expected sha256 was given"), ("0" * 64, "0" * 64)]
)
def test_run_file_is_not_executed_unproven(tmp_path: Path, expected: str | None, reason: str) -> None:
    """A `.run` without an expected sha256, or with another, is not executed; what it has is told."""
    run = write_tree(tmp_path, {"evil.run": f"#!/bin/sh\n: > {tmp_path}/EVIL\n"}) / "evil.run"
    found = hashlib.sha256(run.read_bytes()).hexdigest()
    with pytest.raises(SourceError, match=f"{reason}, found {found}") as caught:
        find(run, **({"run_sha256": expected} if expected else {}))
    assert "--run-sha256" in str(caught.value.hint)
    assert not (tmp_path / "EVIL").exists()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'Error in MD5 checksums'; exit 2", "-x ended with 2: Error in MD5 checksums"),
        ("exit 0", "holds no NVIDIA kernel tree"),
        ("kill -9 $$", "did not unpack: .*killed by SIGKILL"),
    ],
)
def test_run_file_that_fails(tmp_path: Path, script: str, message: str) -> None:
    """A `.run` that fails, dies or unpacks nothing is told by what it said."""
    run = write_tree(tmp_path, {"bad.run": f"#!/bin/sh\n{script}\n"}) / "bad.run"
    with pytest.raises(SourceError, match=message):
        find(run, run_sha256=hashlib.sha256(run.read_bytes()).hexdigest())


def test_digest_is_of_the_driver_alone(unpacked_run: Path, tmp_path: Path) -> None:
    """A tree, a tarball and a `.run` of one driver have one digest; modes, times and owners do not count."""
    run = pack_run(unpacked_run, tmp_path / "NVIDIA.run", VERSION)
    moved = Path(shutil.copytree(unpacked_run / "kernel-open", tmp_path / "elsewhere"))
    (moved / "Kbuild").chmod(0o600)
    (moved / "Makefile").touch()
    digests = {
        find_in_place(unpacked_run, OPEN, tmp_path).digest,
        find(pack(unpacked_run, tmp_path / "driver.tar.gz"), OPEN).digest,
        find(run, OPEN, run_sha256=hashlib.sha256(run.read_bytes()).hexdigest()).digest,
        find(moved).digest,
    }
    assert len(digests) == 1


def test_digest_sees_every_change(copy: Path) -> None:
    """Another byte, another name, one file more: each is another digest; undone, it is the first again."""
    tree = copy / "kernel-open"
    digests = [find_in_place(tree, OPEN, copy).digest]
    text = (tree / "nvidia/nv.c").read_text()
    for path, content in (("nvidia/nv.c", text + "\n"), ("nvidia/nv.c", text), ("common/inc/new.h", "")):
        (tree / path).write_text(content)
        digests.append(find_in_place(tree, OPEN, copy).digest)
    (tree / "common/inc/new.h").rename(tree / "common/inc/newer.h")
    digests.append(find_in_place(tree, OPEN, copy).digest)
    assert digests[0] == digests[2]
    assert len(set(digests)) == 4


BUILT = (
    *("nvidia.ko", "nvidia.o", "nvidia.mod", "nvidia.mod.c", "nvidia.mod.o", ".nvidia.ko.cmd"),
    *("nvidia/nv.o", "nvidia/.nv.o.cmd", "nvidia/.nv.o.d", "nvidia/nv-kernel.o", "nvidia/nv-interface.o"),
    *("conftest/functions.h", "conftest/compile-tests/x.h", "Module.symvers", ".Module.symvers.cmd"),
    *("modules.order", ".modules.order.cmd", "nv_compiler.h", ".tmp_versions/x.mod", ".module-common.o"),
)
"""What make leaves in a kernel tree, by kernels from 4.18 to 7.2."""


def test_leftovers_of_make_do_not_count(copy: Path) -> None:
    """A tree in which somebody ran make has the digest of a clean one; none of its objects is a source."""
    clean = find(copy, OPEN)
    write_tree(copy / "kernel-open", dict.fromkeys(BUILT, "stale"))
    dirty = find_in_place(copy, OPEN, copy)
    assert dirty.names == clean.names
    assert dirty.digest == clean.digest


def test_core_objects_missing(copy: Path) -> None:
    """A source without core objects, as the public repository, is told with the files and what to use."""
    remove_core_objects(copy / "kernel-open")
    with pytest.raises(SourceError, match=f"has no core objects.*{CORE_OBJECTS[0]}") as caught:
        find(copy, OPEN)
    assert caught.value.exit_code == 11
    assert "open-gpu-kernel-modules" in str(caught.value.hint)
    assert find_in_place(copy, PROPRIETARY, copy).kind == PROPRIETARY


def test_nothing_there(tmp_path: Path) -> None:
    """A place that does not exist is told by its path."""
    with pytest.raises(SourceError, match=f"no driver source at {tmp_path}/nowhere"):
        find(tmp_path / "nowhere")


@pytest.mark.parametrize("files", [{}, {"readme": "x"}, {"Makefile": "", "Kbuild": ""}])
def test_not_a_source(tmp_path: Path, files: Dict[str, str]) -> None:
    """A folder without a kernel tree says what was looked for."""
    with pytest.raises(SourceError, match=r"Makefile, Kbuild and conftest\.sh") as caught:
        find(write_tree(tmp_path / "folder", files))
    assert "kernel-open" in str(caught.value.hint)


@pytest.mark.parametrize("version", ["", "x", "535", "535.", "535a.1"])
def test_not_nvidias_version(copy: Path, version: str) -> None:
    """A tree whose Kbuild names no version is not NVIDIA's."""
    kbuild = copy / "kernel-open/Kbuild"
    kbuild.write_text(kbuild.read_text().replace(VERSION, version))
    with pytest.raises(SourceError, match="has no NV_VERSION_STRING: this is not NVIDIA's driver"):
        find(copy / "kernel-open")


def test_no_license(copy: Path) -> None:
    """A tree without any license is not NVIDIA's."""
    for path in (copy / "kernel-open/nvidia").glob("*.c"):
        path.write_text(path.read_text().replace("MODULE_LICENSE", "XX"))
    with pytest.raises(SourceError, match="has no MODULE_LICENSE"):
        find(copy / "kernel-open")


def test_several_drivers(unpacked_run: Path, tmp_path: Path) -> None:
    """A folder that holds two drivers is refused with both, instead of one being taken."""
    top = tmp_path / "drivers"
    top.mkdir()
    make_sample_driver(top / "new", version="560.28.03")
    shutil.copytree(unpacked_run, top / "old")
    with pytest.raises(
        SourceError, match=rf"several drivers: 560\.28\.03 in {top}/new.*, {VERSION} in {top}/old"
    ):
        find(top)


@pytest.mark.parametrize("way", sorted(ESCAPES))
def test_archive_that_escapes(tmp_path: Path, way: str) -> None:
    """An archive that leads out of its folder is refused, and nothing is written there."""
    folder = tmp_path / "in"
    folder.mkdir()
    with pytest.raises(SourceError, match=r"evil\.tar\.xz") as caught:
        find(pack_escaping(folder / "evil.tar.xz", way))
    assert caught.value.exit_code == 11
    assert not list(tmp_path.rglob("escaped"))


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.xz", "tar.zst"])
@pytest.mark.parametrize("damage", ["cut", "garbage", "empty"])
def test_damaged_archive(unpacked_run: Path, tmp_path: Path, suffix: str, damage: str) -> None:
    """An archive that is cut short, no archive, or empty is told with its path."""
    archive = pack(unpacked_run / "kernel-open", tmp_path / f"driver.{suffix}")
    data = archive.read_bytes()
    archive.write_bytes({"cut": data[: len(data) // 2], "garbage": b"no archive" * 99, "empty": b""}[damage])
    with pytest.raises(SourceError, match=f"driver.{suffix}"):
        find(archive)


def test_unreadable_source(copy: Path) -> None:
    """A file that cannot be read (here a folder in its place) ends with its path, not with a traceback."""
    source = find(copy, OPEN)
    (copy / "kernel-open/nvidia/nv.c").unlink()
    with pytest.raises(SourceError, match=r"cannot be read: .*nvidia/nv\.c"):
        source.digest  # noqa: B018


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_unreadable_for_this_user(copy: Path) -> None:
    """A source that this user may not read is told as such."""
    child = os.fork()
    if not child:
        os.setuid(65534)
        try:
            find_in_place(copy, OPEN, copy)
        except SourceError as error:
            os._exit(0 if "Permission denied" in str(error) else 2)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_neither_folder_nor_file(tmp_path: Path) -> None:
    """A pipe is not waited for."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match="neither a folder nor a file"):
        find(tmp_path / "pipe")


def find_in_place(place: Path, kind: str, beside: Path) -> Source:
    """`open_source` of a folder, which needs no place to unpack to."""
    return open_source(place, kind, beside / "unused", COMMANDS)


def _facts(source: Source) -> tuple[object, ...]:
    return source.version, source.kind, source.modules, source.names, source.digest


def test_a_loop_of_links_is_no_source(tmp_path: Path) -> None:
    """A link that leads to itself is passed over, and what is left is judged as ever."""
    place = tmp_path / "loop"
    place.mkdir()
    (place / "kernel-open").symlink_to("kernel-open")
    with pytest.raises(SourceError, match="holds no NVIDIA kernel tree"):
        find(place)
