"""The files in /run/nvidia: what they say, in which order they come and go, and what a crash leaves."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, Iterator, Optional

import pytest
from attrs import evolve
from fake_host import FakeHost
from hypothesis import given
from hypothesis import strategies as st

from nvdriver_build.errors import InUseError, NoSigningKey, UsageError
from nvdriver_build.readiness import Features, Readiness, Status, liveness, readiness, startup
from nvdriver_build.readiness.probes import STALE
from nvdriver_build.readiness.status import parse_status

ID = "ab" * 20
LIVE = Status(stage="watch", key="k" * 64, fit="exact", modules={"nvidia": ID}, timings={"load": 0.5})
HEAVY = ("sh", "psutil", "elftools", "cattrs", "structlog", "rich", "click", "tenacity")


@pytest.fixture
def files(tmp_path: Path) -> Readiness:
    return Readiness(tmp_path / "run")


@pytest.fixture
def node(tmp_path: Path) -> FakeHost:
    """A node with nvidia loaded."""
    node = FakeHost(tmp_path / "node")
    node.module("nvidia", build_id=ID)
    return node


def there(files: Readiness) -> dict[str, str]:
    """All files that exist, by their path in /run/nvidia."""
    paths = sorted(path for path in files.run_dir.rglob("*") if path.is_file())
    return {str(path.relative_to(files.run_dir)): path.read_text() for path in paths}


def test_announced_driver_has_the_contracts_files(files: Readiness) -> None:
    """State, status and Ready; `.driver-ctr-ready` is the startup probe's, `driver-ready` the validator's."""
    files.keep("ours", "1234")
    files.announce(LIVE)
    found = there(files)
    assert json.loads(found.pop("nvdriver-build/status.json")) == {
        "schema": 1,
        "stage": "watch",
        "progress": None,
        "key": "k" * 64,
        "origin": None,
        "fit": "exact",
        "built_for": None,
        "proof": None,
        "driver_version": None,
        "kernel_release": None,
        "modules": {"nvidia": ID},
        "timings": {"load": 0.5},
        "ready": True,
        "since": None,
        "error": None,
        "peermem_error": None,
    }
    assert found == {
        "nvidia-driver.state": "1234\n",
        "nvdriver-build/loaded": "ours\n",
        "validations/.driver-daemons-status": "Ready\n",
    }


def test_ready_files_are_as_others_write_them(files: Readiness) -> None:
    """`.driver-ctr-ready` as the operator's startup probe, `driver-ready` as the validator writes it."""
    ours = evolve(files, features=Features(rdma=True), validates=True)
    ours.announce(LIVE, restore=True)
    found = there(ours)
    assert found["validations/.driver-ctr-ready"] == (
        "GDRCOPY_ENABLED: false\nGDS_ENABLED: false\nGPU_DIRECT_RDMA_ENABLED: true\n"
    )
    assert found["validations/driver-ready"] == (
        "IS_HOST_DRIVER=false\nNVIDIA_DRIVER_ROOT=/run/nvidia/driver\nDRIVER_ROOT_CTR_PATH=/driver-root\n"
        "NVIDIA_DEV_ROOT=/run/nvidia/driver\nDEV_ROOT_CTR_PATH=/driver-root\n"
    )
    assert "nvidia-driver.state" not in found


def test_a_driver_without_peermem_does_not_say_that_it_has_it(files: Readiness) -> None:
    """The operator's validator would wait for the module, and keep the GPU from everybody meanwhile."""
    ours = evolve(files, features=Features(rdma=True))
    ours.announce(evolve(LIVE, peermem_error=NoSigningKey("left out").document()))
    ours.write_ctr_ready()
    assert "GPU_DIRECT_RDMA_ENABLED: false\n" in ours.ctr_ready.read_text()


