"""Requests over HTTP that end in time and stay within bounds, whatever the other side does.

A request runs in a thread of its own, while the caller's looks at the clock and for signals: so a name that
is not resolved, a header that comes byte by byte, or an answer without an end is cut off, not waited for.
Nothing is read from the environment, nothing is redirected, no cookie is kept.
"""

from __future__ import annotations

import contextlib
import math
import ssl
import threading
import time
from pathlib import Path
from typing import IO, Any, Callable, Iterator, Mapping, Optional, Union

from attrs import evolve, field, frozen

from nvdriver_build import __version__
from nvdriver_build.registry.place import Proxies

_CHUNK = 256 * 1024
_GLANCE = 0.2
"""Seconds between two looks for a signal."""
_TOLD = 2048
"""Bytes of an answer that nobody wants which are kept for the message."""


@frozen
class Limits:
    """Seconds and bytes that a registry gets.

    A small answer has to be there within `answer` seconds, tries and all; each `rate` bytes of a large one
    give it a second more. `silence` is the longest that the other side may say nothing.
    """

    connect: float = 10.0
    silence: float = 15.0
    answer: float = 30.0
    rate: int = 512 * 1024
    attempts: int = 3
    pause: float = 0.5
    """Seconds before the second try, with jitter; twice that before the third."""

    def seconds(self, size: int) -> float:
        """How long a transfer of that many bytes may take."""
        return self.answer + size / self.rate


class Failed(Exception):
    """No answer, or none that could be taken; `again`: another try may mend it, `tls`: it is not trusted."""

    def __init__(self, message: str, *, again: bool = False, tls: bool = False) -> None:
        super().__init__(message)
        self.again = again
        self.tls = tls


class TooMuch(Failed):
    """An answer of more bytes than it may have."""


class _Here(Exception):
    """A file of ours cannot be read or written: nothing that the other side did."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


@contextlib.contextmanager
def _here() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _Here(error) from error


@frozen
class Answer:
    """Status, headers by their names in small letters, and the bytes, unless they went to a sink."""

    status: int
    headers: Mapping[str, str]
    body: bytes


Sink = Callable[[bytes], object]
Body = Union[bytes, Path, None]


@frozen(eq=False)
class Transport:
    """Makes requests, none of them after `until` (of the monotonic clock); `check` is called several times a
    second meanwhile and may raise.
    """

    context: ssl.SSLContext
    proxies: Proxies = field(factory=Proxies)
    limits: Limits = field(factory=Limits)
    check: Callable[[], None] = lambda: None
    until: float = math.inf
    _managers: dict[Optional[str], Any] = field(factory=dict)

    def before(self, until: float) -> Transport:
        """The same, with the same connections, and no request after `until`."""
        return evolve(self, until=min(until, self.until))

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: Body = None,
        most: int,
        seconds: float,
        sink: Optional[Sink] = None,
    ) -> Answer:
        """One request; Failed where there is no whole answer of at most `most` bytes within `seconds`.

        What comes with 200 goes to `sink`, if there is one.
        """
        from nvdriver_build.registry.connections import FAILURES, Worker

        left = self.until - time.monotonic()
        if left <= 0:
            raise Failed("all the time that it gets is over")

        def act(worker: Worker) -> Answer:
            with _opened(body) as data:
                return self._exchange(worker, method, url, headers, data, most, sink)

        worker = Worker(act)
        try:
            worker.start()
            self._wait(worker.done, min(seconds, left))
        except RuntimeError as error:
            raise Failed(f"no thread for a request: {error}") from error
        except BaseException:
            worker.cut()
            raise
        if isinstance(worker.error, _Here):
            raise worker.error.error
        if isinstance(worker.error, FAILURES):
            raise _told(worker.error) from worker.error
        if worker.error is not None:
            raise worker.error
        answer: Answer = worker.result
        return answer

    def pause(self, seconds: float) -> None:
        """Sleep, while looking for signals, and no longer than there is time."""
        until = min(time.monotonic() + seconds, self.until)
        while (left := until - time.monotonic()) > 0:
            self.check()
            time.sleep(min(left, _GLANCE))

    def _wait(self, done: threading.Event, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not done.wait(min(_GLANCE, max(0.0, until - time.monotonic()))):
            self.check()
            if time.monotonic() >= until:
                raise Failed(f"not done after {seconds:.0f} s")

    def _exchange(
        self,
        worker: Any,
        method: str,
        url: str,
        headers: Mapping[str, str],
        data: Union[bytes, IO[bytes], None],
        most: int,
        sink: Optional[Sink],
    ) -> Answer:
        import urllib3

        response = self._manager(url).request(
            method,
            url,
            headers={"User-Agent": f"nvdriver-build/{__version__}", "Accept-Encoding": "identity", **headers},
            body=data,
            timeout=urllib3.Timeout(connect=self.limits.connect, read=self.limits.silence),
            redirect=False,
            preload_content=False,
            decode_content=False,
        )
        try:
            whole = _take(worker, response, most, sink if response.status == 200 else None)
        except BaseException:
            response.close()
            raise
        response.release_conn()
        return Answer(
            response.status, {name.lower(): value for name, value in response.headers.items()}, whole
        )

    def _manager(self, url: str) -> Any:
        from nvdriver_build.registry.connections import manager

        proxy = self.proxies.of(url)
        if proxy not in self._managers:
            self._managers[proxy] = manager(proxy, self.context)
        return self._managers[proxy]


def _take(worker: Any, response: Any, most: int, sink: Optional[Sink]) -> bytes:
    kept: list[bytes] = []
    size = 0
    most = most if 200 <= response.status < 300 else min(most, _TOLD)
    while True:
        data = response.read1(_CHUNK)
        if worker.is_cut:
            raise Failed("cut off")
        if not data:
            return b"".join(kept)
        size += len(data)
        if size > most and 200 <= response.status < 300:
            raise TooMuch(f"answers with more than {most} bytes")
        if size > most:  # an error page: its start will do, and the connection is not used again
            response.close()
            return b"".join((*kept, data))[:most]
        if sink is not None:
            with _here():
                sink(data)
        else:
            kept.append(data)


@contextlib.contextmanager
def _opened(body: Body) -> Iterator[Union[bytes, IO[bytes], None]]:
    if isinstance(body, Path):
        with contextlib.ExitStack() as stack:
            with _here():
                file = stack.enter_context(body.open("rb"))
            yield file
    else:
        yield body


def _told(error: BaseException) -> Failed:
    """What happened, without the addresses of objects that urllib3 puts into its messages."""
    from nvdriver_build.registry.connections import AGAIN

    cause: BaseException = error
    while (deeper := getattr(cause, "reason", None) or cause.__cause__) and isinstance(deeper, BaseException):
        cause = deeper
    tls = any(isinstance(each, ssl.SSLCertVerificationError) for each in (error, cause, *cause.args))
    words = getattr(cause, "strerror", None) or str(cause).rpartition(">: ")[2] or type(cause).__name__
    again = isinstance(error, AGAIN) and not tls
    return Failed(str(words)[:300], again=again, tls=tls)
