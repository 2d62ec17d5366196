"""What crosses between the two ends is hostile, stale, of another version, or full of quotes."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Union

import cattrs
import pytest
from kernel_trees import RELEASE, build_tree, toolkit, under
from sidecar_rig import Pod
from structlog.testing import capture_logs

from nvdriver_build.errors import HeadersError, HeadersMismatch, NvdriverError, ToolkitError
from nvdriver_build.sets import open_set
from nvdriver_build.toolkit import SAME_VERSION
from nvdriver_build.toolkit.documents import (
    BUILD,
    HEADERS,
    Beat,
    Introduction,
    Request,
    Result,
    read,
    write,
)

ODD = "a'b\"c\n$(touch executed)`touch executed`;touch executed\\ \u20ac"
ATTEMPT = "0123456789abcdef"
NO_DOCUMENTS = {
    "empty": b"",
    "cut": b'{"schema": 1, "attempt": "01',
    "a list": b"[]",
    "null": b"null",
    "no text": b"\xff\xfe\x00",
    "deep": b"[" * 100_000,
    "huge": b'{"schema": 1, "attempt": "' + b"a" * 3_000_000 + b'"}',
    "long number": b'{"schema": ' + b"9" * 10_000 + b"}",
}


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pod]:
    monkeypatch.chdir(tmp_path)
    with Pod.make(tmp_path) as pod:
        yield pod
    assert list(tmp_path.rglob("executed")) == []


def request(**differ: Any) -> Dict[str, Any]:
    return {**cattrs.unstructure(Request(ATTEMPT, "d", HEADERS, RELEASE)), **differ}


def put(path: Path, content: Union[bytes, Dict[str, Any]]) -> None:
    """As whoever may write to the folder does."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    path.with_name("new").write_bytes(data)
    path.with_name("new").replace(path)


def until(true: Callable[[], bool], within: float = 5.0) -> float:
    """Seconds until it is so."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < within
        time.sleep(0.01)
    return time.monotonic() - began


def test_requests_that_are_none(pod: Pod) -> None:
    """The toolkit's end tells each, answers none, and serves the next good one."""
    with capture_logs() as logs, pod.serving():
        for number, (name, content) in enumerate(NO_DOCUMENTS.items(), 1):
            put(pod.shared.request, content)
            until(lambda: len(errors(logs)) == number)  # noqa: B023
            assert "cannot be understood" in errors(logs)[-1] or "has schema" in errors(logs)[-1], name
        assert not pod.shared.result.exists()
        assert pod.sidecar().headers(RELEASE).release == RELEASE


def errors(logs: Any) -> list[str]:
    return [line["event"] for line in logs if line["log_level"] == "error"]


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_request_that_is_no_file(pod: Pod, kind: str) -> None:
    """A link is not followed, a pipe not waited for."""
    place = pod.shared.request
    if kind == "link":
        put(pod.root / "elsewhere.json", request())
        place.symlink_to(pod.root / "elsewhere.json")
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        place.mkdir()
    with capture_logs() as logs, pod.serving():
        until(lambda: len(errors(logs)) == 1)
        place.rmdir() if kind == "folder" else place.unlink()
        assert pod.sidecar().headers(RELEASE).release == RELEASE


@pytest.mark.parametrize(
    ("differ", "words"),
    [
        ({"attempt": "../../x"}, "cannot be understood"),
        ({"what": "everything"}, "cannot be understood"),
        ({"what": BUILD, "order": None}, "has no order"),
        ({"what": BUILD, "order": {"recipe": {}, "proof": ""}}, "cannot be understood"),
        ({"driver": None, "order": [1]}, "cannot be understood"),
        ({"schema": 2, "attempt": "of the future"}, "has schema 2, this program (0.1.0) knows 1"),
        ({"schema": None}, "has schema None"),
        ({"tool": "9.9"}, "the driver's end is nvdriver-build 9.9, the toolkit's end 0.1.0"),
    ],
)
def test_requests_that_are_refused(pod: Pod, differ: Dict[str, Any], words: str) -> None:
    """Whoever asks so, in another version of ours, say, is answered by its own id within 1 s."""
    with pod.serving():
        put(pod.shared.request, request(**differ))
        result = pod.answer(request(**differ)["attempt"], within=1)
    error = result.error or {}
    assert (error["kind"], error["code"]) == ("ToolkitError", 18)
    assert words in error["message"]
    assert error["hint"]
    assert not pod.shared.headers.exists()


@pytest.mark.parametrize("digest", ["..", "../../../etc", "5" * 63, "5" * 63 + "/", ""])
def test_digests_that_are_paths(pod: Pod, digest: str) -> None:
    """The name of a folder is a digest, or nothing is done."""
    document = request(what=BUILD, order=cattrs.unstructure(pod.order()))
    document["order"]["recipe"]["source_digest"] = digest
    with pod.serving():
        put(pod.shared.request, document)
        assert "cannot be understood" in (pod.answer(ATTEMPT).error or {})["message"]
    assert pod.calls == 0