def test_withdrawn_driver_is_not_ready(files: Readiness) -> None:
    """NotReady stands, the ready files are gone, and whether the startup probe had succeeded is told."""
    ours = evolve(files, validates=True)
    ours.keep("ours", "1")
    ours.announce(LIVE, restore=True)
    assert ours.withdraw() is True
    assert ours.withdraw() is False
    found = there(ours)
    assert found["validations/.driver-daemons-status"] == "NotReady\n"
    assert set(found) == {
        "nvdriver-build/status.json", "nvdriver-build/loaded", "nvidia-driver.state",
        "validations/.driver-daemons-status",
    }  # fmt: skip
    status = ours.read_status()
    assert status is not None
    assert not status.ready


def test_stale_readiness_of_a_crash_is_withdrawn(files: Readiness) -> None:
    """What a killed process, or NVIDIA's own container, left behind goes with the first act of the next."""
    files.announce(LIVE, restore=True)
    files.driver_ready.write_text("IS_HOST_DRIVER=false\n")
    Readiness(files.run_dir).withdraw()
    assert not files.ctr_ready.exists()
    assert not files.driver_ready.exists()
    assert files.announced == "NotReady"


@pytest.mark.parametrize("again", ["recovers", "is killed", "ends"])
def test_what_the_validator_wrote_is_put_back(files: Readiness, again: str) -> None:
    """The operator's validator writes `driver-ready` once: it is away while the driver is not ready, and back
    as it was afterwards, whoever drives then; a newer one is left alone.
    """
    files.announce(LIVE)
    files.driver_ready.write_text("IS_HOST_DRIVER=false\n")
    if again == "ends":
        files.clear()
    elif again == "recovers":
        files.withdraw()
    Readiness(files.run_dir).withdraw()
    assert not files.driver_ready.exists()
    files.withdraw()
    files.announce(LIVE)
    assert files.driver_ready.read_text() == "IS_HOST_DRIVER=false\n"
    files.withdraw()
    files.driver_ready.write_text("newer\n")
    files.announce(LIVE)
    assert files.driver_ready.read_text() == "newer\n"


def test_a_validator_that_went_away_stays_away(files: Readiness) -> None:
    """What it removes itself (the preStop of its pod) does not come back with the driver."""
    files.announce(LIVE)
    files.driver_ready.write_text("IS_HOST_DRIVER=false\n")
    files.withdraw()
    files.announce(LIVE)
    files.driver_ready.unlink()
    files.withdraw()
    files.announce(LIVE)
    assert not files.driver_ready.exists()


def test_way_out_leaves_nothing_to_stumble_over(files: Readiness) -> None:
    """Only status.json stays: a NotReady that stayed would keep an older driver from ever starting."""
    with files.owned():
        files.announce(LIVE, restore=True)
        files.beat()
        files.forget()
        files.clear()
    assert list(there(files)) == ["nvdriver-build/status.json"]


def test_full_disk_does_not_keep_readiness(small_disk: Path) -> None:
    """Where there is no space for another file, NotReady takes the place of Ready, and the ready files go."""
    files = Readiness(small_disk)
    files.announce(LIVE, restore=True)
    with pytest.raises(OSError, match="No space"):
        (small_disk / "full").write_bytes(bytes(1024 * 1024))
    files.withdraw()
    assert files.announced == "NotReady"
    assert not files.ctr_ready.exists()


def test_folder_that_cannot_be_written_to_is_told(read_only_disk: Path) -> None:
    """A missing mount of /run/nvidia is wrong configuration, with a hint, for each of the files."""
    files = Readiness(read_only_disk)
    for act in (files.withdraw, files.clear, lambda: files.announce(LIVE)):
        with pytest.raises(UsageError, match="cannot be written: Read-only file system") as caught:
            act()
        assert "hostPath" in (caught.value.hint or "")
    with pytest.raises(UsageError, match=r"nvidia-driver\.pid cannot be written"), files.owned():
        pass


