"""What the runs share: how much is computed, the name of a run, a task, and the grid of rates."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ._equations import EQUATIONS, Equation

# The name of a run. `z` is a value for ways that train for each value; the last are Adam's.
KEY = ("part", "problem", "way", "by", "seed", "z", "rate", "factor")


@dataclass(frozen=True)
class Effort:
    """How much is computed: the full study, or just enough to see that everything runs."""

    equations: Sequence[Equation] = EQUATIONS
    base_steps: int = 300  # of Levenberg-Marquardt
    steps: int = 300
    adam_steps: int = 1200
    points: tuple[int, int] = (40, 120)  # per value, in one and two dimensions
    test: int = 1024  # points
    seeds: int = 2
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    extensions: int = 3  # of the rates, while the best is the lowest or the highest
    fields: int = 256
    test_fields: int = 24
    operator_base_steps: int = 3000
    operator_steps: int = 300
    every: int = 25
    caches: bool = True  # whether bases are kept on the disk


FULL = Effort()
QUICK = Effort(EQUATIONS[2:], 2, 2, 2, (8, 8), 8, 1, (1e-3,), 0, 16, 2, 2, 2, 1, caches=False)


class Task(NamedTuple):
    """A part of the study: its name, and the records that it lacks."""

    name: str
    records: Callable[[dict[Any, Any]], Iterator[dict[str, Any]]]


def searched(
    name: dict[str, Any],
    effort: Effort,
    done: dict[Any, Any],
    factors: Sequence[float],
    at_rate: Callable[[float, float], dict[str, Any]],
) -> Iterator[dict[str, Any]]:
    """The records of a grid of rates, which grows while its best rate is its lowest or highest.

    **Arguments:** `at_rate(rate, factor)`: the results of a run; its `validation` decides.
    """
    for factor in factors:
        results: dict[float, dict[str, Any]] = {}
        missing, extensions = list(effort.rates), 0
        while missing:
            for rate in missing:
                named = name | {"rate": rate, "factor": factor}
                key = tuple(named[part] for part in KEY)
                if key in done:
                    results[rate] = done[key]
                else:
                    results[rate] = named | at_rate(rate, factor)
                    yield results[rate]
            # Rates without any improvement are equal, and all too large.
            best = min(results, key=lambda rate: (results[rate]["validation"], rate))
            missing = []
            if extensions < effort.extensions and best in (min(results), max(results)):
                extensions += 1
                missing = [float(f"{best * (3.2 if best == max(results) else 1 / 3.2):.1g}")]


def chosen(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The record with the lowest validation, and as `edge` whether its rate ends the grid."""
    best = min(records, key=lambda record: (record["validation"], record["rate"]))
    rates = [record["rate"] for record in records if record["factor"] == best["factor"]]
    return best | {"edge": len(rates) > 1 and best["rate"] in (min(rates), max(rates))}