def answering(pod: Pod, act: Callable[[str], None]) -> threading.Thread:
    """A toolkit's end that does this when it is asked."""

    def serve() -> None:
        until(pod.shared.request.exists)
        act(read(pod.shared.request, Request).attempt)  # type: ignore[union-attr]

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def refused(pod: Pod, act: Callable[[str], None]) -> NvdriverError:
    """The error that the driver's end raises within a second."""
    thread = answering(pod, act)
    began = time.monotonic()
    with pytest.raises(NvdriverError) as caught:
        pod.sidecar().headers(RELEASE)
    assert time.monotonic() - began < 1
    thread.join()
    return caught.value


@pytest.mark.parametrize("name", NO_DOCUMENTS)
@pytest.mark.parametrize("place", ["result", "introduction"])
def test_answers_that_are_none(pod: Pod, place: str, name: str) -> None:
    """The driver's end ends with 18, at once."""
    error = refused(pod, lambda _: put(getattr(pod.shared, place), NO_DOCUMENTS[name]))
    assert error.exit_code == 18
    assert "cannot be understood" in error.message or "has schema" in error.message


@pytest.mark.parametrize("place", ["result", "introduction"])
def test_an_answer_of_another_version(pod: Pod, place: str) -> None:
    """A toolkit's end of another version is told as that."""
    error = refused(pod, lambda attempt: put(getattr(pod.shared, place), {"schema": 2, "attempt": attempt}))
    assert "has schema 2, this program (0.1.0) knows 1" in error.message
    assert (error.exit_code, error.hint) == (18, SAME_VERSION)


def test_beats_that_are_none(pod: Pod) -> None:
    """What is no sign of life is none: patience runs out."""
    beats = [*NO_DOCUMENTS.values(), b'{"schema": 1, "instance": "x", "count": 1e999}', b'{"schema": 2}']

    def beat(_: str) -> None:
        for content in beats:
            put(pod.shared.toolkit_beat, content)
            time.sleep(0.12)

    thread = answering(pod, beat)
    with pytest.raises(ToolkitError, match="no sign of life"):
        pod.sidecar(arrival=0).headers(RELEASE)
    thread.join()


def test_a_toolkit_that_can_serve_nobody(pod: Pod) -> None:
    """No Python that fits, say: the run ends at once, with the code and the hint from over there."""
    told = {"code": 10, "kind": "HeadersError", "message": "no Python 3.9 or later", "hint": "use that of 9"}
    error = refused(pod, lambda _: write(pod.shared.introduction, Introduction("sh-1", error=told)))
    assert (type(error), error.exit_code, error.message) == (HeadersError, 10, "no Python 3.9 or later")
    assert error.hint == "use that of 9"


@pytest.mark.parametrize("kind", ["os", "Optional", "NvdriverError ", None, "Stopped", "frozen"])
def test_an_error_of_an_unknown_kind(pod: Pod, kind: object) -> None:
    """What an error says of its kind is a name of ours, or it is ToolkitError."""
    told = {"kind": kind, "message": ODD, "hint": None}
    error = refused(pod, lambda attempt: write(pod.shared.result, Result(attempt, "t", error=told)))
    assert (type(error), error.message, error.hint) == (ToolkitError, ODD, None)


def test_another_key_than_was_ordered(pod: Pod) -> None:
    """A result that names another set is refused, wherever its name would lead."""
    order, source = pod.order(), pod.wish().source
    thread = answering(pod, lambda attempt: write(pod.shared.result, Result(attempt, "t", "../../etc")))
    with pytest.raises(ToolkitError, match=r"built \.\./\.\./etc, asked for was") as caught:
        pod.sidecar().build(order, source)
    thread.join()
    assert caught.value.hint == SAME_VERSION


def test_stale_files_of_an_earlier_pod(pod: Pod) -> None:
    """Whatever an earlier pod left, the run ends with a set that was built now."""
    stale = pod.order(proof="stale")
    write(pod.shared.request, Request("a" * 16, "old driver", BUILD, RELEASE, stale))
    write(pod.shared.result, Result("b" * 16, "old toolkit", stale.recipe.key))
    write(pod.shared.introduction, Introduction("old toolkit", "0.0.1", kernel="6.6.6", rhel="7"))
    write(pod.shared.toolkit_beat, Beat("old toolkit", 77, 1, 2, 3.0))
    write(pod.shared.driver_beat, Beat("old driver", 99))
    pod.shared.prepared.touch()
    (pod.shared.headers / ("b" * 16)).mkdir(parents=True)
    driver = pod.driver()
    driver.says("the toolkit's end is silent")
    pod.toolkit()
    outcome = driver.outcome()
    assert (outcome.code, outcome.origin, pod.calls) == (0, "built", 1)


