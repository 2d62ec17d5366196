"""What is ordered and what is delivered: neither end believes the other."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Iterator, List

import pytest
from attrs import evolve
from fake_toolchain import VERSION
from kernel_trees import RELEASE
from pytest_mock import MockerFixture
from sidecar_processes import PATIENCE, SOON
from sidecar_rig import Pod
from structlog.testing import capture_logs
from trees import write_tree

from nvdriver_build.commands import Commands, SystemCommands
from nvdriver_build.errors import HeadersError, NvdriverError, Stopped, ToolkitError
from nvdriver_build.kernel import target_from_headers
from nvdriver_build.obtain import Obtained, Wish, obtain
from nvdriver_build.sets import Recipe
from nvdriver_build.toolkit import Order, Server, Sidecar, documents, shared
from nvdriver_build.toolkit.documents import BUILD, HEADERS


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    with Pod.make(tmp_path) as pod:
        yield pod


def get(
    pod: Pod, tamper: Callable[[Path], None] = lambda _: None, check: Callable[[], None] = lambda: None
) -> Obtained:
    """A set as the node gets it; `tamper` may change what was delivered before it is looked at."""
    sidecar = pod.sidecar()

    def elsewhere(wish: Wish, recipe: Recipe, _: Any) -> Path:
        folder = sidecar.build(Order(recipe, wish.proof, wish.jobs), wish.source)
        tamper(folder)
        return folder

    return obtain(pod.wish(), pod.store, SystemCommands("/usr/bin:/bin", check), elsewhere=elsewhere)


def module(folder: Path) -> Path:
    return folder / "nvidia.ko"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def link(path: Path) -> None:
    """The same bytes, but by a link."""
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "tamper",
    [
        lambda folder: flip(module(folder)),
        lambda folder: module(folder).write_bytes(b""),
        lambda folder: module(folder).unlink(),
        lambda folder: link(module(folder)),
        lambda folder: pipe(module(folder)),
        lambda folder: flip(folder / "manifest.json"),
        lambda folder: link(folder / "manifest.json"),
        lambda folder: (folder / "manifest.json").write_text("{}"),
        shutil.rmtree,
    ],
)
def test_what_was_tampered_with(pod: Pod, tamper: Callable[[Path], None]) -> None:
    """It is refused before it enters the node's store, and the next run has it built anew."""
    with pod.serving():
        with pytest.raises(ToolkitError, match="what the Driver Toolkit delivered in") as caught:
            get(pod, tamper)
        assert "the next run has it built anew" in (caught.value.hint or "")
        assert list(pod.store.root.glob("sets/*")) == []
        assert list(pod.store.root.glob("work/*")) == []
        assert (get(pod).origin, pod.calls) == ("built", 2)
    assert [entry.problem for entry in pod.store.check()] == [None]


def test_a_module_without_end(pod: Pod, small_disk: Path) -> None:
    """It is not copied until the node's disk is full, which the kubelet would answer by evictions."""
    pod.store.root.symlink_to(small_disk)
    with pod.serving(), pytest.raises(ToolkitError, match="what the Driver Toolkit delivered in"):
        get(pod, lambda folder: huge(module(folder)))


def copying(pod: Pod) -> bool:
    """Whether a module is being copied into the node's store."""
    return any(pod.store.root.glob("work/*/work/set/nvidia.ko"))


