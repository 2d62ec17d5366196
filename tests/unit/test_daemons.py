"""The daemons of a driver: started, looked after, ended; and everything that can go wrong with each."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Iterator, List, Optional

import psutil
import pytest
import structlog
from attrs import evolve
from fake_daemons import PATH, FakeDaemon, eventually, runs
from trees import write_tree

from nvdriver_build.cli import driver
from nvdriver_build.cli.progress import BuildProgress
from nvdriver_build.cli.signals import StopFlag
from nvdriver_build.commands import SystemCommands
from nvdriver_build.config import read_config
from nvdriver_build.errors import LoadError, Stopped, UsageError
from nvdriver_build.loader.host import Host
from nvdriver_build.node.userland import NodeUserland
from nvdriver_build.userspace.daemons import DAEMONS, Supervisor, launch
from nvdriver_build.userspace.daemons import supervisor as supervision
from nvdriver_build.userspace.daemons.processes import named_in

PERSISTENCED, FABRIC_MANAGER = DAEMONS
CHECK_LIMIT = 1.0
"""Seconds that a look may take: it takes 2 ms, but the machine may be busy."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def persistenced(root: Path) -> Iterator[FakeDaemon]:
    """A persistenced that is in the image."""
    daemon = FakeDaemon(root, PERSISTENCED.program, root / PERSISTENCED.pid_file)
    daemon.install()
    yield daemon
    daemon.clean()


@pytest.fixture
def fabric_manager(root: Path) -> Iterator[FakeDaemon]:
    """A fabric manager that is in the image, on a node with an NVSwitch."""
    write_tree(
        root, {"proc/driver/nvidia-nvswitch/devices/0000:00:05.0": "", f"{FABRIC_MANAGER.config}": "A=1\n"}
    )
    daemon = FakeDaemon(root, FABRIC_MANAGER.program, root / FABRIC_MANAGER.pid_file)
    daemon.install()
    yield daemon
    daemon.clean()


def make(root: Path, **options: Any) -> Supervisor:
    """A supervisor whose machine is below `root`, and who is less patient than the real one."""
    options = {"grace": 0.5, "pid_patience": 1.0, **options}
    commands = options.pop("commands", SystemCommands(f"{root}/bin:{PATH}"))
    return Supervisor(Host(root / "proc", root / "sys", root / "dev"), commands, root, **options)


def look(supervisor: Supervisor) -> List[str]:
    """What `check` says; it has to say it at once."""
    started = time.monotonic()
    told = supervisor.check()
    assert time.monotonic() - started < CHECK_LIMIT
    return list(told)


def test_start_and_stop(root: Path, persistenced: FakeDaemon) -> None:
    """A daemon runs on after its start, is not down, and is gone with its pid file after the end."""
    supervisor = make(root)
    assert supervisor.start() == ("nvidia-persistenced",)
    assert persistenced.starts == ["--persistence-mode"]
    assert persistenced.living == [persistenced.pid]
    assert os.getsid(persistenced.pid) != os.getsid(0)
    assert look(supervisor) == []
    supervisor.stop()
    assert persistenced.living == []
    assert not persistenced.pid_file.exists()


