"""Seconds per call, on devices that answer before they are done."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Subject:
    """What a worker has built of a case: facts, and what can be timed.

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
    - `wait`: given a list of results, returns once the device has computed them.
    - `queue`: whether to wait once for all calls (a GPU runs them in order, and to wait for each
        would time the round trip) or for each of them (a CPU could run independent calls at once,
        and each would seem shorter than it is).
    """

    def measure(calls: int) -> float:
        wait([])
        start = time.perf_counter()
        if queue:
            wait([call() for _ in range(calls)])
        else:
            for _ in range(calls):
                wait([call()])
        return (time.perf_counter() - start) / calls

    return measure
