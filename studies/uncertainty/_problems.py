"""The problems: a pretrained model, simulations to adapt it to, and simulations to test it on."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .. import _solvers as solvers
from .._families import FNO, UNET, Effort, Family, pretrain, simulate
from ..large._models import FNO as LARGE_FNO

# Only this study uses simulations with these seeds.
_TEST_SEED, _NEW_SEED, _TRAINING_SEED = 21_000, 23_000, 25_000


def _rough(key: Array, number: int) -> Array:
    return solvers.random_fields(key, number, 256, 1, modes=12)


def _large(key: Array, number: int) -> Array:
    return 2 * FNO.initial(key, number)


_UNLIKE = {"rough": _rough, "large": _large}


@dataclass(frozen=True)
class Problem:
    """A setting to adapt to, or a parameter with values for training and unseen values.

    - `setting`: of the equation, where it differs from the pretraining.
    - `parameter`, `values`, `inside`, `outside`: for conditional adapters.
    - `effort`: replaces fields of the study's effort.
    - `ways`: a regex for the names of the ways that run on this problem.
    """

    name: str
    family: Family
    setting: Mapping[str, float]
    parameter: str = ""
    values: tuple[float, ...] = ()
    inside: tuple[float, ...] = ()
    outside: tuple[float, ...] = ()
    effort: Mapping[str, Any] = field(default_factory=dict)
    ways: str = ""

    def training(self, seed: int, number: int) -> tuple[Any, Array]:
        """Inputs and solutions; with values, the inputs are values and fields."""
        return self._drawn(_TRAINING_SEED + 100 * seed, number, self.values)

    def test(self, number: int) -> tuple[Any, Array]:
        """Inputs and solutions, at unseen values if the problem has values."""
        return self._drawn(_TEST_SEED, number, self.inside)

    def new_inputs(self, number: int) -> Any:
        """Inputs like those of the test, without solutions."""
        return self._drawn(_NEW_SEED, number, self.inside)[0]

    def unlike(self, number: int) -> Mapping[str, tuple[Any, Array]]:
        """Inputs unlike the training inputs: values outside, or rougher fields and larger ones."""
        if self.values:
            return {"outside": self._drawn(_TEST_SEED, number, self.outside)}
        family, setting = self.family, {**self.family.source, **self.setting}
        return {
            name: simulate(replace(family, initial=initial), _TEST_SEED, number, setting)
            for name, initial in _UNLIKE.items()
        }

    def _drawn(self, seed: int, number: int, values: tuple[float, ...]) -> tuple[Any, Array]:
        source = self.family.source
        if not values:
            return simulate(self.family, seed, number, {**source, **self.setting})
        each = -(-number // len(values))
        settings = [{**source, self.parameter: value} for value in values]
        parts = [simulate(self.family, seed + i, each, s) for i, s in enumerate(settings)]
        fields, solutions = (jnp.concatenate(part) for part in zip(*parts, strict=True))
        return (jnp.repeat(jnp.asarray(values), each), fields), solutions

    def called(self, model: Any, field: Array) -> Array:
        """The model's solution for one field."""
        return self.family.apply(model, field[None])[0]


PROBLEMS = (
    Problem("burgers", FNO, {"viscosity": 0.04}),
    Problem("allen-cahn", UNET, {"velocity": 1.25}),
    Problem(
        "burgers-values",
        FNO,
        {},
        "viscosity",
        (0.08, 0.06, 0.045, 0.035),
        (0.07, 0.052, 0.04),
        (0.03, 0.025),
        ways="^(five adapters|one adapter, constant width)$",
    ),
    Problem(
        "fno2d",
        LARGE_FNO,
        {"viscosity": 0.002},
        effort={"samples": (16, 64), "seeds": 1, "test": 32, "batch": 4, "rates": (1.0,)},
        ways="^(five adapters|five full models, one base|one adapter, constant width)$",
    ),
)


def pretraining(effort: Effort, family: Family, seed: int) -> Any:
    """A model of the family from another start, for ensembles of several pretrainings."""
    return pretrain(family, effort, family.make(jax.random.key(100 + seed)))
