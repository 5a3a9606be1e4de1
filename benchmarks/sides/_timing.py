"""Seconds per call, on devices that return before they have computed the result."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Subject:
    """A case that a worker has built: its facts, and the calls that can be timed.

    `measures[name](calls)` makes this number of calls and returns the mean seconds of a call.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    measures: dict[str, Callable[[int], float]] = field(default_factory=dict)


def timed(
    call: Callable[[], Any],
    wait: Callable[[Any], Any],
    *,
    queue: bool,
    clock: Callable[[], float] = time.perf_counter,
) -> Callable[[int], float]:
    """A measure of `call`.

    **Arguments:**

    - `call`: the function to time.
    - `wait`: given a result, returns once the device has computed it.
    - `queue`: whether to wait only for the last call. A GPU runs calls in order, and waiting for
        each call would time the round trip. A CPU may run independent calls at once, so there the
        measure waits for each call. Only the last result stays: many results would fill a GPU.
    - `clock`: the seconds of the wall or, for calls on one core of a busy machine, of the process.
    """

    def measure(calls: int) -> float:
        wait(None)
        start = clock()
        result = None
        for _ in range(calls):
            result = call()
            if not queue:
                wait(result)
        wait(result)
        return (clock() - start) / calls

    return measure
