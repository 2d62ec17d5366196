"""Times that are promised. A machine that is busy may stall: one of three runs of a test has to keep them.

    @best_of_three
    def test_it(pod: Pod) -> None:
        ...
        in_time(time.monotonic() - began, 2.0)

Only `in_time` leads to another run; whatever else a test asserts fails at once.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any, Callable, ContextManager, Protocol, runtime_checkable


class Late(AssertionError):
    """Slower than promised."""


@runtime_checkable
class Repeatable(Protocol):
    """What a test is given and uses up."""

    def again(self) -> ContextManager[Any]:
        """The same once more, as fresh as this was; this one is over."""


def in_time(seconds: float, bound: float) -> None:
    """It took less than `bound` seconds, or Late."""
    assert seconds >= 0
    if seconds >= bound:
        raise Late(f"it took {seconds:.2f} s, promised is less than {bound:g} s")


def best_of_three(test: Callable[..., None]) -> Callable[..., None]:
    """A test that may be late twice. What it is given by fixtures is as fresh each time."""

    @functools.wraps(test)
    def run(**given: Any) -> None:
        with contextlib.ExitStack() as stack:
            for _ in range(2):
                try:
                    return test(**given)
                except Late as late:
                    print(f"once more: {late}")
                for name, value in given.items():
                    if isinstance(value, Repeatable):
                        given[name] = stack.enter_context(value.again())
            return test(**given)

    return run
