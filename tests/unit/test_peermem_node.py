"""Waiting for MOFED, and nvidia-peermem kept loaded from a container of its own."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Callable, Iterator, List, Optional

import pytest
from elf_files import module
from fake_host import FakeHost
from structlog.testing import capture_logs
from trees import write_tree

from nvdriver_build.errors import FitError, HeadersError, HeadersMismatch, LoadError, NoSigningKey, Stopped
from nvdriver_build.loader.kernel_log import Reader
from nvdriver_build.node.peermem import MofedPlace, Patience, Peermem, wait_for_mofed
from nvdriver_build.readiness import Readiness, Status
from nvdriver_build.readiness import peermem as probe

RELEASE = "5.14.0-427.13.1.el9_4.x86_64"
OFA = f"usr/src/ofa_kernel/x86_64/{RELEASE}"
CRCS = {"ib_register_peer_memory_client": 0x11, "ib_unregister_peer_memory_client": 0x22}
CHROOT = '#!/bin/sh\necho "chroot $1" >>{log}\nshift\nexec "$@"\n'


def symvers(crc: int = 0x11) -> str:
    rows = {**CRCS, "ib_register_peer_memory_client": crc}
    return "".join(f"{crc:#010x}\t{name}\t/b/ib_core\tEXPORT_SYMBOL\t\n" for name, crc in rows.items())


class Clock:
    """Time that passes only by pauses; `at` has what happens at a second, and a signal ends it."""

    def __init__(self, limit: float = 100, end: float = 1000) -> None:
        self.now, self.end = 0.0, end
        self.at: dict[float, Callable[[], object]] = {}
        self.patience = Patience(self.stop, limit, self.pause, lambda: self.now)

    def pause(self, seconds: float) -> None:
        self.now += seconds
        self.at.pop(self.now, lambda: None)()

    def stop(self) -> None:
        if self.now >= self.end:
            raise Stopped(15)


@contextlib.contextmanager
def silent() -> Iterator[Reader]:
    """A kernel log without a word."""
    yield tuple


class Rig:
    """A node with a driver and a MOFED, either of which may be taken away."""

    def __init__(self, root: Path) -> None:
        self.node = FakeHost(root / "node")
        self.mofed = write_tree(root / "mofed", {".driver-ready": "", f"{OFA}/Module.symvers": symvers()})
        self.readiness = Readiness(root / "run")
        self.ready = self.readiness.ctr_ready
        write_tree(self.ready.parent, {self.ready.name: ""})
        self.clock = Clock(end=50)
        self.node.module("nvidia", used=0)
        self.node.pci("0000:07:00.0", vendor="0x15b3", device="0x1021", pci_class="0x020700")
        self.node.module("nvidia_peermem", planned=True)
        write_tree(self.node.root / "bin", {"chroot": CHROOT.format(log=self.node.root / "log")})
        (self.node.root / "bin/chroot").chmod(0o755)
        updates = root / "driver/modules/lib/modules" / RELEASE / "updates"
        content = module(("name=nvidia_peermem", f"vermagic={RELEASE} SMP "), CRCS).build()
        self.module = write_tree(updates, {"nvidia-peermem.ko": content}) / "nvidia-peermem.ko"
        self.driver_root = root / "driver"

    def leave_out(self) -> None:
        """The driver's container has come up without nvidia-peermem: it could not be signed."""
        self.module.unlink(missing_ok=True)
        error = NoSigningKey("nvidia-peermem is left out", hint="a key")
        self.readiness.write_status(Status(peermem_error=error.document()))

    @property
    def place(self) -> MofedPlace:
        return MofedPlace(self.node.host, self.mofed)

    def run(self, place: Optional[MofedPlace] = None) -> None:
        Peermem(
            place=place or self.place,
            readiness=self.readiness,
            arch="x86_64",
            release=RELEASE,
            commands=self.node.commands,
            journal=silent,
            patience=self.clock.patience,
            driver_root=self.driver_root,
            modules=Path("/modules"),
        ).run()

    def runs_until_signal(self, place: Optional[MofedPlace] = None) -> List[str]:
        """What was started until the signal came."""
        with pytest.raises(Stopped):
            self.run(place)
        return self.node.ran


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_loads_from_the_drivers_root(rig: Rig) -> None:
    """Once all is there it is loaded, by the driver's own modprobe and options, and then left alone."""
    assert rig.runs_until_signal() == [
        f"chroot {rig.driver_root}",
        f"modprobe -d /modules -C /modules/modprobe.d -S {RELEASE} nvidia_peermem",
    ]