def test_owner_is_one(files: Readiness) -> None:
    """A second owner is refused with the first one's pid; once the first has gone, nothing of it is left."""
    with files.owned():
        assert there(files) == {"nvidia-driver.pid": f"{os.getpid()}\n"}
        with pytest.raises(InUseError) as caught, files.owned():
            pass
        assert caught.value.message == (
            f"another driver runs on this node: process {os.getpid()} holds {files.pid_file}"
        )
    assert there(files) == {}
    with files.owned():
        assert files.pid_file.exists()


def test_nvidias_container_is_an_owner_too(files: Readiness) -> None:
    """The lock is the one that NVIDIA's own entrypoint takes with flock(1)."""
    files.run_dir.mkdir()
    script = 'exec 3>"$1"; flock -n 3; echo 77 >&3; echo; exec sleep 60'
    argv = ("sh", "-c", script, "sh", str(files.pid_file))
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as theirs:
        assert theirs.stdout
        theirs.stdout.readline()
        with pytest.raises(InUseError, match="process 77 holds"), files.owned():
            pass
        theirs.kill()
    with files.owned():
        pass


def test_pid_file_of_a_dead_owner_is_taken_over(files: Readiness) -> None:
    """A lock dies with its process; a longer pid of the dead one leaves no digits behind."""
    files.run_dir.mkdir()
    files.pid_file.write_text("123456789\n")
    with files.owned():
        assert files.pid_file.read_text() == f"{os.getpid()}\n"


def test_removed_pid_file_is_not_taken_for_another(files: Readiness) -> None:
    """The driver manager may remove the file: who comes then locks a new one; the first leaves that alone."""
    first = files.owned()
    first.__enter__()
    files.pid_file.unlink()
    with files.owned():
        first.__exit__(None, None, None)
        assert files.pid_file.exists()
    assert not files.pid_file.exists()


