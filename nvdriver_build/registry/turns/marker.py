"""A tag in the registry that says who builds a set: the best that can be had without compare-and-swap.

    turn-<key>   a note with the name of who builds, and a number: 0 while they claim it, then one that
                 changes as long as they live

Whoever wants it waits a moment by chance, looks, writes, lets the others' writes settle, and reads: the last
writer has it. Who has it writes over claims that come later, and looks often at first: so two have it only
where one was much slower to write than the other let settle, twice.
"""

from __future__ import annotations

import random
import re
import time
from typing import Optional

from attrs import evolve, frozen

from nvdriver_build.errors import StoreError
from nvdriver_build.registry.artifacts import NOTHING, note, parse_note
from nvdriver_build.registry.blobs import Content
from nvdriver_build.registry.turns.board import NoBoard, Sight
from nvdriver_build.store.remote import Unbelievable

_TURN = "application/vnd.nvdriver-build.turn.v1"
_HOLDER, _BEAT = "nvdriver-build.holder", "nvdriver-build.beat"
_CLAIM = "0"
_BEATS = 8
"""Numbers in turn, so that one builder leaves a few small documents behind, not hundreds."""
_LONGEST_NAME = 200


@frozen
class MarkerBoard:
    """Tags of a registry. `spread` and `settle` are in seconds."""

    content: Content
    spread: float = 5.0
    settle: float = 2.0

    def before(self, until: float) -> MarkerBoard:
        """See `Board.before`."""
        return evolve(self, content=self.content.before(until))

    def look(self, key: str) -> Optional[Sight]:
        """See `Board.look`; what is no note of ours is nothing."""
        try:
            document = self.content.document(_tag(key))
            said = parse_note(document, _TURN) if document is not None else None
        except (ValueError, Unbelievable):
            return None
        except StoreError as error:
            raise NoBoard(error.message) from error
        if said is None:
            return None
        holder, mark = (said.get(name, "")[:_LONGEST_NAME] for name in (_HOLDER, _BEAT))
        return Sight(holder, mark, settled=mark != _CLAIM)

    def claim(self, key: str, name: str, seen: Optional[Sight]) -> bool:
        """See `Board.claim`."""
        pause = self.content.session.transport.pause
        pause(random.uniform(0, self.spread))
        begun = time.monotonic()
        if self.look(key) != seen:
            return False
        self._write(key, Sight(name, _CLAIM))
        took = time.monotonic() - begun
        pause((self.settle + 2 * took) * random.uniform(1, 1.5))
        if not self._is_ours(self.look(key), name):
            return False
        self._write(key, Sight(name, "1"))
        return True

    def renew(self, key: str, name: str) -> bool:
        """See `Board.renew`."""
        there = self.look(key)
        ours = self._is_ours(there, name)
        if not ours and (there is None or there.mark != _CLAIM or not there.holder):
            return False
        beat = int(there.mark) if there and ours and re.fullmatch("[0-9]", there.mark) else 0
        self._write(key, Sight(name, str(beat % _BEATS + 1)))
        return True

    def release(self, key: str, name: str) -> None:
        """See `Board.release`."""
        if self._is_ours(self.look(key), name):
            self._write(key, Sight("", _CLAIM))

    def _is_ours(self, there: Optional[Sight], name: str) -> bool:
        return there is not None and there.holder == name

    def _write(self, key: str, sight: Sight) -> None:
        try:
            said = {_HOLDER: sight.holder, _BEAT: sight.mark}
            self.content.publish(_tag(key), note(_TURN, said), NOTHING, known=True)
        except StoreError as error:
            raise NoBoard(error.message) from error


def _tag(key: str) -> str:
    return f"turn-{key}"
