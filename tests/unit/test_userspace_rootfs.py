"""The driver's root file system: real mounts, in mount namespaces of their own."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import List, Tuple

import pytest
from mount_namespaces import in_container, in_host, mount, mountinfo, points, shared_folder

from nvdriver_build.commands import DEFAULT_PATH, SystemCommands
from nvdriver_build.errors import InUseError, LoadError, UsageError
from nvdriver_build.userspace.rootfs import mount_root, unmount_root

PROC = Path("/proc")
COMMANDS = SystemCommands()

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")


def up(place: Path) -> None:
    mount_root(place, COMMANDS, PROC)


def down(place: Path) -> bool:
    return unmount_root(place, COMMANDS, PROC)


def nvidia(place: Path) -> None:
    """What NVIDIA's container does."""
    place.mkdir(exist_ok=True)
    mount("--make-runbindable", "/sys")
    mount("--make-private", "/sys")
    mount("--rbind", "/", place)


def programs(folder: Path, **scripts: str) -> SystemCommands:
    """Programs in front of the real ones."""
    folder.mkdir(exist_ok=True)
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    return SystemCommands(f"{folder}:{DEFAULT_PATH}")


@needs_root
@pytest.mark.parametrize("shared_root", [False, True], ids=["private-root", "shared-root"])
def test_root_is_seen_by_host_and_container_and_goes_from_both(tmp_path: Path, shared_root: bool) -> None:
    """Both see one whole root, /sys in it without its submounts; afterwards every mount is as before."""
    place = tmp_path / "run" / "driver"

    def container() -> None:
        before = mountinfo()
        up(place)
        assert points(place).count(str(place)) == 1
        assert (place / "proc/self").exists()
        assert (place / "sys/module").is_dir()
        assert not [point for point in points(place) if point.startswith(f"{place}/sys/")]
        subprocess.run(("chroot", place, "/bin/sh", "-c", "exit 0"), check=True)
        with_root = points(place)
        up(place)
        assert points(place) == with_root
        assert down(place) is True
        assert mountinfo() == before
        assert down(place) is False
        up(place)

    def host() -> None:
        shared_folder(tmp_path / "run")
        before = mountinfo()
        assert in_container(container, shared_root=shared_root) == 0
        assert points(place).count(str(place)) == 1  # it outlives its container
        assert (place / "etc/passwd").exists()
        assert down(place) is True
        assert mountinfo() == before

    in_host(host)


@needs_root
def test_modules_stand_in_the_root_alone(tmp_path: Path) -> None:
    """Our lib/modules/R is seen at its place in the root, by way of links too, and nowhere else."""
    place, ours = tmp_path / "run" / "driver", tmp_path / "ours"
    (tmp_path / "usr-lib").mkdir()
    (tmp_path / "lib").symlink_to(tmp_path / "usr-lib")
    spot = tmp_path / "lib" / "modules" / "6.1"
    ours.mkdir()
    (ours / "modules.dep").touch()

    def host() -> None:
        shared_folder(tmp_path / "run")
        before = mountinfo()
        mount("--make-shared", "/")
        mount_root(place, COMMANDS, PROC, (ours, spot))
        assert Path(f"{place}{spot.resolve()}/modules.dep").exists()
        assert list(spot.iterdir()) == []
        down(place)
        mount("--make-private", "/")
        assert mountinfo() == before

    in_host(host)


@needs_root
@pytest.mark.parametrize("times", [1, 3])
def test_leftovers_of_nvidias_container_are_taken_away(tmp_path: Path, times: int) -> None:
    """What NVIDIA's container left, even on top of another's, goes; afterwards the host is as before."""
    place = tmp_path / "run" / "driver"

    def container() -> None:
        up(place)
        assert points(place).count(str(place)) == 1

    def host() -> None:
        shared_folder(tmp_path / "run")
        before = mountinfo()
        for _ in range(times):
            assert in_container(lambda: nvidia(place), shared_root=True) == 0
        assert points(place).count(str(place)) == times
        assert in_container(container) == 0
        assert points(place).count(str(place)) == 1
        assert in_container(lambda: down(place)) == 0
        assert mountinfo() == before

    in_host(host)


@needs_root
def test_shared_leftover_is_refused_before_it_takes_proc_along(tmp_path: Path) -> None:
    """A root that was bound from shared mounts of this namespace is left, since /proc would go with it."""
    place = tmp_path / "run" / "driver"

    def host() -> None:
        shared_folder(tmp_path / "run")
        mount("--make-rshared", "/")
        nvidia(place)
        before = mountinfo()
        for act in (up, down):
            with pytest.raises(InUseError, match=r"would unmount .*/proc.* as well") as error:
                act(place)
            assert error.value.hint
        assert mountinfo() == before

    in_host(host)