def test_file_that_goes_while_it_is_locked_is_made_anew(
    files: Readiness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pid file that is removed between its opening and its locking is no proof of anything."""
    real, removals = fcntl.flock, [files.pid_file, files.pid_file]

    def slow_lock(descriptor: int, operation: int) -> None:
        if removals:
            removals.pop().unlink()
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", slow_lock)
    with files.owned():
        assert files.pid_file.read_text() == f"{os.getpid()}\n"
        with pytest.raises(InUseError), files.owned():
            pass


def test_startup_probe_does_what_the_operators_does(files: Readiness, node: FakeHost) -> None:
    """nvidia loaded, Ready or nothing announced, nvidia-smi succeeds: then `.driver-ctr-ready` is written."""
    calls: list[bool] = []

    def smi(answer: bool) -> Callable[[], bool]:
        return lambda: calls.append(answer) or answer  # type: ignore[func-returns-value]

    verdict = startup(files, FakeHost(node.root / "empty").host, smi(True))
    assert verdict == (False, "the kernel module nvidia is not loaded")
    files.withdraw()
    assert startup(files, node.host, smi(True)) == (False, "the driver is not ready: NotReady")
    assert calls == []
    files.announce(LIVE)
    assert startup(files, node.host, smi(False)) == (False, "nvidia-smi failed")
    assert not files.ctr_ready.exists()
    assert startup(files, node.host, smi(True)).ok
    assert files.ctr_ready.read_text() == Features().text()
    files.clear()
    assert startup(files, node.host, smi(True)).ok, "an absent status is fine, as for the operator's probe"


def test_startup_probe_takes_back_what_a_loss_overtook(files: Readiness, node: FakeHost) -> None:
    """Readiness that is withdrawn while nvidia-smi runs is not announced by the probe afterwards."""
    files.announce(LIVE)

    def smi() -> bool:
        files.withdraw()
        return True

    verdict = startup(files, node.host, smi)
    assert verdict == (False, "readiness was withdrawn meanwhile")
    assert not files.ctr_ready.exists()


def test_liveness_fails_only_where_run_hangs(files: Readiness) -> None:
    """No heartbeat yet, or one of another boot, is no hang; one that stopped is."""
    assert liveness(files) == (True, "no heartbeat yet")
    files.beat()
    assert re.fullmatch(r"last heartbeat \d+ s ago", liveness(files).why) and liveness(files).ok
    files.heartbeat.write_text(f"{time.monotonic() - STALE - 5}\n")
    found = re.fullmatch(r"no heartbeat for (\d+) s", liveness(files).why)
    assert found is not None and int(found[1]) >= STALE + 5 and not liveness(files).ok
    for other_boot in (f"{time.monotonic() + 1e6}\n", "nonsense\n"):
        files.heartbeat.write_text(other_boot)
        assert liveness(files) == (True, "no heartbeat yet")


def test_heartbeat_is_written_at_most_once_a_second(
    files: Readiness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be called at any rate; an old beat and one of another boot are written anew."""
    files.beat()
    written = files.heartbeat.read_text()
    monkeypatch.setattr(time, "monotonic", lambda: float(written) + 0.9)
    files.beat()
    assert files.heartbeat.read_text() == written
    for old in (time.monotonic() - 3, time.monotonic() + 1e6):
        files.heartbeat.write_text(f"{old}\n")
        files.beat()
        assert files.heartbeat_age() == 0


def test_readiness_probe_asks_the_kernel_too(files: Readiness, node: FakeHost) -> None:
    """Ready is not believed where a module is gone or of another build."""
    assert readiness(files, node.host) == (False, "not announced as ready")
    files.write_status(evolve(LIVE, stage="obtain"))
    assert readiness(files, node.host) == (False, "not announced as ready (stage obtain)")
    files.announce(LIVE)
    assert readiness(files, node.host) == (True, "1 modules are live")
    node.module("nvidia", build_id="cd" * 20)
    assert readiness(files, node.host).why.startswith("nvidia is of another build")
    files.announce(evolve(LIVE, modules={"nvidia_uvm": None}))
    assert readiness(files, node.host) == (False, "nvidia_uvm is not loaded")
    files.announce(evolve(LIVE, modules=None))
    assert readiness(files, node.host) == (False, f"{files.status_file} names no modules")


def test_status_is_ready_only_while_that_is_announced(files: Readiness) -> None:
    """A process killed between the two files does not make status.json lie."""
    assert files.read_status() is None
    files.write_status(evolve(LIVE, ready=True))
    assert files.read_status() == LIVE
    files.announce(LIVE)
    assert files.read_status() == evolve(LIVE, ready=True)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "[" * 100_000,
        '{"schema": 2}',
        *(
            f'{{"schema": 1, {field}}}'
            for field in (
                '"ready": 1',
                '"modules": ["a"]',
                '"modules": {"a\\u0000b": null}',
                '"modules": {"\\ud800": null}',
                '"timings": [1]',
                '"timings": {"load": "long"}',
                '"progress": {"done": 1}',
                '"progress": {"done": 1, "total": 2, "elapsed": null}',
                '"error": "no"',
                '"error": {"message": "no"}',
                '"peermem_error": {"message": "no"}',
            )
        ),
    ],
)
def test_status_of_another_kind_is_none(text: str) -> None:
    """What is no such document, cut short or of a later schema, is as good as absent."""
    assert parse_status(text) is None


def test_status_keeps_what_it_knows() -> None:
    """Unknown fields are passed over, missing ones are null."""
    assert parse_status('{"schema": 1, "stage": "look", "later": 1}') == Status(stage="look")


@given(st.text())
def test_no_text_breaks_the_reader(text: str) -> None:
    """Any content of status.json gives a status or None."""
    assert parse_status(text) is None


def test_probes_import_little() -> None:
    """`probe` runs every 5 s: what only builds and loads need is not imported for it."""
    program = "import sys, nvdriver_build.readiness; print(*sys.modules)"
    argv = (sys.executable, "-c", program)
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()).isdisjoint(HEAVY)


