"""Seconds per call, on devices that answer before they are done."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Subject:
    """A case that a worker has built: its facts, and the calls that can be timed.

    `measures[name](calls)` makes that many calls and returns the seconds that one of them took.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    measures: dict[str, Callable[[int], float]] = field(default_factory=dict)


def timed(
    call: Callable[[], Any], wait: Callable[[Any], Any], *, queue: bool
) -> Callable[[int], float]:
    """A measure of `call`.

    **Arguments:**

    - `call`: what is timed.
    - `wait`: given a result, returns once the device has computed it.
    - `queue`: whether to wait for the last call only (a GPU runs them in order, and to wait for
        each would time the round trip) or for each of them (a CPU could run independent calls at
        once, and each would seem shorter than it is). Only the last result is kept: hundreds of
        large ones would fill a GPU.
    """

    def measure(calls: int) -> float:
        wait(None)
        start = time.perf_counter()
        result = None
        for _ in range(calls):
            result = call()
            if not queue:
                wait(result)
        wait(result)
        return (time.perf_counter() - start) / calls

    return measure
