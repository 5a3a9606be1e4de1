"""The goals, written before the first run."""

import math
from collections.abc import Callable, Mapping

from .._records import Record
from ._problems import PROBLEMS
from ._ways import ADAPTERS, PRETRAINED, SINGLE

# The runs at the best rate: by problem, way and number of simulations, one for each seed.
Chosen = Mapping[tuple[str, str, int], list[Record]]


def mean(records: list[Record], name: str) -> float:
    """The mean over the seeds."""
    return sum(record[name] for record in records) / len(records)


def _coverage(chosen: Chosen, inside: bool) -> list[tuple[float, float, float]]:
    cells = (records for key, records in _adapters(chosen, inside))
    return [(0.88, mean(records, "coverage"), 0.94) for records in cells]


def _adapters(chosen: Chosen, inside: bool | None = None) -> list[tuple[tuple[str, int], list]]:
    """The records of the adapters, for problems with or without unseen values, or for all."""
    of_values = {problem.name: bool(problem.values) for problem in PROBLEMS}
    return [
        ((problem, samples), records)
        for (problem, way, samples), records in sorted(chosen.items())
        if way == ADAPTERS and (inside is None or of_values[problem] is inside)
    ]


def ratio(ours: list[Record], theirs: list[Record]) -> float:
    """The CRPS over theirs, on the seeds of both. NaN without such seeds."""
    beside = {record["seed"]: record for record in theirs}
    pairs = [(record, beside[record["seed"]]) for record in ours if record["seed"] in beside]
    if not pairs:
        return math.nan
    return mean([pair[0] for pair in pairs], "crps") / mean([pair[1] for pair in pairs], "crps")


def _beside(way: str, limit: float) -> Callable[[Chosen], list[tuple[float, float, float]]]:
    def cells(chosen: Chosen) -> list[tuple[float, float, float]]:
        ratios = [
            ratio(records, chosen.get((problem, way, samples), []))
            for (problem, samples), records in _adapters(chosen)
        ]
        return [(0, number, limit) for number in ratios if not math.isnan(number)]

    return cells


def _beside_constant(chosen: Chosen) -> list[tuple[float, float, float]]:
    cells = (records for _, records in _adapters(chosen))
    return [(0, mean(r, "crps") / mean(r, "constant_crps"), 0.8) for r in cells]


# Each goal is met if every number lies between its limits.
GOALS: tuple[tuple[str, Callable[[Chosen], list[tuple[float, float, float]]]], ...] = (
    (
        "intervals of 90 % hold 88 to 94 % of the points in the setting",
        lambda chosen: _coverage(chosen, inside=False),
    ),
    (
        "intervals of 90 % hold 88 to 94 % of the points at unseen values inside the range",
        lambda chosen: _coverage(chosen, inside=True),
    ),
    ("CRPS at most 1.03 of five pretrained and fully tuned models", _beside(PRETRAINED, 1.03)),
    ("CRPS at most 0.8 of one adapter with a constant width", _beside(SINGLE, 0.8)),
    ("CRPS at most 0.8 of the same members with a constant width", _beside_constant),
)