def test_pid_written_between_two_looks(
    root: Path, persistenced: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that writes its pid right after it was looked for has not ended."""
    persistenced.plan("no-pid")

    def look_and_miss(file: Path, program: str) -> Optional[psutil.Process]:
        found = named_in(file, program)
        if file == persistenced.pid_file and persistenced.living and not found:
            file.write_text(f"{persistenced.living[0]}\n")
        return found

    monkeypatch.setattr(launch, "named_in", look_and_miss)
    supervisor = make(root)
    assert supervisor.start() == ("nvidia-persistenced",)
    supervisor.stop()
    assert persistenced.living == []


def test_the_real_table_holds_nvidias_commands() -> None:
    """Programs, arguments and files are those of NVIDIA's container."""
    assert PERSISTENCED.command(Path("/")) == ("nvidia-persistenced", "--persistence-mode")
    config = "/usr/share/nvidia/nvswitch/fabricmanager.cfg"
    assert FABRIC_MANAGER.command(Path("/")) == ("nv-fabricmanager", "-c", config)
    assert [f"/{daemon.pid_file}" for daemon in DAEMONS] == [
        "/var/run/nvidia-persistenced/nvidia-persistenced.pid",
        "/var/run/nvidia-fabricmanager/nv-fabricmanager.pid",
    ]


def test_fabric_manager_with_nvswitches_only(
    root: Path, persistenced: FakeDaemon, fabric_manager: FakeDaemon
) -> None:
    """The fabric manager starts, with its configuration, where there is an NVSwitch, and nowhere else."""
    supervisor = make(root)
    assert supervisor.start() == ("nvidia-persistenced", "nv-fabricmanager")
    assert fabric_manager.starts == [f"-c {root / str(FABRIC_MANAGER.config)}"]
    (root / "proc/driver/nvidia-nvswitch/devices/0000:00:05.0").unlink()
    supervisor.stop()
    assert fabric_manager.living == []
    assert supervisor.start() == ("nvidia-persistenced",)
    supervisor.stop()


def test_nvlink5_is_refused(root: Path, persistenced: FakeDaemon) -> None:
    """A node that needs a subnet manager is told so, before anything starts; other InfiniBand is fine."""
    write_tree(root, {"sys/class/infiniband/mlx5_0/device/vpd": "ConnectX-7 PN: MCX75310AAS"})
    supervisor = make(root)
    supervisor.start()
    supervisor.stop()
    write_tree(root, {"sys/class/infiniband/mlx5_4/device/vpd": "\x82 V3SW_MNG \x78"})
    with pytest.raises(UsageError, match=r"NVLink 5 system \(mlx5_4 manages its switches\)") as error:
        supervisor.start()
    assert error.value.hint
    assert len(persistenced.starts) == 1


def test_persistenced_may_be_missing(root: Path) -> None:
    """A driver works without persistenced: that the image lacks it is told, and no more."""
    supervisor = make(root)
    with structlog.testing.capture_logs() as logs:
        assert supervisor.start() == ()
    assert [(entry["log_level"], entry["daemon"]) for entry in logs] == [("warning", "nvidia-persistenced")]
    assert look(supervisor) == []
    supervisor.stop()


def test_fabric_manager_may_not_be_missing(root: Path, fabric_manager: FakeDaemon) -> None:
    """GPUs behind an NVSwitch do not work without a fabric manager: an error with a hint."""
    (root / "bin" / fabric_manager.program).unlink()
    with pytest.raises(LoadError, match="do not work without nv-fabricmanager") as error:
        make(root).start()
    assert error.value.hint


def test_killed_daemon_is_back_within_two_seconds(root: Path, persistenced: FakeDaemon) -> None:
    """The death is told by the next look, and it is taken back once the daemon runs again."""
    supervisor = make(root)
    supervisor.start()
    died = persistenced.pid
    os.kill(died, signal.SIGKILL)
    eventually(lambda: not runs(died))
    assert look(supervisor) == [
        f"nvidia-persistenced is down, restart 1 of at most 5 follows: pid {died} died"
    ]
    assert eventually(lambda: look(supervisor) == []) < 2.0
    assert persistenced.living == [persistenced.pid] != [died]
    supervisor.stop()


def test_daemon_that_dies_for_ever_stays_down(root: Path, persistenced: FakeDaemon) -> None:
    """It is started again as often as there are pauses; then it stays down, and each look says so."""
    supervisor = make(root, pauses=(0.0, 0.1, 0.2))
    supervisor.start()
    persistenced.plan("die")
    os.kill(persistenced.pid, signal.SIGKILL)
    eventually(lambda: "stays down" in "".join(look(supervisor)))
    [told] = look(supervisor)
    assert told.startswith("nvidia-persistenced stays down after 3 restarts in 600 s: ")
    assert "ended right after its start" in told
    time.sleep(0.5)
    assert look(supervisor) == [told]
    assert len(persistenced.starts) == 4
    supervisor.stop()


def test_pauses_grow(root: Path, persistenced: FakeDaemon) -> None:
    """A daemon is not started again before its pause is over."""
    supervisor = make(root, pauses=(0.0, 1.0))
    supervisor.start()
    persistenced.plan("fail")
    os.kill(persistenced.pid, signal.SIGKILL)
    eventually(lambda: "restart 2 of at most 2" in "".join(look(supervisor)))
    failed = time.monotonic()
    persistenced.plan("fail", on=False)
    eventually(lambda: look(supervisor) == [])
    assert time.monotonic() - failed >= 1.0
    supervisor.stop()


def test_old_restarts_do_not_count(
    root: Path, persistenced: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that dies once in a long while is started again each time."""
    monkeypatch.setattr(supervision, "WINDOW", 0.1)
    supervisor = make(root, pauses=(0.0,))
    supervisor.start()
    for _ in range(3):
        time.sleep(0.2)
        os.kill(persistenced.pid, signal.SIGKILL)
        eventually(lambda: look(supervisor) != [])
        eventually(lambda: look(supervisor) == [])
    assert len(persistenced.starts) == 4
    supervisor.stop()


def test_daemon_started_anew_by_another_hand(root: Path, persistenced: FakeDaemon) -> None:
    """Where somebody ended and started it, that one is looked after: no second one is started."""
    supervisor = make(root)
    supervisor.start()
    os.kill(persistenced.pid, signal.SIGTERM)
    eventually(lambda: not persistenced.living)
    subprocess.run((root / "bin" / persistenced.program,), check=True, stdout=subprocess.DEVNULL)
    assert look(supervisor) == []
    assert len(persistenced.starts) == 2
    os.kill(persistenced.pid, signal.SIGKILL)
    eventually(lambda: look(supervisor) != [])
    eventually(lambda: look(supervisor) == [])
    supervisor.stop()
    assert persistenced.living == []


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("fail", r"did not start: exit code 3:\n  looking for GPUs\n  no devices$"),
        ("hang", r"cannot be started: .*not done after 1 s, ended:\n  looking for GPUs$"),
        ("hang-late", r"cannot be started: .*not done after 1 s, ended"),
        (
            "no-pid",
            r"said that it started, but wrote no pid to .*persistenced.pid within 1 s:\n  looking for GPUs$",
        ),
        ("die", r"\(pid \d+\) ended right after its start"),
        ("die-soon", r"\(pid \d+\) ended right after its start"),
    ],
)
def test_daemon_that_does_not_start(root: Path, persistenced: FakeDaemon, word: str, message: str) -> None:
    """Each way in which a start fails is told in its time with what the daemon said; nothing runs on."""
    persistenced.plan(word)
    supervisor = make(root, daemons=(evolve(PERSISTENCED, patience=1.0),))
    started = time.monotonic()
    with pytest.raises(LoadError, match=message) as error:
        supervisor.start()
    assert time.monotonic() - started < 4.0
    assert "journalctl" in str(error.value.hint)
    assert persistenced.living == []
    assert look(supervisor) == []
    supervisor.stop()


def test_not_a_program(root: Path, persistenced: FakeDaemon) -> None:
    """A file that cannot be executed is told as such."""
    (root / "bin" / persistenced.program).write_bytes(b"\x7fELF junk")
    with pytest.raises(LoadError, match=r"nvidia-persistenced cannot be started: .*cannot start"):
        make(root).start()


def test_its_own_log_is_quoted_from_this_start_on(root: Path, fabric_manager: FakeDaemon) -> None:
    """What the fabric manager writes into its log now is told; what an earlier one wrote is not."""
    write_tree(root, {str(FABRIC_MANAGER.log): "old news\n"})
    fabric_manager.plan("log")
    fabric_manager.plan("die")
    supervisor = make(root)
    with pytest.raises(LoadError, match=r"\n  version mismatch$") as error:
        supervisor.start()
    assert "old news" not in str(error.value)


def test_start_that_fails_half_way(root: Path, persistenced: FakeDaemon, fabric_manager: FakeDaemon) -> None:
    """What had started before another one failed is ended by `stop`."""
    fabric_manager.plan("fail")
    supervisor = make(root)
    with pytest.raises(LoadError, match="nv-fabricmanager did not start"):
        supervisor.start()
    assert len(persistenced.living) == 1
    supervisor.stop()
    assert persistenced.living == []


def test_signal_during_the_start(root: Path, persistenced: FakeDaemon) -> None:
    """A signal ends a start that hangs; `stop` then leaves nothing, whether the pid was written or not."""
    for word in ("hang", "hang-late"):
        persistenced.plan(word)
        until = time.monotonic() + 0.7

        def signalled(until: float = until) -> None:
            if time.monotonic() > until:
                raise Stopped(signal.SIGTERM)

        supervisor = make(root, commands=SystemCommands(f"{root}/bin:{PATH}", signalled))
        with pytest.raises(Stopped):
            supervisor.start()
        supervisor.stop()
        assert persistenced.living == []
        assert not persistenced.pid_file.exists()
        persistenced.plan(word, on=False)


class _Signalled(StopFlag):
    """A signal came."""

    def __init__(self) -> None:
        self.signal = signal.SIGTERM


def test_signal_ends_the_start_that_run_waits_for(root: Path, persistenced: FakeDaemon) -> None:
    """The supervisor of `run` starts its daemons by commands that end with a signal."""
    persistenced.plan("hang")
    config = read_config({"PATH": f"{root}/bin:{PATH}", "NVDRIVER_RUN_DIR": str(root / "run/nvidia")})
    userland = driver._node(config, _Signalled(), BuildProgress()).userland
    assert isinstance(userland, NodeUserland)
    supervisor = userland.supervisor
    supervisor.root, supervisor.daemons = root, (evolve(PERSISTENCED, patience=1.0),)
    supervisor.host = Host(root / "proc", root / "sys", root / "dev")
    with pytest.raises(Stopped):
        supervisor.start()
    supervisor.stop()
    assert persistenced.living == []


def test_stop_during_a_restart(root: Path, persistenced: FakeDaemon) -> None:
    """A restart that hangs does not hold up the end, and leaves nothing."""
    supervisor = make(root, grace=5.0)
    supervisor.start()
    persistenced.plan("hang-late")
    os.kill(persistenced.pid, signal.SIGKILL)
    eventually(lambda: look(supervisor) and len(persistenced.living) == 1)
    started = time.monotonic()
    supervisor.stop()
    assert time.monotonic() - started < 4.0
    assert persistenced.living == []
    assert look(supervisor) == []


def test_a_stopped_one_can_start_again(root: Path, persistenced: FakeDaemon) -> None:
    """Unloading a driver that is there and loading another one takes the daemons through both."""
    supervisor = make(root)
    supervisor.stop()
    supervisor.start()
    supervisor.stop()
    assert supervisor.start() == ("nvidia-persistenced",)
    os.kill(persistenced.pid, signal.SIGKILL)
    eventually(lambda: look(supervisor) != [])
    eventually(lambda: look(supervisor) == [])
    supervisor.stop()
    assert persistenced.living == []


def test_deaf_daemon_is_killed(root: Path, persistenced: FakeDaemon) -> None:
    """One that ignores SIGTERM is killed after the grace, and its pid file goes with it."""
    persistenced.plan("deaf")
    supervisor = make(root)
    supervisor.start()
    started = time.monotonic()
    supervisor.stop()
    assert 0.5 <= time.monotonic() - started < 3.0
    assert persistenced.living == []
    assert not persistenced.pid_file.exists()


CRASH = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_daemons import make
make(Path(sys.argv[1])).start()
os.kill(os.getpid(), signal.SIGKILL)
"""


def crash(root: Path) -> None:
    """Let a supervisor start the daemons, and be killed."""
    paths = os.pathsep.join(path for path in sys.path if path)
    argv = (sys.executable, "-c", CRASH, root, Path(__file__).parent)
    ended = subprocess.run(argv, env={"PYTHONPATH": paths}, capture_output=True, timeout=60)
    assert ended.returncode == -signal.SIGKILL, ended.stderr


def test_daemon_of_a_killed_run_is_replaced(root: Path, persistenced: FakeDaemon) -> None:
    """One that a killed run left is ended, and another one started: its state cannot be told."""
    crash(root)
    [left] = persistenced.living
    supervisor = make(root)
    supervisor.start()
    assert persistenced.living == [persistenced.pid] != [left]
    supervisor.stop()


@pytest.mark.parametrize("junk", [None, "", "garbage", "-1\n", "1\n", "99999999999999999999", "4194303\n"])
def test_daemon_of_a_killed_run_is_found_without_its_pid_file(
    root: Path, persistenced: FakeDaemon, junk: str
) -> None:
    """Whatever its pid file says by now, one that we started is found and ended; nobody else is signalled."""
    make(root).start()
    if junk is None:
        persistenced.pid_file.unlink()
    else:
        persistenced.pid_file.write_text(junk)
    persistenced.plan("deaf")  # the next one cannot remove the file itself
    supervisor = make(root, grace=0.2)
    supervisor.start()
    assert persistenced.living == [persistenced.pid]
    assert persistenced.pid_file.read_text() == f"{persistenced.pid}\n"
    supervisor.stop()
    assert persistenced.living == []
    assert not persistenced.pid_file.exists()


def test_pid_is_the_first_line(root: Path, persistenced: FakeDaemon) -> None:
    """NVIDIA's persistenced does not cut what stood in the file: what follows its line is not its pid."""
    supervisor = make(root)
    supervisor.start()
    with persistenced.pid_file.open("a") as file:
        file.write("56\n")
    found = named_in(persistenced.pid_file, persistenced.program)
    assert found is not None
    assert found.pid == persistenced.pid
    supervisor.stop()


@pytest.mark.parametrize("argv", [("sleep", "60"), ("tail", "-f", "nvidia-persistenced")])
def test_another_process_with_its_pid_is_never_signalled(
    root: Path, persistenced: FakeDaemon, argv: List[str]
) -> None:
    """A pid that is another program's by now, even one that names the daemon, is let alone."""
    persistenced.pid_file.parent.mkdir(parents=True)
    (root / "nvidia-persistenced").touch()
    with subprocess.Popen(argv, cwd=root) as stranger:
        try:
            persistenced.pid_file.write_text(f"{stranger.pid}\n")
            supervisor = make(root)
            supervisor.stop()
            assert not persistenced.pid_file.exists()
            persistenced.pid_file.write_text(f"{stranger.pid}\n")
            supervisor.start()
            assert persistenced.living == [persistenced.pid]
            supervisor.stop()
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_daemon_that_names_itself_otherwise_is_known_by_its_program(tmp_path: Path) -> None:
    """A daemon may give its main thread another name (prctl(2), PR_SET_NAME); its program is the proof."""
    program = tmp_path / "nv-fabricmanager"
    shutil.copy("/bin/sh", program)
    script = "printf fm_main >/proc/$$/comm; echo ready; read end"
    with subprocess.Popen((program, "-c", script), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as daemon:
        assert daemon.stdin is not None
        assert daemon.stdout is not None
        daemon.stdout.readline()
        (tmp_path / "pid").write_text(f"{daemon.pid}\n")
        assert psutil.Process(daemon.pid).name() == "fm_main"
        found = named_in(tmp_path / "pid", "nv-fabricmanager")
        assert found is not None
        assert found.pid == daemon.pid
        assert named_in(tmp_path / "pid", "nvidia-persistenced") is None
        daemon.stdin.close()


def test_stop_without_anything_is_quiet(root: Path) -> None:
    """Nothing runs, nothing was ever started: nothing is told."""
    with structlog.testing.capture_logs() as logs:
        make(root).stop()
    assert logs == []


FIRST = """
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_daemons import look, make
assert os.getpid() == 1
supervisor = make(Path(sys.argv[1]))
supervisor.start()
pid = int((Path(sys.argv[1]) / sys.argv[3]).read_text())
os.kill(pid, signal.SIGKILL)
while Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
    time.sleep(0.01)
assert look(supervisor) != []
assert not Path(f"/proc/{pid}").exists(), "not reaped"
while look(supervisor):
    time.sleep(0.05)
supervisor.stop()
left = [path.name for path in Path("/proc").glob("[0-9]*")]
assert left == ["1"], left
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a pid namespace")
def test_as_pid_1_zombies_are_dead_and_reaped(root: Path, persistenced: FakeDaemon) -> None:
    """The first process of a container inherits its daemons: a dead one counts as dead, and is reaped."""
    paths = os.pathsep.join(path for path in sys.path if path)
    start = ("unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", FIRST)
    argv = (*start, str(root), str(Path(__file__).parent), str(PERSISTENCED.pid_file))
    ended = subprocess.run(argv, env={"PYTHONPATH": paths, "PATH": PATH}, capture_output=True, timeout=60)
    assert ended.returncode == 0, ended.stderr.decode()
