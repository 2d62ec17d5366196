"""Where it stands who builds what."""

from __future__ import annotations

from typing import Optional, Protocol

import structlog
from attrs import evolve, field, frozen

_log = structlog.get_logger()


class NoBoard(Exception):
    """It cannot be asked, or may not be written to; the message says why."""


@frozen
class Sight:
    """What stands beside a key: `mark` changes as long as `holder` lives. No holder: it was given back.

    What is not `settled` is a claim, which may be another's in a moment.
    """

    holder: str
    mark: str
    settled: bool = True


class Board(Protocol):
    """The place; every method raises NoBoard where there is none."""

    def before(self, until: float) -> Board:
        """The same, which is not waited for after `until` of the monotonic clock: NoBoard then."""

    def look(self, key: str) -> Optional[Sight]:
        """What stands beside a key; None for nothing."""

    def claim(self, key: str, name: str, seen: Optional[Sight]) -> bool:
        """Put a name there in place of what was seen; False where somebody else was faster."""

    def renew(self, key: str, name: str) -> bool:
        """Give a sign of life; False where the name does not stand there any more."""

    def release(self, key: str, name: str) -> None:
        """Give it back, if it is still ours."""


@frozen
class Either:
    """The first of two boards, until it proves that it cannot be used; from then on the second."""

    first: Board
    second: Board
    _failed: list[NoBoard] = field(factory=list)
    """Why the first one is not used any more."""

    def before(self, until: float) -> Either:
        """See `Board.before`."""
        return evolve(self, first=self.first.before(until), second=self.second.before(until))

    def look(self, key: str) -> Optional[Sight]:
        """See `Board.look`."""
        try:
            return self._board.look(key)
        except NoBoard as error:
            return self._other(error).look(key)

    def claim(self, key: str, name: str, seen: Optional[Sight]) -> bool:
        """See `Board.claim`."""
        try:
            return self._board.claim(key, name, seen)
        except NoBoard as error:
            other = self._other(error)
            seen = other.look(key)
            return not (seen and seen.holder) and other.claim(key, name, seen)

    def renew(self, key: str, name: str) -> bool:
        """See `Board.renew`."""
        return self._board.renew(key, name)

    def release(self, key: str, name: str) -> None:
        """See `Board.release`."""
        self._board.release(key, name)

    @property
    def _board(self) -> Board:
        return self.second if self._failed else self.first

    def _other(self, error: NoBoard) -> Board:
        if self._failed:
            raise error
        self._failed.append(error)
        _log.info("no Lease to agree on who builds: a marker in the registry will do", reason=str(error))
        return self.second
