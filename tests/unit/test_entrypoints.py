"""The shell programs of container/: the operator's names and verbs, in every shell that an image may have."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence, Tuple

import pytest

CONTAINER = Path(__file__).parents[2] / "container"
SHELLS = (["dash"], ["bash", "--posix"], ["bash"], ["busybox", "sh"])
TOOLS = ("sh", "cat", "chmod", "cut", "date", "df", "dirname", "mktemp", "mv", "rm", "sleep", "sort", "tr")
PYZ = """\
import json, os, sys
found = {name: os.environ.get(name) for name in ("SHIV_ROOT", "NVDRIVER_TOOLKIT_DIR", "HOSTILE")}
json.dump({"argv": sys.argv, "isolated": sys.flags.isolated, **found}, sys.stdout)
"""
"""Stands for the bundle, which is run like any Python file."""
DRIVER = """\
#!/bin/sh
printf '%s\\n' "$*" "${NVDRIVER_TOOLKIT_DIR-}" "${NVDRIVER_JOBS-}"
"""
"""Stands for nvdriver-build in the image: tells its words and its environment."""
HOSTILE = """'"; touch hacked; $(touch hacked) `touch hacked`\n#"""


@pytest.fixture(params=SHELLS, ids=" ".join)
def shell(request: pytest.FixtureRequest) -> List[str]:
    """A shell, and its argument."""
    words: List[str] = list(request.param)
    place = shutil.which(words[0])
    if place is None:
        pytest.skip(f"this machine has no {words[0]}")
    return [place, *words[1:]]


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """The shared folder as the driver container prepares it."""
    folder = tmp_path / "shared folder"
    folder.mkdir()
    shutil.copy(CONTAINER / "ocp_dtk_entrypoint", folder)
    (folder / "nvdriver-build.pyz").write_text(PYZ)
    return folder


def programs(folder: Path, **scripts: str) -> Path:
    """A folder for PATH with the usual tools, and these programs; `_` in a name stands for a dot."""
    folder.mkdir()
    for name in TOOLS:
        found = shutil.which(name)
        assert found is not None
        (folder / name).symlink_to(found)
    for name, script in scripts.items():
        program = folder / name.replace("_", ".")
        program.write_text(script)
        program.chmod(0o755)
    return folder


def real_python() -> str:
    return f'#!/bin/sh\nexec {sys.executable} "$@"\n'


def old_python(version: str) -> str:
    """A Python that fails what it is asked for, and tells its version."""
    return f"#!/bin/sh\n[ \"$1\" != -V ] || {{ cat <<'END'\nPython {version}\nEND\nexit 0; }}\nexit 1\n"


def environment(path: Path, **more: str) -> Dict[str, str]:
    return {"PATH": str(path), "HOME": str(path.parent / "home"), **more}


def run(argv: Sequence[object], env: Dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in argv],
        env=env,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@contextlib.contextmanager
def idling(
    argv: Sequence[object], env: Dict[str, str], cwd: Path
) -> Iterator[Tuple[Path, subprocess.Popen[bytes]]]:
    """The program while it idles; its log. It has to live on, and to end with 143 at SIGTERM."""
    log = cwd / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [str(word) for word in argv], env=env, cwd=cwd, stderr=file, start_new_session=True
        )
    try:
        until = time.monotonic() + 60
        while not any("sleep 86400" in args for args in members(process.pid)):
            assert process.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.02)
        yield log, process
        process.terminate()
        assert process.wait(60) == 143
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def toolkit(shell: Sequence[object], shared: Path) -> List[object]:
    """The command of the Driver Toolkit container."""
    return [*shell, shared / "ocp_dtk_entrypoint", "dtk-build-driver"]


def test_the_toolkits_end_is_started(shell: List[str], shared: Path, tmp_path: Path) -> None:
    """With the first Python, isolated from its environment; unpacked into the shared folder."""
    env = environment(programs(tmp_path / "bin", python3=real_python()), HOSTILE=HOSTILE)
    done = run(toolkit(shell, shared), env, tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "argv": [str(shared / "nvdriver-build.pyz"), "dtk-build"],
        "isolated": 1,
        "SHIV_ROOT": f"{shared}/.python-{Path('/proc/sys/kernel/random/boot_id').read_text()[:8]}",
        "NVDRIVER_TOOLKIT_DIR": str(shared),
        "HOSTILE": HOSTILE,
    }
    assert not (tmp_path / "home").exists() and not list(tmp_path.rglob("hacked"))
    assert sorted(path.name for path in shared.iterdir()) == ["nvdriver-build.pyz", "ocp_dtk_entrypoint"]