def test_garbage_of_an_earlier_pod(pod: Pod) -> None:
    """A stale answer that nobody understands is no answer to a new question."""
    put(pod.shared.result, b"garbage")
    put(pod.shared.request, b"garbage")
    with pod.serving():
        assert pod.sidecar().headers(RELEASE).release == RELEASE


def test_an_answer_to_another_attempt(pod: Pod) -> None:
    """The same key in the answer to another attempt is not believed: what is asked for is being built."""
    pod.hold()
    with pod.serving():
        driver = pod.driver()
        pod.in_make()
        write(pod.shared.result, Result("b" * 16, "old toolkit", pod.order().recipe.key))
        time.sleep(0.3)
        assert driver.process.poll() is None
        pod.release()
        assert (driver.outcome().code, pod.calls) == (0, 1)


def test_odd_values_come_out_as_they_went_in(pod: Pod) -> None:
    """Quotes, newlines and $() are text in every value that crosses; nothing is executed."""
    pod.dtk(toolkit(RELEASE, document={"KERNEL_VERSION": RELEASE, "RHEL_VERSION": ODD}))
    sidecar, order = pod.sidecar(), pod.order(proof=ODD)
    with pod.serving():
        found = sidecar.headers(RELEASE)
        assert found.toolkit is not None and found.toolkit.rhel == ODD
        with pytest.raises(HeadersMismatch) as caught:
            sidecar.headers(ODD)
        assert f"of RHEL {ODD} " in caught.value.message
        assert f"no headers of kernel {ODD};" in caught.value.message
        made = open_set(sidecar.build(order, pod.wish().source))
        assert made.manifest.provenance.proof == ODD
        put(pod.shared.request, request(driver=ODD, kernel_release=ODD, tool=ODD))
        assert f"nvdriver-build {ODD}," in (pod.answer(ATTEMPT).error or {})["message"]
        put(pod.shared.request, request(attempt=ODD))
        assert pod.answer(ODD).error


def test_a_kernel_that_the_toolkit_lacks(pod: Pod) -> None:
    """Told before anything is compiled: the kernel that runs, those that are there, the RHEL release."""
    pod.toolkit()
    pod.runs("6.6.6-666.el9.x86_64")
    began = time.monotonic()
    outcome = pod.driver().outcome()
    assert (outcome.code, time.monotonic() - began < 2) == (10, True)
    error = outcome.error or {}
    for words in ("of RHEL 9.4", "no headers of kernel 6.6.6-666.el9.x86_64", f"it has {RELEASE}"):
        assert words in error["message"]
    assert "driver-toolkit tag" in error["hint"]
    assert pod.calls == 0


RT = "5.14.0-427.13.1.el9_4.x86_64+rt"


@pytest.mark.parametrize("rt", ["package kernel-rt-core is not installed", "", None, 7, RT])
def test_what_the_toolkit_says_of_itself(pod: Pod, rt: object) -> None:
    """Release file, kernels with their flavours, compiler; what is no RT kernel is none."""
    files = toolkit(RELEASE, document={"KERNEL_VERSION": RELEASE, "RT_KERNEL_VERSION": rt})
    config = {"PREEMPT_RT": "y", "SMP": "y", "MODVERSIONS": "y"}
    pod.dtk({**files, **under(f"usr/src/kernels/{RT}", build_tree(RT, config))})
    with pod.serving() as server:
        until(pod.shared.introduction.exists)
        found = read(pod.shared.introduction, Introduction)
        assert pod.sidecar().headers(RT).release == RT
    assert found == Introduction(
        instance=server.instance,
        tool="0.1.0",
        kernel=RELEASE,
        rt_kernel=RT if rt == RT else None,
        compiler="gcc (GCC) 11.4.1 20230605 (Red Hat 11.4.1-2)",
        installed={RELEASE: "standard", RT: "rt"},
    )


@pytest.mark.parametrize("moment", [0, 4_102_444_800])
def test_files_of_another_time(pod: Pod, moment: int) -> None:
    """Neither the past nor the future of a file's time changes anything: one make, no word of silence."""
    pod.hold()
    toolkit, driver = pod.toolkit(), pod.driver()
    pod.in_make()
    for _ in range(8):
        for path in pod.shared.root.glob("*.json"):
            os.utime(path, (moment, moment))
        time.sleep(0.1)
    pod.release()
    assert (driver.outcome().code, pod.calls) == (0, 1)
    assert [line for line in (*driver.log, *toolkit.log) if line["level"] == "warning"] == []


def test_a_clock_that_jumps(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ends go by the monotonic clock."""
    clock, jumps = time.time, iter([0, 1e9, -1e9, 4e9] * 100_000)
    monkeypatch.setattr(time, "time", lambda: clock() + next(jumps))
    with capture_logs() as logs, pod.serving():
        sidecar = pod.sidecar(arrival=3, patience=3)
        sidecar.headers(RELEASE)
        sidecar.build(pod.order(), pod.wish().source)
    assert [line for line in logs if line["log_level"] == "warning"] == []
