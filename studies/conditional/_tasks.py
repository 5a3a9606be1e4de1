"""The tasks of the study: a pretrained model, and a parameter of its equation that varies."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import jax.numpy as jnp
from jaxtyping import Array

from .._families import FNO, POSEIDON, UNET, Family, simulate

Samples = tuple[Array, Array, Array]  # initial fields, solutions, and values of the parameter
# Only the study used simulations with these seeds.
_TEST_SEED, _POOL_SEED, _TARGET_SEED = 1000, 5000, 7000


@dataclass(frozen=True)
class Task:
    """A parameter of a family's equation.

    - `training`: the values that the simulations for training have.
    - `inside`, `outside`: values without training, inside and outside the range of `training`.
    - `more`: twice as many values for training, in the same range, none of them in `inside`.
    - `log`: whether models know the parameter by its logarithm.
    - `axes`: the axes along which shifts make new simulations.
    """

    name: str
    title: str
    family: Family
    parameter: str
    training: tuple[float, ...]
    inside: tuple[float, ...]
    outside: tuple[float, ...]
    more: tuple[float, ...]
    log: bool
    axes: tuple[int, ...]
    text: str
    constants: Mapping[str, float] = field(default_factory=dict)

    @property
    def source(self) -> float:
        """The value that the model was pretrained at."""
        return self.family.source.get(self.parameter, 0.0)

    @property
    def unit(self) -> float:
        """The distance from the source to the farthest training value, which counts as 1."""
        ends = jnp.asarray(self.training)
        distances = jnp.log(ends / self.source) if self.log else ends - self.source
        return float(distances[jnp.argmax(jnp.abs(distances))])

    @property
    def values(self) -> tuple[float, ...]:
        """All values with an error: the source, those for training, inside and outside."""
        return (self.source, *self.training, *self.inside, *self.outside)

    def setting(self, value: float) -> dict[str, float]:
        """The setting of the equation."""
        return {**self.family.source, self.parameter: value}


# The unseen values of Burgers' tasks are from a trial. All other values were chosen before any
# method was run on them, by the error of the untouched model alone.
TASKS = (
    Task(
        "burgers-viscosity",
        "Burgers, viscosity",
        FNO,
        "viscosity",
        (0.08, 0.06, 0.045, 0.035),
        (0.07, 0.052, 0.04),
        (0.03, 0.025),
        (0.08, 0.074, 0.065, 0.06, 0.048, 0.045, 0.0375, 0.035),
        True,
        (1,),
        "`fno1d` on `u_t + u u_x = nu u_xx`, pretrained at `nu = 0.1`.",
    ),
    Task(
        "burgers-force",
        "Burgers, force",
        FNO,
        "force",
        (0.05, 0.1, 0.15, 0.2),
        (0.075, 0.125, 0.175),
        (0.25, 0.3),
        (0.05, 0.065, 0.085, 0.1, 0.115, 0.15, 0.185, 0.2),
        False,
        (),
        "The same model at `nu = 0.1`, with the force `f sin x` on the right side, pretrained at "
        "`f = 0`. The force depends on the place, so shifts make no new simulations.",
    ),
    Task(
        "allen-cahn-speed",
        "Allen-Cahn, speed",
        UNET,
        "velocity",
        (1.05, 1.15, 1.25, 1.35),
        (1.1, 1.2, 1.3),
        (1.4, 1.5),
        (1.05, 1.075, 1.125, 1.15, 1.225, 1.25, 1.325, 1.35),
        False,
        (1,),
        "`unet1d` on `u_t + c u_x = 0.02 u_xx + u - u³`, pretrained at `c = 1`.",
    ),
    Task(
        "navier-stokes-viscosity",
        "Navier-Stokes, viscosity",
        POSEIDON,
        "viscosity",
        (0.03, 0.045, 0.07, 0.1),
        (0.037, 0.056, 0.083),
        (0.13, 0.16),
        (0.03, 0.033, 0.041, 0.045, 0.062, 0.07, 0.091, 0.1),
        True,
        (1, 2),
        "`poseidon` on the vorticity of a plane flow at 32 x 32 points after half a unit of time, "
        "pretrained at `nu = 0.02`.",
    ),
)


def pool(task: Task, seed: int, values: tuple[float, ...], size: int) -> Samples:
    """Samples for training: fields, solutions, and values `(size,)`, from value to value in turn.

    Sample `i` has the value `values[(i + 1) % len(values)]`. The first quarter of the samples is
    for validation. If this is less than a sample per value, the ends of the range are for training.
    """
    each = -(-size // len(values))
    simulations = [
        simulate(task.family, _POOL_SEED + 100 * seed + index, each, task.setting(value))
        for index, value in enumerate(values)
    ]
    order = [(index + 1) % len(values) for index in range(size)]
    turns = [index // len(values) for index in range(size)]
    picks = [
        (simulations[v][0][t], simulations[v][1][t]) for v, t in zip(order, turns, strict=True)
    ]
    fields, solutions = (jnp.stack(part) for part in zip(*picks, strict=True))
    return fields, solutions, jnp.asarray([values[v] for v in order])


def tests(task: Task, number: int) -> Samples:
    """Fields, solutions `(values, number, *grid)`, and the values, for the errors of a model."""
    simulations = [
        simulate(task.family, _TEST_SEED, number, task.setting(value)) for value in task.values
    ]
    fields, solutions = (jnp.stack(part) for part in zip(*simulations, strict=True))
    return fields, solutions, jnp.asarray(task.values)


def target(task: Task, value: float, seed: int, size: int) -> Samples:
    """Samples at one value, as `pool` returns them."""
    index = task.values.index(value)
    fields, solutions = simulate(
        task.family, _TARGET_SEED + 100 * seed + index, size, task.setting(value)
    )
    return fields, solutions, jnp.full(size, value)
