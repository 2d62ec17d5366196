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
from best_of_three import best_of_three, in_time
from kernel_trees import RELEASE
from sidecar_processes import SOON
from sidecar_rig import ODD, Pod
from structlog.testing import capture_logs

from nvdriver_build.cli.progress import BuildProgress
from nvdriver_build.errors import HeadersError, NvdriverError, ToolkitError
from nvdriver_build.toolkit import SAME_VERSION
from nvdriver_build.toolkit.documents import (
    BUILD,
    HEADERS,
    Introduction,
    Request,
    Result,
    read,
    write,
)

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
    """Let a document appear whole, as whoever may write to the folder does."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    path.with_name("new").write_bytes(data)
    path.with_name("new").replace(path)


def until(true: Callable[[], bool], within: float = SOON) -> float:
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
        assert pod.headers(RELEASE).release == RELEASE


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
        assert pod.headers(RELEASE).release == RELEASE


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
@best_of_three
def test_requests_that_are_refused(pod: Pod, differ: Dict[str, Any], words: str) -> None:
    """Whoever asks so, in another version of ours, say, is answered by its own id within 1 s."""
    with pod.serving():
        pod.introduced()
        put(pod.shared.request, request(**differ))
        began = time.monotonic()
        result = pod.answer(request(**differ)["attempt"])
        in_time(time.monotonic() - began, 1)
    error = result.error or {}
    assert (error["kind"], error["code"]) == ("ToolkitError", 18)
    assert words in error["message"]
    assert error["hint"]
    assert not pod.shared.headers.exists()


def test_a_refusal_that_cannot_be_written(pod: Pod) -> None:
    """It is written as soon as the shared folder takes it, and the want of it is told once."""
    pod.shared.result.mkdir()
    with capture_logs() as logs, pod.serving():
        put(pod.shared.request, request(tool="9.9"))
        until(lambda: len(errors(logs)) > 0)
        time.sleep(0.5)
        assert errors(logs) == ["the shared folder takes nothing"]
        pod.shared.result.rmdir()
        assert (pod.answer(ATTEMPT).error or {})["kind"] == "ToolkitError"


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
        pod.headers(RELEASE)
    seconds = time.monotonic() - began
    thread.join()
    in_time(seconds, 1)
    return caught.value


@pytest.mark.parametrize("name", NO_DOCUMENTS)
@pytest.mark.parametrize("place", ["result", "introduction"])
@best_of_three
def test_answers_that_are_none(pod: Pod, place: str, name: str) -> None:
    """The driver's end ends with 18, at once."""
    error = refused(pod, lambda _: put(getattr(pod.shared, place), NO_DOCUMENTS[name]))
    assert error.exit_code == 18
    assert "cannot be understood" in error.message or "has schema" in error.message


@pytest.mark.parametrize("place", ["result", "introduction"])
@best_of_three
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
        pod.headers(RELEASE, arrival=0)
    thread.join()


@pytest.mark.parametrize(
    "odd",
    ['"elapsed": 1e999', '"elapsed": NaN', f'"done": 1{"0" * 400}', '"total": -1', '"done": -1, "total": 1'],
)
def test_a_progress_that_is_none(pod: Pod, odd: str) -> None:
    """What cannot be told of a build, infinity say, is no sign of life, and ends nothing."""
    beat = f'{{"schema": 1, "instance": "x", "count": 1, "done": 1, "total": 2, "elapsed": 3.0, {odd}}}'
    thread = answering(pod, lambda _: put(pod.shared.toolkit_beat, beat.encode()))
    pod.offer()
    with BuildProgress() as progress, pytest.raises(ToolkitError, match="no sign of life"):
        pod.sidecar(arrival=0.5).build(pod.order(), pod.wish().source, progress)
    thread.join()


@best_of_three
def test_a_toolkit_that_can_serve_nobody(pod: Pod) -> None:
    """No Python that fits, say: the run ends at once, with the code and the hint from over there."""
    told = {"code": 10, "kind": "HeadersError", "message": "no Python 3.9 or later", "hint": "use that of 9"}
    error = refused(pod, lambda _: write(pod.shared.introduction, Introduction("sh-1", error=told)))
    assert (type(error), error.exit_code, error.message) == (HeadersError, 10, "no Python 3.9 or later")
    assert error.hint == "use that of 9"


@pytest.mark.parametrize("kind", ["os", "Optional", "NvdriverError ", None, "Stopped", "frozen"])
@best_of_three
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