@needs_root
def test_neighbour_that_nvidias_container_shares_is_named_and_kept(tmp_path: Path) -> None:
    """Another mount in /run/nvidia that would go with NVIDIA's is named; without it the root goes."""
    place, neighbour = tmp_path / "run" / "driver", tmp_path / "run" / "mps"

    def container() -> None:
        with pytest.raises(InUseError, match=f"would unmount {neighbour} as well"):
            up(place)

    def host() -> None:
        shared_folder(tmp_path / "run")
        neighbour.mkdir()
        mount("-t", "tmpfs", "mps", neighbour)
        assert in_container(lambda: nvidia(place), shared_root=True) == 0
        assert in_container(container) == 0
        assert points(neighbour) == (str(neighbour),)
        subprocess.run(("umount", neighbour), check=True)
        assert in_container(lambda: up(place)) == 0
        assert points(place).count(str(place)) == 1

    in_host(host)


@needs_root
def test_neighbour_of_our_own_root_is_not_touched(tmp_path: Path) -> None:
    """Our root shares nothing: other mounts in /run/nvidia outlive it, those made before and after it."""
    place, early, late = (tmp_path / "run" / name for name in ("driver", "early", "late"))

    def host() -> None:
        shared_folder(tmp_path / "run")
        for folder in (early, late):
            folder.mkdir()
        mount("-t", "tmpfs", "early", early)
        assert in_container(lambda: up(place), shared_root=True) == 0
        mount("-t", "tmpfs", "late", late)
        assert in_container(lambda: down(place), shared_root=True) == 0
        assert points(tmp_path / "run") == tuple(map(str, (tmp_path / "run", early, late)))

    in_host(host)


@needs_root
def test_busy_root_goes_all_the_same(tmp_path: Path) -> None:
    """A process that works in the root does not keep it mounted, and keeps its folder."""
    place = tmp_path / "run" / "driver"

    def host() -> None:
        shared_folder(tmp_path / "run")
        up(place)
        with subprocess.Popen(("sleep", "60"), cwd=place / "dev") as worker:
            assert down(place) is True
            assert points(place) == ()
            assert Path(f"/proc/{worker.pid}/cwd/null").exists()
            worker.kill()

    in_host(host)


@needs_root
def test_place_with_blanks_and_links(tmp_path: Path) -> None:
    """A path with blanks, a backslash and a newline in it, by way of a link, is a path like any other."""
    run = tmp_path / "a\\040 b\n#c"
    link = tmp_path / "link"
    link.symlink_to(run)

    def host() -> None:
        shared_folder(run)
        before = mountinfo()
        up(link / "dri ver")
        assert (run / "dri ver" / "etc").is_dir()
        up(link / "dri ver")
        assert down(run / "dri ver") is True
        assert mountinfo() == before

    in_host(host)


@needs_root
def test_mounts_below_a_bare_place_go(tmp_path: Path) -> None:
    """What is mounted in a folder that is no mount itself goes too; a sibling with a longer name stays."""
    place, sibling = tmp_path / "run" / "driver", tmp_path / "run" / "driver2"

    def host() -> None:
        shared_folder(tmp_path / "run")
        for folder in (place / "dev", place / "lib", sibling):
            folder.mkdir(parents=True)
            mount("-t", "tmpfs", "left", folder)
        assert down(place) is True
        assert points(tmp_path / "run") == (str(tmp_path / "run"), str(sibling))

    in_host(host)


@needs_root
def test_root_that_is_covered_goes_too(tmp_path: Path) -> None:
    """What somebody mounted on top of a root goes first, since it hides what is mounted in the root."""
    place = tmp_path / "run" / "driver"

    def host() -> None:
        shared_folder(tmp_path / "run")
        before = mountinfo()
        up(place)
        mount("-t", "tmpfs", "cover", place)
        assert down(place) is True
        assert mountinfo() == before

    in_host(host)