def test_loads_again(rig: Rig) -> None:
    """What MOFED's update unloaded comes back, not before MOFED is ready again."""
    seen: List[bool] = []
    updated = rig.mofed / ".driver-ready"

    def unload() -> None:
        updated.unlink()
        rig.node.commands.run(("rmmod", "nvidia_peermem"), timeout=10)

    def finish() -> None:
        seen.append((rig.node.modules / "nvidia_peermem").exists())
        updated.touch()

    rig.clock.at = {5: unload, 15: finish}
    ran = rig.runs_until_signal()
    assert seen == [False]
    assert len([line for line in ran if line.startswith("modprobe")]) == 2
    assert (rig.node.modules / "nvidia_peermem").exists()


def test_what_is_there_is_not_loaded_again(rig: Rig) -> None:
    """A container that starts anew finds the module live, and starts nothing."""
    rig.node.module("nvidia_peermem")
    assert rig.runs_until_signal() == []


@pytest.mark.parametrize(
    ("take", "told"),
    [
        (lambda rig: rig.ready.unlink(), "the driver is not ready"),
        (lambda rig: rig.node.commands.run(("rmmod", "nvidia"), timeout=9), "nvidia is not loaded"),
        (lambda rig: (rig.mofed / ".driver-ready").unlink(), ".driver-ready is not there"),
    ],
)
def test_waits_for_all_and_not_for_ever(rig: Rig, take: Callable[[Rig], object], told: str) -> None:
    """While one of them lacks nothing is loaded, and in the end it is told which."""
    take(rig)
    rig.clock.end = 1000
    with capture_logs() as logs, pytest.raises(LoadError, match=f"in 100 s: .*{told}"):
        rig.run()
    assert [round(log["seconds"]) for log in logs if log["event"] == "waiting"] == [0, 60]
    assert not [line for line in rig.node.ran if "modprobe" in line]


def test_no_mellanox_device(rig: Rig, tmp_path: Path) -> None:
    """A node without one has nothing to load, and no error either."""
    other = Rig(tmp_path / "other")
    write_tree(other.node.root / "sys/bus/pci/devices/0000:07:00.0", {"vendor": "0x8086\n"})
    assert other.runs_until_signal() == []


def test_built_against_another_mofed(rig: Rig) -> None:
    """An update of MOFED whose exports changed is told before the kernel refuses, with what mends it."""
    (rig.mofed / OFA / "Module.symvers").write_text(symvers(0x12))
    with pytest.raises(FitError, match=r"CRC 0x00000011, .* has 0x00000012") as caught:
        rig.run()
    assert "restart the driver's pod" in str(caught.value.hint)
    assert rig.node.ran == []


def test_driver_without_peermem(rig: Rig) -> None:
    """A driver that was set up without RDMA is told as that."""
    rig.module.unlink()
    with pytest.raises(LoadError, match="has no nvidia-peermem") as caught:
        rig.run()
    assert "GPU_DIRECT_RDMA_ENABLED must be true" in str(caught.value.hint)


def test_driver_that_came_up_without_peermem(rig: Rig) -> None:
    """It is said once, with what mends it, and waited: nothing is loaded, and no limit ends the container."""
    rig.clock.at = {10: rig.ready.unlink, 20: (rig.mofed / ".driver-ready").unlink}
    rig.leave_out()
    rig.clock.end = 1000
    with capture_logs() as logs:
        assert rig.runs_until_signal() == []
    assert [(log["error"], log["hint"]) for log in logs] == [("nvidia-peermem is left out", "a key")]


def test_a_driver_that_comes_back_with_peermem_has_it_loaded(rig: Rig) -> None:
    """The key was given, and the driver's container started anew: this one goes on by itself."""
    content = rig.module.read_bytes()
    rig.ready.unlink()

    def come_back() -> None:
        rig.readiness.write_status(Status())
        rig.module.write_bytes(content)

    rig.clock.at = {5: rig.leave_out, 20: come_back, 30: rig.ready.touch}
    assert len([line for line in rig.runs_until_signal() if line.startswith("modprobe")]) == 1


def test_modprobe_fails(rig: Rig) -> None:
    """What modprobe says is told by its cause."""
    rig.node.say("nvidia_peermem", "modprobe: ERROR: could not insert: Operation not permitted")
    with pytest.raises(LoadError, match="may not load nvidia_peermem"):
        rig.run()