def life(files: Readiness, modules: Path) -> None:
    """One driver's whole life, with a loss in between; the folder stands for the modules in the kernel."""
    ours = evolve(files, validates=True)
    with ours.owned():
        ours.withdraw()
        modules.mkdir(exist_ok=True)
        ours.announce(LIVE)
        ours.write_ctr_ready()
        was_there = ours.withdraw()
        ours.announce(LIVE, restore=was_there)
        ours.beat()
        ours.withdraw()
        ours.forget()
        modules.rmdir()
        ours.clear()


def killed_at(step: int, act: Callable[[], object]) -> bool:
    """Do it in a child that is killed right before its step-th change of a file; False if it has fewer."""
    child = os.fork()
    if child == 0:
        left = [step]

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_ACCMODE
            if writes or event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        act()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_kill_at_any_step_leaves_no_readiness_without_modules(tmp_path: Path) -> None:
    """Killed before any change of a file: not ready without modules, nothing half; the next life works."""
    files, modules = Readiness(tmp_path / "run"), tmp_path / "modules"
    steps = 0
    while killed_at(steps + 1, lambda: life(files, modules)):
        steps += 1
        loaded = modules.exists()
        assert loaded or not files.ready, f"step {steps}: Ready without modules"
        assert loaded or not files.ctr_ready.exists(), f"step {steps}: .driver-ctr-ready without modules"
        assert loaded or not files.driver_ready.exists(), f"step {steps}: driver-ready without modules"
        assert not files.ready or files.announced == "Ready"
        assert not files.ctr_ready.exists() or files.ctr_ready.read_text() == Features().text()
        assert not files.status_file.exists() or files.read_status() is not None
        if not steps % 5:
            life(files, modules)
    assert steps > 20
    visible = [name for name in there(files) if ".tmp-" not in name]
    assert visible == ["nvdriver-build/status.json"]


def test_ready_is_the_last_word_and_not_ready_the_first(files: Readiness) -> None:
    """Killed anywhere in between: where Ready stands all else does, and nothing goes while it stands."""
    ours = evolve(files, validates=True)

    def complete() -> bool:
        status = ours.read_status()
        rest = (ours.ctr_ready, ours.driver_ready, ours.state)
        return all(path.exists() for path in rest) and status is not None and status.ready

    def announce() -> None:
        ours.keep("ours", "1")
        ours.announce(LIVE, restore=True)

    step = 1
    while killed_at(step, announce):
        assert not ours.ready or complete()
        step += 1
    assert step > 5
    assert ours.ready
    step = 1
    while killed_at(step, ours.withdraw):
        assert not ours.ready or complete()
        ours.announce(LIVE, restore=True)
        step += 1
    assert step > 3
    assert not ours.ready


def test_reader_never_sees_half_a_file(files: Readiness) -> None:
    """While one process announces and withdraws at full speed, another sees whole files or none."""
    child = os.fork()
    if child == 0:
        while True:
            files.announce(LIVE, restore=True)
            files.withdraw()
    try:
        seen = list(looks(files))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert {text for _, text, _ in seen} <= {None, Features().text()}
    read = [whole for _, _, whole in seen]
    assert all(read[read.index(True) :])


def looks(files: Readiness) -> Iterator[tuple[Optional[str], Optional[str], bool]]:
    """What a reader sees, again and again, until both words were there and much was read."""
    words: list[Optional[str]] = []
    began = time.monotonic()
    while len(words) < 1000 or not {"Ready", "NotReady"} <= set(words) or time.monotonic() - began < 0.5:
        assert time.monotonic() - began < 60, set(words)
        try:
            text = files.ctr_ready.read_text()
        except FileNotFoundError:
            text = None
        words.append(files.announced)
        assert words[-1] in (None, "Ready", "NotReady")
        yield words[-1], text, files.read_status() is not None
