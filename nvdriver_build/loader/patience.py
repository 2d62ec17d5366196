"""Waiting for what passes by itself, and for nothing else."""

from __future__ import annotations

from typing import Any, Callable, TypeVar

from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

T = TypeVar("T")
_PAUSE = 0.1


def repeat_while(
    passing: Callable[[T], bool], seconds: float, function: Callable[..., T], *arguments: Any
) -> T:
    """Call `function` until `passing` is false of its result, or `seconds` are over; its last result."""
    retrying = Retrying(
        retry=retry_if_result(passing),
        stop=stop_after_delay(seconds),
        wait=wait_fixed(_PAUSE),
        retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
    )
    result: T = retrying(function, *arguments)
    return result