def test_a_prebuild_in_the_toolkit(shell: List[str], shared: Path, tmp_path: Path) -> None:
    """The words are those of `build`; nothing of them is executed, and its exit code is the Job's."""
    words = ["--headers", "/", "--source", HOSTILE]
    bin = programs(tmp_path / "bin", python3=real_python())
    done = run([*shell, shared / "ocp_dtk_entrypoint", "dtk-prebuild", *words], environment(bin), tmp_path)
    assert json.loads(done.stdout)["argv"][1:] == ["build", *words]
    assert not list(tmp_path.rglob("hacked"))
    (shared / "nvdriver-build.pyz").write_text("raise SystemExit(12)")
    done = run([*shell, shared / "ocp_dtk_entrypoint", "dtk-prebuild"], environment(bin), tmp_path)
    assert done.returncode == 12
    without = environment(programs(tmp_path / "none"))
    done = run([*shell, shared / "ocp_dtk_entrypoint", "dtk-prebuild"], without, tmp_path)
    assert done.returncode == 10 and "no Python 3.9" in done.stderr and "hint: " in done.stderr


def test_a_later_python_is_found(shell: List[str], shared: Path, tmp_path: Path) -> None:
    """RHEL 8's python3 is 3.6; a toolkit may have a later one beside it."""
    bin = programs(tmp_path / "bin", python3=old_python("3.6.8"), python3_12=real_python())
    done = run(toolkit(shell, shared), environment(bin), tmp_path)
    assert done.returncode == 0 and "/bin/python3.12" in done.stderr


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({}, "found: none"),
        ({"python3": old_python("3.6.8")}, "found: Python 3.6.8"),
        (
            {"python3": old_python("3.6.8"), "python3_9": old_python("3.9.2")},
            "found: Python 3.6.8, Python 3.9.2",
        ),
        (
            {"python3": old_python('3.6 "$(touch hacked)" \\\\n `touch hacked`')},
            "found: Python 3.6 touch hacked",
        ),
    ],
    ids=["none", "old", "without-library", "hostile"],
)
def test_no_fitting_python(
    shell: List[str], shared: Path, tmp_path: Path, found: Dict[str, str], told: str
) -> None:
    """The driver container is told by a whole JSON document within a second, and the container idles."""
    env = environment(programs(tmp_path / "bin", **found))
    began = time.time()
    with idling(toolkit(shell, shared), env, tmp_path) as (log, _):
        document: Any = json.loads((shared / "toolkit.json").read_text())
        assert (shared / "toolkit.json").stat().st_mtime - began < 2
        assert document["schema"] == 1 and document["tool"] is None
        assert document["instance"].startswith("sh-")
        error = document["error"]
        assert (error["code"], error["kind"]) == (10, "HeadersError")
        assert (
            "the Driver Toolkit has no Python 3.9 or later" in error["message"] and told in error["message"]
        )
        assert "RHEL 9" in error["hint"]
        assert error["message"] in log.read_text()
    assert not list(tmp_path.rglob("hacked"))
    assert sorted(path.name for path in shared.iterdir()) == [
        "nvdriver-build.pyz",
        "ocp_dtk_entrypoint",
        "toolkit.json",
    ]


def test_image_missing(shell: List[str], shared: Path, tmp_path: Path) -> None:
    """With RHCOS_IMAGE_MISSING=true our own image stands in the toolkit's place: it says so and idles."""
    env = environment(programs(tmp_path / "bin"), RHCOS_IMAGE_MISSING="true", RHCOS_VERSION=HOSTILE)
    with idling(toolkit(shell, shared), env, tmp_path) as (log, _):
        assert "no Driver Toolkit image" in log.read_text()
        assert not (shared / "toolkit.json").exists()
    assert not list(tmp_path.rglob("hacked"))


def test_idling_costs_nothing_and_leaves_nothing(shared: Path, tmp_path: Path) -> None:
    """It sleeps in one process, which goes with it."""
    env = environment(programs(tmp_path / "bin"), RHCOS_IMAGE_MISSING="true")
    with idling(toolkit([shutil.which("sh")], shared), env, tmp_path) as (_, process):
        group = os.getpgid(process.pid)
        assert len(members(group)) == 2
    assert members(group) == []


