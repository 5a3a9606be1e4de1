"""Simulations at several viscosities."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from .. import burgers

TRAINING = (0.08, 0.06, 0.045, 0.035)
# The pretrained viscosity, then values between the training values, then one beyond them.
TESTED = (burgers.SOURCE, 0.07, 0.052, 0.04, 0.03)


class Family(NamedTuple):
    """Viscosities `(values,)`, and their simulations as two arrays `(values, number, GRID)`."""

    viscosities: Any
    fields: Any
    solutions: Any

    @property
    def number(self) -> int:
        """The number of simulations of each viscosity."""
        return self.fields.shape[1]

    def first(self, number: int) -> "Family":
        """The first simulations of each viscosity."""
        return Family(self.viscosities, self.fields[:, :number], self.solutions[:, :number])

    def after(self, number: int) -> "Family":
        """The simulations of each viscosity without the first ones."""
        return Family(self.viscosities, self.fields[:, number:], self.solutions[:, number:])

    def shifted(self, numbers: Any, shifts: Any) -> "Family":
        """As `burgers.shifted`, with a row of `numbers` and of `shifts` for each viscosity."""
        groups = zip(self.fields, self.solutions, numbers, shifts, strict=True)
        moved = [burgers.shifted((u, v), rows, steps) for u, v, rows, steps in groups]
        fields, solutions = (np.stack(arrays) for arrays in zip(*moved, strict=True))
        return Family(self.viscosities, fields, solutions)

    def batch(self, size: int, rng: np.random.Generator) -> "Family":
        """Random simulations at random shifts, `size` of each viscosity."""
        shape = (len(self.viscosities), size)
        numbers = rng.integers(self.number, size=shape)
        return self.shifted(numbers, rng.integers(burgers.GRID, size=shape))

    def spread(self, size: int) -> "Family":
        """`size` copies of the simulations of each viscosity, at shifts that cover the circle."""
        places = np.tile(np.arange(size), (len(self.viscosities), 1))
        return self.shifted(places % self.number, places * burgers.GRID // size)


def simulate(key: PRNGKeyArray, number: int, viscosities: tuple[float, ...]) -> Family:
    """Random fields and their solutions, `number` of each viscosity."""
    fields = burgers.initial_fields(key, number * len(viscosities))
    fields = fields.reshape(len(viscosities), number, -1)
    values = jnp.asarray(viscosities)
    solutions = jax.vmap(burgers.solve)(fields, values)
    return Family(np.asarray(values), np.asarray(fields[..., ::4]), np.asarray(solutions[..., ::4]))