def test_a_module_that_grows_while_it_is_copied(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more of it is copied than a module may have."""
    monkeypatch.setattr("nvdriver_build.obtain.beside._MOST", 5_000_000)

    def grow() -> None:
        if copying(pod):
            (delivered,) = pod.shared.store.glob("sets/*/nvidia.ko")
            os.truncate(delivered, delivered.stat().st_size + 2_000_000)

    with pod.serving(), pytest.raises(ToolkitError, match=r"more than 5000000 bytes: .*/nvidia\.ko"):
        get(pod, check=grow)
    assert list(pod.store.root.glob("work/*")) == []


def test_a_signal_while_a_module_is_copied(pod: Pod) -> None:
    """It is heard, and nothing is left."""

    def check() -> None:
        if copying(pod):
            raise Stopped(signal.SIGTERM)

    with pod.serving(), pytest.raises(Stopped):
        get(pod, check=check)
    assert list(pod.store.root.glob("work/*")) == []


def test_a_passing_trouble_of_ours(pod: Pod, mocker: MockerFixture) -> None:
    """Too many open files here say nothing about a set: it stays, and the next run takes it."""
    trouble = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    with pod.serving():
        copying = mocker.patch("nvdriver_build.obtain.beside.copy_plain", side_effect=trouble)
        with pytest.raises(ToolkitError, match="Too many open files") as caught:
            get(pod)
        assert "it stays there" in (caught.value.hint or "")
        mocker.stop(copying)
        assert (get(pod).origin, pod.calls) == ("built", 1)


def test_another_set_than_was_ordered(pod: Pod) -> None:
    """A sound set of another recipe in the place of the ordered one is refused by the field that differs."""
    source = pod.toolchain.source / "nvidia/nv.c"
    before = source.read_text()
    with pod.serving():
        source.write_text(f"{before}// another\n")
        other = get(pod).set.folder
        source.write_text(before)

        def swap(folder: Path) -> None:
            shutil.rmtree(folder)
            shutil.copytree(other, folder)

        with pytest.raises(ToolkitError, match=r"another set than was ordered.*source_digest"):
            get(pod, swap)
    assert len(pod.store.check()) == 1


def lie(pod: Pod, **fields: Any) -> str:
    """The error that an order with another recipe is answered with."""
    order = pod.order()
    pod.offer()
    request = pod.ask(BUILD, RELEASE, evolve(order, recipe=evolve(order.recipe, **fields)))
    with pod.serving():
        error = pod.answer(request.attempt).error
    assert error is not None and error["hint"]
    assert pod.calls == 0
    return str(error["message"])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"driver_version": "999.99"}, f"has driver_version {VERSION}, wanted is 999.99"),
        ({"source_digest": "5" * 64}, "no driver source at"),
        ({"kind": "proprietary"}, "has no proprietary kernel modules"),
        ({"kind": "../.."}, "has no ../.. kernel modules"),
        ({"modules": ("nvidia", "nvidia-fs")}, "has no module nvidia-fs"),
        ({"modules": ("../../etc/x",)}, "has no module ../../etc/x"),
        ({"kernel_release": "6.6.6"}, "has no headers of kernel 6.6.6"),
        ({"kernel_release": "../../.."}, "has no headers of kernel ../../.."),
        ({"arch": "s390"}, "has arch x86_64, wanted is s390"),
        ({"schema": 2}, "has schema 1, wanted is 2"),
        ({"certificate": "ab" * 32}, "has certificate None, wanted is"),
    ],
)
def test_orders_that_lie(pod: Pod, fields: Any, words: str) -> None:
    """An order that does not describe what is there is refused before anything is compiled."""
    assert words in lie(pod, **fields)


def test_a_source_that_is_not_what_its_name_says(pod: Pod) -> None:
    """A tree in the shared folder that was changed is not built."""
    order = pod.order()
    pod.offer()
    (pod.shared.source(order.recipe.source_digest) / "nvidia/nv.c").write_text(
        'MODULE_LICENSE("Dual MIT/GPL");'
    )
    request = pod.ask(BUILD, RELEASE, order)
    with pod.serving():
        error = pod.answer(request.attempt).error or {}
    assert "source_digest" in error["message"]
    assert pod.calls == 0


def test_half_a_source_is_replaced(pod: Pod) -> None:
    """What a node that lost its power kept of a source is told from the whole, and offered anew."""
    pod.offer()
    (pod.shared.source(pod.order().recipe.source_digest) / "nvidia/nv.c").write_text("")
    with pod.serving():
        assert get(pod).origin == "built"


@pytest.mark.parametrize("odd", [link, pipe], ids=["link", "pipe"])
def test_a_source_that_is_no_file_is_replaced(pod: Pod, odd: Callable[[Path], None]) -> None:
    """A pipe in the place of a file that was offered is not waited for, a link is not followed."""
    pod.offer()
    file = pod.shared.source(pod.order().recipe.source_digest) / "nvidia/nv.c"
    odd(file)
    with pod.serving():
        assert get(pod).origin == "built"
    assert file.is_file() and not file.is_symlink()


def test_a_source_is_offered_through_no_link(pod: Pod, tmp_path: Path) -> None:
    """A toolkit that makes a folder a link while the source is copied leads nobody to write elsewhere."""
    victim = tmp_path / "victim"
    write_tree(victim, {"nv.c": "old"})

    def swap() -> None:
        for folder in pod.shared.root.glob("sources/.*/work/tree/nvidia"):
            if not folder.is_symlink():
                shutil.rmtree(folder)
                folder.symlink_to(victim)

    sidecar = Sidecar(pod.shared, pod.root / "bundle", swap)
    with pytest.raises(ToolkitError, match=r"cannot be used: .*(Not a directory|Too many levels)"):
        sidecar.build(pod.order(), pod.wish().source)
    assert [(path.name, path.read_text()) for path in victim.iterdir()] == [("nv.c", "old")]


def huge(path: Path) -> None:
    """A file without end, as far as memory goes, that takes no space."""
    os.truncate(path, 1 << 40)


@pytest.mark.parametrize("odd", [link, pipe, huge])
@pytest.mark.parametrize("name", ["Module.symvers", "include/linux/vermagic.h"])
def test_headers_that_are_no_files(
    pod: Pod, monkeypatch: pytest.MonkeyPatch, name: str, odd: Callable[[Path], None]
) -> None:
    """What describes a kernel is looked at before it is read: a pipe would be waited for without end."""
    describe = Server._describe

    def odd_one(server: Server, request: documents.Request) -> None:
        describe(server, request)
        odd(pod.shared.headers / request.attempt / name)

    monkeypatch.setattr(Server, "_describe", odd_one)
    with pod.serving(), pytest.raises(ToolkitError, match=f"cannot be used: .*{name}"):
        pod.headers(RELEASE)


def test_headers_that_change_once_they_were_looked_at(pod: Pod) -> None:
    """What describes a kernel is read from a copy of ours, which is gone afterwards."""
    with pod.serving(), pod.sidecar().headers(RELEASE) as headers:
        for path in pod.shared.headers.rglob("*"):
            if path.is_file():
                link(path)
                path.with_name("elsewhere").unlink()
        assert target_from_headers(headers).symbols == pod.wish().target.symbols
        assert not headers.output.is_relative_to(pod.shared.root)
        assert headers.output.stat().st_uid == os.geteuid()
    assert not headers.output.exists()


def test_headers_that_are_damaged_are_named_where_they_lie(pod: Pod) -> None:
    """Not in the copy, which is gone by then."""
    (symvers,) = (pod.root / "dtk").rglob("Module.symvers")
    symvers.write_text("damaged\n")
    place = f"^{pod.shared.headers}/[0-9a-f]{{16}}/Module.symvers, line 1: 'damaged' is not"
    with pod.serving(), pytest.raises(HeadersError, match=place), pod.sidecar().headers(RELEASE) as headers:
        target_from_headers(headers)


def test_headers_that_have_no_place(pod: Pod, read_only_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the copy cannot be made, it is said that this is the node's own want."""
    monkeypatch.setattr(tempfile, "tempdir", str(read_only_disk))
    with pod.serving(), pytest.raises(ToolkitError, match="there is no folder for what") as caught:
        pod.headers(RELEASE)
    assert "/tmp" in (caught.value.hint or "")


def test_a_cause_of_any_length(pod: Pod) -> None:
    """A compiler's word of 3 MB crosses as its beginning."""
    pod.program("printf 'nvidia/nv.c:7:3: error: '; head -c 3000000 /dev/zero | tr '\\0' x; exit 2")
    with pod.serving(), pytest.raises(NvdriverError) as caught:
        get(pod)
    assert caught.value.exit_code == 12
    assert len(caught.value.message) < 20_000
    assert "nvidia/nv.c:7: xxxx" in caught.value.message


def test_an_answer_does_not_hide_another(pod: Pod) -> None:
    """Asked for headers in the last moment of a build, the toolkit's end answers that in the end."""
    asked: List[str] = []

    def build(order: Order, _: object, __: object, commands: Commands, ___: object) -> str:
        asked.append(pod.ask(HEADERS).attempt)
        commands.check()
        pod.answer(asked[0])  # but nobody has read it when the build is answered
        return order.recipe.key

    with pod.serving() as server:
        server.build = build
        first = pod.ask(BUILD, RELEASE, pod.order())
        until = time.monotonic() + SOON
        while not asked:
            assert time.monotonic() < until
            time.sleep(0.01)
        time.sleep(0.5)
        assert pod.answer(asked[0]).error is None
        assert first.attempt != asked[0]


def test_headers_that_are_not_there_end_no_build(pod: Pod) -> None:
    """A question that cannot be answered while something is built leaves that alone."""
    pod.hold()
    with pod.serving():
        order = pod.order()
        pod.offer()
        pod.ask(BUILD, RELEASE, order)
        pod.in_make()
        lost = pod.ask(HEADERS, "6.6.6")
        assert (pod.answer(lost.attempt).error or {})["kind"] == "HeadersMismatch"
        foreign = pod.ask(BUILD, RELEASE, order)
        pod.release()
        assert pod.answer(foreign.attempt).key == order.recipe.key
    assert pod.calls == 1


def test_a_pulse_outlives_what_goes_wrong(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    """A beat that fails, for whatever reason, is told once, and the next ones come."""
    failures, write = [ValueError("odd")] * 3, documents.write

    def failing(path: Path, document: object) -> None:
        if failures:
            raise failures.pop()
        write(path, document)

    monkeypatch.setattr(shared, "write", failing)
    monkeypatch.setattr(shared, "BEAT", 0.02)
    with capture_logs() as logs, shared.Pulse(pod.shared.driver_beat, "me"):
        until = time.monotonic() + SOON
        while not pod.shared.driver_beat.exists():
            assert time.monotonic() < until
            time.sleep(0.01)
    assert [line["event"] for line in logs] == ["no sign of life can be given"]


@pytest.fixture
def small(pod: Pod) -> Iterator[Pod]:
    """A pod whose shared folder is a file system of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    place = pod.shared.root
    subprocess.run(("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place), check=True)
    yield pod
    pod.end()
    subprocess.run(("umount", "-l", place), check=True)


def fill(pod: Pod) -> Path:
    """Leave no space; once more a moment later, since a file that was being replaced gives some back."""
    place = pod.shared.root / "filling"
    for pause in (0.1, 0):
        with pytest.raises(OSError, match="No space left"), place.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        time.sleep(pause)
    return place


def test_a_full_volume_at_the_start(small: Pod) -> None:
    """The driver's end ends with 18 at once, the toolkit's says so once and waits; freed, both work."""
    filling = fill(small)
    toolkit = small.toolkit()
    toolkit.says("the shared folder takes nothing")
    began = time.monotonic()
    outcome = small.driver().outcome()
    assert (outcome.code, time.monotonic() - began < PATIENCE / 2) == (18, True)
    assert "No space left" in (outcome.error or {})["message"]
    time.sleep(1)
    assert len(toolkit.log) == 2
    filling.unlink()
    assert (small.driver().outcome().code, small.calls) == (0, 1)


def test_a_full_volume_during_the_build(small: Pod) -> None:
    """Each end says so within 2 s, once; the failure is told in what it frees; the next run builds."""
    small.hold()
    toolkit, driver = small.toolkit(), small.driver()
    small.in_make()
    time.sleep(0.6)
    filling = fill(small)
    assert toolkit.says("no sign of life can be given") < 2
    assert driver.says("no sign of life can be given") < 2
    time.sleep(1.5)
    assert [line["event"] for line in toolkit.log].count("no sign of life can be given") == 1
    small.release()
    outcome = driver.outcome()
    assert (outcome.code, "No space left" in (outcome.error or {})["message"]) == (12, True)
    filling.unlink()
    assert (small.driver().outcome().code, small.calls) == (0, 2)