def test_hosts_mofed(rig: Rig) -> None:
    """Where MOFED is the host's, mlx5_core says that it is there, and no file has to."""
    (rig.mofed / ".driver-ready").unlink()
    place = MofedPlace(rig.node.host, rig.mofed, on_host=True)
    assert place.lacking() == "mlx5_core is not loaded"
    rig.node.module("mlx5_core")
    assert place.lacking() is None
    assert len(rig.runs_until_signal(place)) == 2


def test_mofed_is_waited_for(rig: Rig) -> None:
    """The driver's container gets MOFED once it says that it is ready and its exports can be read."""
    ready, file = rig.mofed / ".driver-ready", rig.mofed / OFA / "Module.symvers"
    ready.unlink()
    file.unlink()
    rig.clock.at = {
        30: ready.touch,
        60: lambda: file.write_text("cut"),
        70: lambda: file.write_text(symvers()),
    }
    rig.clock.end = 1000
    found = wait_for_mofed(rig.place, "x86_64", RELEASE, rig.clock.patience)
    assert found.symvers == symvers()
    assert rig.clock.now == 70


def test_mofed_never_comes(rig: Rig) -> None:
    """Waiting ends with what lacks, and with what would mend it."""
    (rig.mofed / ".driver-ready").unlink()
    rig.clock.end = 1000
    with pytest.raises(LoadError, match=r"MOFED was not ready after 100 s: .*\.driver-ready") as caught:
        wait_for_mofed(rig.place, "x86_64", RELEASE, rig.clock.patience)
    assert "GPU_DIRECT_RDMA_ENABLED=false" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        (lambda file: file.unlink(), LoadError, "not ready after 100 s: .* has no usr/src/ofa_kernel"),
        (lambda file: file.write_text("cut"), HeadersError, "line 1"),
        (
            lambda file: (file.parent / "configure.mk.kernel").write_text("KVERSION=6.1\n"),
            HeadersMismatch,
            r"built for kernel 6\.1",
        ),
    ],
)
def test_mofed_that_stays_of_no_use(
    rig: Rig, change: Callable[[Path], object], error: type[Exception], told: str
) -> None:
    """A MOFED that is ready, but not for this kernel, is given its time too, and then told as what it is."""
    change(rig.mofed / OFA / "Module.symvers")
    rig.clock.end = 1000
    with pytest.raises(error, match=told):
        wait_for_mofed(rig.place, "x86_64", RELEASE, rig.clock.patience)
    assert rig.clock.now == 100


def test_signal_while_waiting(rig: Rig) -> None:
    """A signal ends the wait within a second."""
    (rig.mofed / ".driver-ready").unlink()
    rig.clock.end = 7
    with pytest.raises(Stopped):
        wait_for_mofed(rig.place, "x86_64", RELEASE, rig.clock.patience)
    assert rig.clock.now == 7


def test_mofed_of_the_host_by_its_own_root(rig: Rig) -> None:
    """Where only the host has its sources, they are read there, by /proc/1/root."""
    host_root = rig.node.root / "proc/1/root"
    write_tree(host_root, {f"{OFA}/Module.symvers": symvers(0x33)})
    (rig.mofed / OFA / "Module.symvers").unlink()
    assert rig.place.find("x86_64", RELEASE) is None
    found = MofedPlace(rig.node.host, rig.mofed, on_host=True).find("x86_64", RELEASE)
    assert found is not None
    assert found.origin.startswith(str(host_root))


def test_probe(rig: Rig) -> None:
    """As NVIDIA's: nothing is asked before mlx5_core is there, and then nvidia-peermem has to be live."""
    files, host = rig.readiness, rig.node.host
    assert probe(files, host).ok
    rig.node.module("mlx5_core")
    assert probe(files, host) == (False, "nvidia_peermem is not loaded")
    rig.node.module("nvidia_peermem", state="coming")
    assert probe(files, host) == (False, "nvidia_peermem is coming, not live")
    rig.node.module("mlx4_core")
    (rig.node.modules / "nvidia_peermem/initstate").write_text("live\n")
    assert probe(files, host) == (True, "nvidia_peermem is live")


def test_probe_of_a_driver_without_peermem(rig: Rig) -> None:
    """No restart of its container would mend that: the answer is yes, and says what is missing."""
    rig.node.module("mlx5_core")
    rig.leave_out()
    assert probe(rig.readiness, rig.node.host) == (True, "nvidia-peermem is left out")
