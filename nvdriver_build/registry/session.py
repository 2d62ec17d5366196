"""Talking to one repository: who we are, where it sends us, what another try mends, and errors for people."""

from __future__ import annotations

import random
import time
from typing import Callable, Mapping, Optional
from urllib.parse import urljoin, urlsplit

from attrs import evolve, field, frozen

from nvdriver_build.errors import StoreError
from nvdriver_build.registry.login import Login
from nvdriver_build.registry.place import Place, host_of, is_loopback
from nvdriver_build.registry.tokens import authorization
from nvdriver_build.registry.transport import Answer, Body, Failed, Limits, Sink, TooMuch, Transport
from nvdriver_build.store.remote import Unbelievable

PULL, PUSH = "pull", "pull,push"
"""Actions of a token's scope."""
_BUSY = (408, 429, 500, 502, 503, 504)
"""Statuses that another try may mend."""
_MOVED = (301, 302, 303, 307, 308)
_REDIRECTS = 4
_LONGEST_PAUSE = 5.0
_SMALL = 64 * 1024


@frozen(eq=False)
class Session:
    """Requests to the repository at `place`, as whoever `login` is."""

    place: Place
    transport: Transport
    login: Optional[Login] = field(default=None, repr=False)
    _shown: dict[str, str] = field(factory=dict, repr=False)
    """The Authorization header that was last taken, for each scope."""

    @property
    def limits(self) -> Limits:
        """Seconds and bytes that the registry gets."""
        return self.transport.limits

    def before(self, until: float) -> Session:
        """The same, that has no answer after `until` of the monotonic clock."""
        return evolve(self, transport=self.transport.before(until))

    def ask(
        self,
        method: str,
        path: str,
        *,
        scope: str = PULL,
        wanted: tuple[int, ...] = (200,),
        headers: Mapping[str, str] = {},
        body: Body = None,
        most: int = _SMALL,
        size: int = 0,
        restart: Optional[Callable[[], Sink]] = None,
    ) -> Answer:
        """An answer whose status is one of `wanted`; StoreError, with a hint, for every other, and for none.

        `path` is below the repository, or an address that it gave. `size` is what moves, for the time it may
        take. `restart` gives the sink of a try.
        """
        url = path if "://" in path else f"{self.place.url}/{path}"
        until = time.monotonic() + self.limits.seconds(size)
        for left in range(self.limits.attempts - 1, -1, -1):
            again: Optional[float] = None
            try:
                answer = self._authorized(method, url, scope, headers, body, most, until, restart)
                if answer.status in wanted:
                    return answer
                failure = self.refused(method, answer, scope)
                again = _pause(answer) if answer.status in _BUSY else None
            except Failed as error:
                failure = self.lying(str(error)) if isinstance(error, TooMuch) else self._silent(error)
                again = 0.0 if error.again else None
            pause = max(again or 0.0, self.limits.pause * 2 ** (self.limits.attempts - 1 - left))
            pause *= random.uniform(0.5, 1.5)
            if again is None or not left or time.monotonic() + pause >= until:
                raise failure
            self.transport.pause(pause)
        raise AssertionError("no attempt")  # pragma: no cover - Limits has one at least

    def lying(self, what: str) -> Unbelievable:
        """The error for an answer that cannot be true."""
        return Unbelievable(
            f"registry {self.place} cannot be believed: {what}",
            hint="nothing of it was taken; was the set pushed by nvdriver-build, and is this a registry?",
        )

    def slow(self, what: str) -> StoreError:
        """The error for many answers that each come in time, and together do not."""
        return StoreError(f"registry {self.place} is slow: {what}", hint="the next push goes on from there")

    def _authorized(
        self,
        method: str,
        url: str,
        scope: str,
        headers: Mapping[str, str],
        body: Body,
        most: int,
        until: float,
        restart: Optional[Callable[[], Sink]],
    ) -> Answer:
        """One try; where the registry asks who we are, it is told, once."""
        for first in (True, False):
            sink = restart() if restart else None
            answer = self._followed(method, url, scope, headers, body, most, until, sink)
            if answer.status != 401 or not first:
                return answer
            told = authorization(self.transport, self.place, self.login, answer.headers, scope, until)
            if told is None:
                return answer
            self._shown[scope] = told
        return answer

    def _followed(
        self,
        method: str,
        url: str,
        scope: str,
        headers: Mapping[str, str],
        body: Body,
        most: int,
        until: float,
        sink: Optional[Sink],
    ) -> Answer:
        """One request; a redirect is followed where it only reads, and shows who we are to nobody else."""
        for _ in range(_REDIRECTS + 1):
            own = _origin(url) == _origin(self.place.url)
            shown = {"Authorization": self._shown[scope]} if own and scope in self._shown else {}
            answer = self.transport.request(
                method,
                url,
                headers={**headers, **shown},
                body=body,
                most=most,
                seconds=max(0.1, until - time.monotonic()),
                sink=sink,
            )
            if answer.status == 401 and not own:  # or it could name a token server of its own
                raise Failed(f"sends us to {host_of(url)}, which asks who we are")
            if answer.status not in _MOVED or method not in ("GET", "HEAD"):
                return answer
            url = self.elsewhere(url, answer)
        raise Failed(f"redirects more than {_REDIRECTS} times")

    def elsewhere(self, url: str, answer: Answer) -> str:
        """Where an answer sends us; Failed where that is no address, or one without TLS."""
        try:
            target = urljoin(url, answer.headers.get("location", ""))
        except ValueError:
            target = ""
        tls = target.startswith("https://")
        plain = target.startswith("http://") and self.place.scheme == "http" and is_loopback(host_of(target))
        if not host_of(target) or not (tls or plain):
            raise Failed(f"sends us to {target[:200]!r}")
        return target

    def refused(self, method: str, answer: Answer, scope: str) -> StoreError:
        """The error for an answer with another status than those that were wanted."""
        hints = {
            401: f"NVDRIVER_REGISTRY_AUTH names the file with a login that may {scope}",
            403: f"the login in NVDRIVER_REGISTRY_AUTH has to be one that may {scope}",
            404: "is that the repository's name? the login may lack the right to see it, too",
            429: "too many requests at once: it is taken up again with the next run",
        }
        words = answer.body[:200].decode("utf-8", "backslashreplace").strip()
        return StoreError(
            f"registry {self.place} answers {method} with {answer.status}{f': {words}' if words else ''}",
            hint=hints.get(answer.status, "its own log tells why; the next run asks it again"),
        )

    def _silent(self, error: Failed) -> StoreError:
        hint = "is the address right, is it up, and has it to be reached through a proxy (HTTPS_PROXY)?"
        if error.tls:
            hint = "NVDRIVER_REGISTRY_CA names the certificate of a private CA"
        return StoreError(f"registry {self.place} gives no answer that can be taken: {error}", hint=hint)


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.lower()


def _pause(answer: Answer) -> float:
    """What the other side asks us to wait, in seconds, within reason."""
    text = answer.headers.get("retry-after", "")
    return min(float(text), _LONGEST_PAUSE) if text.isascii() and text.isdigit() else 0.0
