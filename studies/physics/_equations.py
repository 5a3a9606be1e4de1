"""Three equations with a parameter `z`, with residuals and exact solutions."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jno_lora_conditional import Powers

Solution = Callable[[Any], Any]  # from a point `(d,)` to a number


@dataclass(frozen=True)
class Equation:
    """An equation on a box, and the values of its parameter.

    - `box`: the lower and upper corner.
    - `solution(network, x)`: the network in a form that satisfies all conditions on the boundary.
    - `residual(u, z, x)`: the residual of a solution at a point.
    - `exact(z, x)`: the exact solution at points `(n, d)`.
    - `source`: the value that the base is trained at.
    - `trained`: further values that the ways are trained at; `inside` and `outside` of their range
        are the values that only tests use.
    """

    name: str
    title: str
    text: str
    box: tuple[tuple[float, ...], tuple[float, ...]]
    solution: Callable[[Solution, Any], Any]
    residual: Callable[[Solution, Any, Any], Any]
    exact: Callable[[float, Any], Any]
    source: float
    trained: tuple[float, ...]
    inside: tuple[float, ...]
    outside: tuple[float, ...]
    log: bool = False

    @property
    def inputs(self) -> int:
        """The dimension of a point."""
        return len(self.box[0])

    @property
    def unit(self) -> float:
        """The distance of the farthest trained value from the source."""
        last = self.trained[-1]
        return math.log(last / self.source) if self.log else last - self.source

    def powers(self, degree: int) -> Powers:
        """The basis whose first value is the normalised distance from the source."""
        return Powers(self.source, self.unit, degree, self.log)

    def points(self, key: Any, z: Any, number: int) -> Float[Array, "number 1+d"]:
        """Random points, with the value `z` in front of each; a random value if `z` is `None`."""
        low, high = (jnp.asarray(corner) for corner in self.box)
        x = low + (high - low) * jax.random.uniform(key, (number, self.inputs))
        if z is None:
            u = self.unit * jax.random.uniform(jax.random.fold_in(key, 1), (number, 1))
            z = self.source * jnp.exp(u) if self.log else self.source + u
        return jnp.concatenate([jnp.broadcast_to(z, (number, 1)), x], axis=1)

    def grid(self, number: int) -> Float[Array, "points d"]:
        """A regular grid of about `number` points."""
        side = round(number ** (1 / self.inputs))
        axes = [np.linspace(*ends, side) for ends in zip(*self.box, strict=True)]
        return jnp.asarray(np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, self.inputs))


def _second(u: Solution, x: Any, v: Any) -> Any:
    """The second derivative along `v`, forward over forward, which compiles fastest."""

    def first(x: Any) -> Any:
        return jax.jvp(u, (x,), (v,))[1]

    return jax.jvp(first, (x,), (v,))[1]


def _laplacian(u: Solution, x: Any) -> Any:
    return jnp.sum(jax.vmap(lambda v: _second(u, x, v))(jnp.eye(len(x))))


def _peak(z: Any, x: Any) -> Any:
    distance = (x[..., 0] - z) ** 2 + (x[..., 1] - 0.5) ** 2
    return 16 * jnp.prod(x * (1 - x), axis=-1) * jnp.exp(-distance / 0.08)


def _poisson_residual(u: Solution, z: Any, x: Any) -> Any:
    return _laplacian(u, x) - _laplacian(lambda x: _peak(z, x), x)


def _burgers_residual(u: Solution, z: Any, x: Any) -> Any:
    u_x, u_t = jax.grad(u)(x)
    return u_t + u(x) * u_x - z * _second(u, x, jnp.array([1.0, 0.0]))


def _burgers_exact(z: float, x: Any) -> Any:
    """The formula of Cole and Hopf, by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite.hermgauss(100)
    y = np.asarray(x)[:, :1] - 2 * np.sqrt(z * np.asarray(x)[:, 1:]) * nodes
    density = weights * np.exp(-(np.cos(np.pi * y) + 1) / (2 * np.pi * z))
    return -np.sum(np.sin(np.pi * y) * density, axis=1) / np.sum(density, axis=1)


def _helmholtz_residual(u: Solution, z: Any, x: Any) -> Any:
    return _laplacian(u, x) + z**2 * u(x) - 1


def _helmholtz_exact(z: float, x: Any) -> Any:
    waves = 1 - np.cos(z * x[:, 0]) - np.tan(z / 2) * np.sin(z * x[:, 0])
    return waves / z**2


EQUATIONS = (
    Equation(
        "poisson",
        "Poisson: a peak that moves",
        "`-Δu = f` on the unit square, 0 on its boundary, with the force of a peak of the width "
        "0.2 at `(z, 0.5)`. The base knows `z = 0.3`.",
        ((0.0, 0.0), (1.0, 1.0)),
        lambda network, x: jnp.prod(4 * x * (1 - x)) * network(2 * x - 1),
        _poisson_residual,
        _peak,
        source=0.3,
        trained=(0.4, 0.5, 0.6, 0.7),
        inside=(0.45, 0.55, 0.65),
        outside=(0.75,),
    ),
    Equation(
        "burgers",
        "Burgers: the viscosity",
        "`u_t + u u_x = z u_xx` for `x` from -1 to 1 and `t` from 0 to 1, from `-sin πx`. The base "
        "knows `z = 0.1`.",
        ((-1.0, 0.0), (1.0, 1.0)),
        lambda network, x: (
            -jnp.sin(jnp.pi * x[0]) + x[1] * (1 - x[0] ** 2) * network(x * jnp.array([1.0, 2.0]))
        ),
        _burgers_residual,
        _burgers_exact,
        source=0.1,
        trained=(0.08, 0.065, 0.052, 0.042),
        inside=(0.072, 0.058, 0.047),
        outside=(0.036,),
        log=True,
    ),
    Equation(
        "helmholtz",
        "Helmholtz: the wave number",
        "`u'' + z² u = 1` for `x` from 0 to 1, 0 at both ends. The base knows `z = 4`; the range "
        "lies between two resonances.",
        ((0.0,), (1.0,)),
        lambda network, x: x[0] * (1 - x[0]) * network(2 * x - 1),
        _helmholtz_residual,
        _helmholtz_exact,
        source=4.0,
        trained=(5.0, 6.0, 7.0, 8.0),
        inside=(5.5, 6.5, 7.5),
        outside=(8.5,),
    ),
)