@needs_root
def test_crash_between_any_two_steps_leaves_a_whole_root_or_none(tmp_path: Path) -> None:
    """The shell that takes the steps dies before each of them; what is there is none or whole, then one."""
    place, log = tmp_path / "run" / "driver", tmp_path / "log"
    steps: List[Tuple[int, int]] = []

    def dies_before(step: int) -> SystemCommands:
        log.write_text("")
        lines = f"echo >>{log}; [ $(wc -l <{log}) -ne {step} ] || {{ kill -KILL $PPID; exit 1; }}"
        return programs(tmp_path / "bin", mount=f'{lines}\nexec /bin/mount "$@"')

    def container(step: int) -> None:
        commands = dies_before(step)
        mount_root(place, commands, PROC, (tmp_path / "ours", tmp_path / "spot"))

    def host() -> None:
        shared_folder(tmp_path / "run")
        before = mountinfo()
        for step in range(1, 20):
            status = in_container(lambda: container(step))  # noqa: B023
            steps.append((step, status))
            assert points(place).count(str(place)) == (1 if status == 0 else 0)
            assert in_container(lambda: up(place)) == 0
            assert points(place).count(str(place)) == 1
            assert in_container(lambda: down(place)) == 0
            assert mountinfo() == before
            if status == 0:
                break
        assert steps == [(1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, -signal.SIGKILL), (7, 0)]

    (tmp_path / "ours").mkdir()
    in_host(host)


@needs_root
def test_crash_while_unmounting_is_made_good_by_the_next(tmp_path: Path) -> None:
    """Where unmounting ended halfway, the next one takes the rest away."""
    place = tmp_path / "run" / "driver"

    def host() -> None:
        shared_folder(tmp_path / "run")
        before = mountinfo()
        up(place)
        up_points = points(place)
        for point in reversed(up_points[len(up_points) // 2 :]):
            subprocess.run(("umount", "-l", point), check=True)
        assert points(place)
        up(place)
        assert points(place) == up_points
        down(place)
        assert mountinfo() == before

    in_host(host)


@needs_root
def test_place_that_no_host_would_see_is_refused(tmp_path: Path) -> None:
    """Where the folder above is not shared, nothing is mounted, and the hint names Bidirectional."""
    place = tmp_path / "run" / "driver"

    def host() -> None:
        mount("-t", "tmpfs", "private", tmp_path)
        before = mountinfo()
        with pytest.raises(LoadError, match=f"{tmp_path} is not shared") as error:
            up(place)
        assert "Bidirectional" in str(error.value.hint)
        assert mountinfo() == before

    in_host(host)


@needs_root
def test_refusals_are_told_in_the_programs_words(tmp_path: Path) -> None:
    """A mount or umount that is refused, or not there, is an error with its words and a hint."""
    place = tmp_path / "run" / "driver"
    commands = programs(
        tmp_path / "bin", mount="echo mount: permission denied; exit 32", umount="echo no; exit 1"
    )

    def host() -> None:
        shared_folder(tmp_path / "run")
        with pytest.raises(LoadError, match=r"was not mounted at .*: mount: permission denied") as error:
            mount_root(place, commands, PROC)
        assert "privileged" in str(error.value.hint)
        up(place)
        with pytest.raises(LoadError, match=f"{place} cannot be unmounted: no"):
            unmount_root(place, commands, PROC)
        with pytest.raises(LoadError, match=r"umount: no such program"):
            unmount_root(place, SystemCommands(str(tmp_path)), PROC)
        down(place)

    in_host(host)


@pytest.mark.parametrize(
    "place",
    [
        "/",
        "/run",
        "run/driver",
        "/usr/driver",
        "/proc/1/root",
        "/run/nvidia/../../etc/x",
        "{}/loop",
        "{}/usr",
    ],
)
def test_place_that_cannot_be_meant_is_refused(place: str, tmp_path: Path) -> None:
    """The system's own folders, by links too, and a path without a root are no place; nothing is started."""
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "usr").symlink_to("/usr/lib")
    place = place.format(tmp_path)
    with pytest.raises(UsageError, match="is no place for the driver's root file system"):
        unmount_root(Path(place), SystemCommands(str(tmp_path)), PROC)


def test_missing_proc_is_told(tmp_path: Path) -> None:
    """Without /proc nobody knows what is mounted."""
    with pytest.raises(LoadError, match=r"cannot read .*mountinfo: No such file") as error:
        unmount_root(tmp_path / "run" / "driver", COMMANDS, tmp_path)
    assert error.value.hint


def test_nothing_is_started_where_nothing_is_mounted(tmp_path: Path) -> None:
    """Without a mount at the place or below, there is nothing to run."""
    assert unmount_root(tmp_path / "driver", SystemCommands(str(tmp_path)), PROC) is False
