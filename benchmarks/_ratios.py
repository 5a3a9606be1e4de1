"""Ratios of interleaved rounds. Nothing here knows an absolute time."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Ratio:
    """The median and quartiles of the ratios of `rounds` rounds."""

    median: float
    q1: float
    q3: float
    rounds: int

    @staticmethod
    def of(values: Sequence[float]) -> "Ratio":
        """**Raises:** `ValueError` if there are no values."""
        if not values:
            raise ValueError("no round has a ratio")
        if len(values) == 1:
            return Ratio(values[0], values[0], values[0], 1)
        q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
        return Ratio(median, q1, q3, len(values))

    def record(self) -> dict[str, Any]:
        """The ratio for JSON, with four significant digits."""
        return {k: v if k == "rounds" else float(f"{v:.4g}") for k, v in asdict(self).items()}


def per_round(
    rounds: Iterable[Mapping[str, float]], side: str = "ours"
) -> dict[str, dict[str, Any]]:
    """The ratios of one side to every other side, each formed within a round.

    **Arguments:**

    - `rounds`: for each round, the seconds of the sides that finished it.
    - `side`: the numerator.

    **Returns:** one record for each side that shares a round with `side`.
    """
    values: dict[str, list[float]] = {}
    for seconds in rounds:
        if side not in seconds:
            continue
        for peer, peer_seconds in seconds.items():
            if peer != side and peer_seconds > 0:
                values.setdefault(peer, []).append(seconds[side] / peer_seconds)
    return {peer: Ratio.of(ratios).record() for peer, ratios in values.items()}


def of_facts(facts: Mapping[str, Mapping[str, Any]], side: str = "ours") -> dict[str, Any]:
    """The ratios of numbers that do not vary from round to round, such as flops."""
    ratios: dict[str, Any] = {}
    for name, ours in facts.get(side, {}).items():
        for peer, peer_facts in facts.items():
            value = peer_facts.get(name)
            if peer != side and _is_number(ours) and _is_number(value) and value > 0:
                ratios.setdefault(name, {})[peer] = Ratio.of([ours / value]).record()
    return ratios


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
