"""Two adapters of two settings, combined into one by every method."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from jno.lora import AdapterSet, merge_lora, swap_adapters
from jno_lora_combine import combine
from jno_lora_zoo import collect_statistics

from ._ways import RANK, Learner

# Settings on both sides of the source, and on one side.
PAIRS = ((1, 2), (1, 3))
WEIGHTS = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0)  # of both adapters
_DENSITIES = (0.3, 0.7)


@dataclass(frozen=True)
class Merge:
    """A method of the table.

    - `row`: its name in the table.
    - `pair`: the two settings.
    - `alone`: the adapter that is used alone, as it is.
    - `method`: of `combine`. `None`: averaging by Fisher information, which only this study has.
    - `rank`: of the combined adapters, for methods that leave it open.
    """

    row: str
    method: str | None = None
    pair: tuple[int, int] = PAIRS[0]
    alone: int | None = None
    rank: int | None = None
    is_sparse: bool = False

    @property
    def name(self) -> str:
        """What the records call it."""
        return f"{self.row} of {self.pair[0]} and {self.pair[1]}"

    def variants(self) -> Iterator[tuple[float, float]]:
        """The densities and the weights to try. 0 stands for no density."""
        for density in _DENSITIES if self.is_sparse else (0.0,):
            for weight in (1.0,) if self.alone is not None else WEIGHTS:
                yield density, weight


_METHODS = (
    Merge("the first adapter alone", alone=0),
    Merge("the second adapter alone", alone=1),
    Merge("`linear`, `cat`", "linear"),
    Merge("`svd`, half the rank", "svd", rank=RANK),
    *(
        Merge(f"`{method}`", method, rank=2 * RANK, is_sparse=True)
        for method in ("magnitude_prune", "ties", "dare_linear", "dare_ties", "knots_ties")
    ),
    Merge("`regmean`", "regmean"),
    Merge("Fisher-weighted averaging"),
)
MERGES = tuple(replace(merge, pair=pair) for pair in PAIRS for merge in _METHODS)


class Merging:
    """Combines the adapters of two settings, and measures the combined model.

    - `sets`: the adapters of each task.
    """

    def __init__(self, learner: Learner, sets: list[AdapterSet], pair: tuple[int, int]):
        self.learner, self.pair = learner, pair
        self.sets = [sets[setting - 1] for setting in pair]
        self._statistics: list[Any] = []
        self._fishers: list[Any] = []

    def errors(self, merge: Merge, density: float, weight: float) -> tuple[list[float], float]:
        """The errors on the tests of all settings, and the pair's mean validation error."""
        tests, validations = self.learner.errors_on(self._model(merge, density, weight))
        return tests, sum(validations[setting] for setting in self.pair) / len(self.pair)

    def _model(self, merge: Merge, density: float, weight: float) -> Any:
        base = self.learner.model
        if merge.alone is not None:
            return swap_adapters(base, self.sets[merge.alone])
        if merge.method is None:
            return self._fisher_average(weight)
        options: dict[str, Any] = {} if merge.rank is None else {"rank": merge.rank}
        if merge.is_sparse:
            options["density"] = density
        if merge.method.startswith("dare"):
            options["key"] = self.learner.key
        if merge.method == "regmean":
            options["statistics"] = self._inputs()
        method: Any = merge.method
        combined = combine(self.sets, [weight] * len(self.pair), method, **options)
        return swap_adapters(base, combined)

    def _merged(self) -> list[Any]:
        """The plain models of the two settings."""
        return [merge_lora(swap_adapters(self.learner.model, adapters)) for adapters in self.sets]

    def _inputs(self) -> list[Any]:
        error = self.learner.fitting.error
        if not self._statistics:
            self._statistics = [
                collect_statistics(model, [self.learner.stored(setting)], error, wrapper="corda")
                for model, setting in zip(self._merged(), self.pair, strict=True)
            ]
        return self._statistics

    def _fisher_average(self, weight: float) -> Any:
        """The weights plus the mean update of each weight, weighted by Fisher information."""
        models = [eqx.partition(model, eqx.is_inexact_array)[0] for model in self._merged()]
        arrays, static = eqx.partition(self.learner.model, eqx.is_inexact_array)
        if not self._fishers:
            self._fishers = [
                self.learner.fisher(model, setting)
                for model, setting in zip(self._merged(), self.pair, strict=True)
            ]

        def averaged(base: Any, first: Any, second: Any, f: Any, g: Any) -> Any:
            total = f + g
            mean = (f * (first - base) + g * (second - base)) / jnp.where(total > 0, total, 1)
            return base + weight * mean

        return eqx.combine(jax.tree.map(averaged, arrays, *models, *self._fishers), static)