def members(group: int) -> List[str]:
    done = subprocess.run(["ps", "-e", "-o", "pgid=,stat=,args="], capture_output=True, text=True, check=True)
    rows = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    return [row[2] for row in rows if int(row[0]) == group and not row[1].startswith("Z")]


def in_namespace(
    script: str, argv: Sequence[object], env: Dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """A command after a script that mounts what it likes; "$@" is the command."""
    words = ["unshare", "-m", "--propagation", "private"]
    if subprocess.run([*words, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs a mount namespace")
    env = {**env, "PATH": f"{env['PATH']}:/usr/sbin:/usr/bin:/sbin:/bin"}
    return run([*words, "sh", "-euc", script, "-", *argv], env, Path("/"))


def test_shared_folder_is_noexec(shell: List[str], shared: Path, tmp_path: Path) -> None:
    """The bundle is unpacked elsewhere, where a program has been run: its psutil has to be mapped."""
    env = environment(programs(tmp_path / "bin", python3=real_python()))
    script = f"mount --bind '{shared}' '{shared}'; mount -o remount,bind,noexec '{shared}'; exec \"$@\""
    done = in_namespace(script, toolkit(shell, shared), env)
    assert done.returncode == 0, done.stderr
    root = json.loads(done.stdout)["SHIV_ROOT"]
    assert root.startswith("/tmp/nvdriver-build.")
    assert sorted(path.name for path in shared.iterdir()) == ["nvdriver-build.pyz", "ocp_dtk_entrypoint"]
    Path(root).rmdir()


def test_no_folder_to_unpack_to(shell: List[str], shared: Path, tmp_path: Path) -> None:
    """Where every folder is noexec or full, the driver container is told like of a missing Python."""
    env = environment(programs(tmp_path / "bin", python3=real_python()))
    script = f"""\
        for folder in '{shared}' /tmp; do
            mount --bind "$folder" "$folder"
            mount -o remount,bind,noexec "$folder"
        done
        for folder in /var/tmp /run; do mount -t tmpfs -o noexec none $folder; done
        mount -t tmpfs -o size=4m none /dev/shm
        "$@" &
        until [ -e '{shared}/toolkit.json' ]; do sleep 0.05; done
        kill $!
        wait $!"""
    done = in_namespace(script, toolkit(shell, shared), env)
    assert done.returncode == 143, done.stderr
    error = json.loads((shared / "toolkit.json").read_text())["error"]
    assert error["code"] == 10 and "nowhere to unpack to" in error["message"]


def test_a_folder_that_is_freed_is_used(shell: List[str], shared: Path, tmp_path: Path) -> None:
    """A full folder is freed at times: the toolkit's end starts then, without a restart of its container."""
    env = environment(programs(tmp_path / "bin", python3=real_python()))
    script = f"""\
        mount --bind /tmp /tmp
        mount -o remount,bind,noexec /tmp
        for folder in /var/tmp /run; do mount -t tmpfs -o noexec none $folder; done
        mount -t tmpfs -o size=4m none /dev/shm
        "$@" &
        until [ -e '{shared}/toolkit.json' ]; do sleep 0.05; done
        mount -o remount,size=200m /dev/shm
        wait $!"""
    done = in_namespace(script, toolkit(shell, shared), env)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["SHIV_ROOT"].startswith("/dev/shm/nvdriver-build.")


def installed(folder: Path) -> Path:
    """The three programs as in /usr/local/bin, the command itself a stand-in."""
    folder.mkdir()
    for name in ("ocp_dtk_entrypoint", "nvidia-driver"):
        shutil.copy(CONTAINER / name, folder)
    (folder / "nvdriver-build").write_text(DRIVER)
    (folder / "nvdriver-build").chmod(0o755)
    return folder


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["ocp_dtk_entrypoint", "nv-ctr-run-with-dtk"], ["run", "/mnt/shared-nvidia-driver-toolkit", ""]),
        (["nvidia-driver", "init"], ["run", "", ""]),
        (["nvidia-driver", "load"], ["run", "", ""]),
        (["nvidia-driver", "init", "-a", "-m", "7"], ["run", "", "7"]),
        (["nvidia-driver", "init", "--accept-license", "-m", "$(touch x)"], ["run", "", "$(touch x)"]),
        (["nvidia-driver", "init", "--max-threads=7"], ["run", "", "7"]),
        (["nvidia-driver", "init", "-m7"], ["run", "", "7"]),
        (["nvidia-driver", "reload_nvidia_peermem"], ["peermem reload", "", ""]),
        (["nvidia-driver", "probe_nvidia_peermem"], ["peermem probe", "", ""]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)  # fmt: skip
def test_verbs(shell: List[str], tmp_path: Path, words: List[str], told: List[str]) -> None:
    """Each of the operator's verbs leads into nvdriver-build."""
    place = installed(tmp_path / "local bin")
    done = run([*shell, place / words[0], *words[1:]], {"PATH": "/usr/bin:/bin"}, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == told
    assert not list(tmp_path.rglob("x"))


def test_shared_folder_elsewhere(shell: List[str], tmp_path: Path) -> None:
    """DRIVER_TOOLKIT_SHARED_DIR is NVIDIA's name for it; it is passed on, not executed."""
    place = installed(tmp_path / "bin")
    env = {"PATH": "/usr/bin:/bin", "DRIVER_TOOLKIT_SHARED_DIR": "/srv/$(touch hacked) 'x"}
    done = run([*shell, place / "ocp_dtk_entrypoint", "nv-ctr-run-with-dtk"], env, tmp_path)
    assert done.stdout.splitlines()[1] == env["DRIVER_TOOLKIT_SHARED_DIR"]
    assert not list(tmp_path.rglob("hacked"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nvidia-driver"], "the verb is ''"),
        (["nvidia-driver", "update"], "'update' makes a driver image"),
        (["nvidia-driver", "build"], "'build' makes a driver image"),
        (["nvidia-driver", "uninstall"], "the verb is 'uninstall'"),
        (["nvidia-driver", "init", "--kernel", "6.1"], "'--kernel' is no option of init"),
        (["nvidia-driver", "init", "-m"], "--max-threads has no value"),
        (["ocp_dtk_entrypoint"], "the verb is ''"),
        (["ocp_dtk_entrypoint", "$(touch hacked)"], "the verb is '$(touch hacked)'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_words(shell: List[str], tmp_path: Path, words: List[str], told: str) -> None:
    """Exit 2, with what was said and a hint."""
    place = installed(tmp_path / "bin")
    done = run([*shell, place / words[0], *words[1:]], {"PATH": "/usr/bin:/bin"}, tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert told in done.stderr and "hint: " in done.stderr
    assert not list(tmp_path.rglob("hacked"))


def test_started_by_name(tmp_path: Path) -> None:
    """The operator names the program only: it is found on PATH, and finds the command beside it."""
    place = installed(tmp_path / "bin")
    env = {"PATH": f"{place}:/usr/bin:/bin"}
    done = subprocess.run(
        ["nvidia-driver", "init"], env=env, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[0] == "run"


MANAGER = '#!/bin/sh\nprintf "%s " "${0##*/}" "$@" >>"$RECORD"; echo >>"$RECORD"\n'


@pytest.mark.parametrize(
    ("manager", "told"),
    [
        ("microdnf", "--nodocs --setopt=install_weak_deps=0 kmod openssl procps-ng util-linux zstd "),
        ("dnf", "--nodocs --setopt=install_weak_deps=0 kmod openssl procps-ng util-linux zstd "),
        ("apt-get", "--no-install-recommends kmod mount openssl procps util-linux zstd "),
    ],
)
@pytest.mark.parametrize("shell", SHELLS[:3], ids=" ".join, indirect=True)  # busybox has a mount of its own
def test_what_the_base_lacks_is_installed(shell: List[str], tmp_path: Path, manager: str, told: str) -> None:
    """While the image is built, in the names of the base's package manager, and nothing that is there."""
    bin = programs(tmp_path / "bin", python3=real_python(), bash="", chroot="", **{manager: MANAGER})
    env = environment(bin, RECORD=str(tmp_path / "record"))
    done = run([*shell, CONTAINER / "install-programs", tmp_path], env, tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"install -y {told}\n" in (tmp_path / "record").read_text()


@pytest.mark.parametrize("shell", SHELLS[:3], ids=" ".join, indirect=True)
def test_a_base_without_package_manager(shell: List[str], tmp_path: Path) -> None:
    """What it lacks ends the build of the image, by name."""
    bin = programs(
        tmp_path / "bin",
        python3=real_python(),
        bash="",
        chroot="",
        ps="",
        openssl="",
        mount="",
        prlimit="",
        zstd="",
    )
    done = run([*shell, CONTAINER / "install-programs", tmp_path], environment(bin), tmp_path)
    assert done.returncode == 1
    assert "the base image lacks kmod and has no package manager" in done.stderr and "hint:" in done.stderr
