"""Bases: functions `phi` of a parameter `z`, which are zero at the source."""

import abc
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from equinox import AbstractVar
from jax.core import Tracer
from jaxtyping import Array, Float, Inexact, PRNGKeyArray

from jno.lora import SelectionError

Number = float | Sequence[float]


class Coordinate(NamedTuple):
    """A coordinate of a parameter, its inverse, and the parameters for which it is defined."""

    of: Callable[[Array], Array]
    back: Callable[[Array], Array]
    has: Callable[[Any], Any]
    takes: str  # these parameters in words


# By the names that `coordinate=` takes.
COORDINATES = {
    "z": Coordinate(lambda z: z, lambda u: u, lambda z: z == z, "all"),
    "log": Coordinate(jnp.log, jnp.exp, lambda z: z > 0, "positive"),
    "sqrt": Coordinate(jnp.sqrt, jnp.square, lambda z: z >= 0, "non-negative"),
    "1/z": Coordinate(jnp.reciprocal, jnp.reciprocal, lambda z: z != 0, "nonzero"),
}


def coordinate_named(name: str) -> Coordinate:
    """The coordinate. **Raises:** `SelectionError` for a name that `COORDINATES` lacks."""
    if name not in COORDINATES:
        names = ", ".join(map(repr, COORDINATES))
        raise SelectionError(f"A coordinate must be one of {names}, but is {name!r}")
    return COORDINATES[name]


class Basis(eqx.Module):
    """`phi(z)`, an array `(K,)`, for a parameter `z`: a number, or an array `(p,)` of numbers.

    `phi(source)` must be exactly zero. Floating arrays of a basis train with the adapters.
    """

    source: AbstractVar[Any]  # the value of `z` that the pretrained model was trained at

    @abc.abstractmethod
    def __call__(self, z: Any) -> Float[Array, " K"]:
        """`phi(z)`."""


class _Measured(Basis):
    """A basis of `u`, the distance from the source in a coordinate, over a unit."""

    source: Any = eqx.field(static=True)
    unit: Any = eqx.field(static=True)
    coordinate: str = eqx.field(static=True)

    @property
    def log(self) -> bool:
        """Whether the coordinate is the logarithm."""
        return self.coordinate == "log"


class Powers(_Measured):
    """`u, u^2, ..., u^degree` for each parameter, with `u = (z - source) / unit`.

    **Arguments:**

    - `source`: the value at which the pretrained model does not change; a list for several
        parameters.
    - `unit`: the distance from the source that counts as 1, such as the distance to the farthest
        training value. One number, or a number for each parameter.
    - `degree`: the highest power. Products of different parameters are not included.
    - `log`: short for `coordinate="log"`.
    - `coordinate`: with `"log"`, `u = log(z / source) / unit`; with `"sqrt"` and `"1/z"`, the
        difference of roots or of reciprocals. `choose_coordinate` finds the right coordinate.

    **Raises:** `SelectionError` if an argument makes no sense.
    """

    degree: int = eqx.field(static=True)

    def __init__(
        self,
        source: Number,
        unit: Number = 1.0,
        degree: int = 1,
        log: bool = False,
        coordinate: str | None = None,
    ):
        self.source, self.unit = numbers(source, "source"), numbers(unit, "unit")
        self.degree, self.coordinate = degree, coordinate or ("log" if log else "z")
        if log and self.coordinate != "log":
            raise SelectionError(f"Give `log=True` or `coordinate={coordinate!r}`, not both")
        if not np.all(np.asarray(self.unit)):
            raise SelectionError(f"`unit` must not be zero, but is {unit!r}")
        if np.ndim(self.unit) and np.shape(self.unit) != np.shape(self.source):
            raise SelectionError(
                f"`unit` must be one number, or as many as `source` {source!r}, but is {unit!r}"
            )
        _check_counts(degree=degree)
        in_use = coordinate_named(self.coordinate)
        if not np.all(in_use.has(np.asarray(self.source))):
            raise SelectionError(
                f"The coordinate {self.coordinate!r} takes {in_use.takes} parameters, but `source` "
                f"is {source!r}"
            )

    def __call__(self, z: Any) -> Float[Array, " K"]:
        u = distance(z, self.source, self.unit, self.coordinate)
        return jnp.concatenate([u**power for power in range(1, self.degree + 1)])


class Network(_Measured):
    """A small network of the parameters: `phi(z) = sum_i u_i g_i(u)`, with `u` as in `Powers`.

    `g` is a trained MLP. Because of the factors `u_i`, `phi` is zero at the source.

    **Arguments:**

    - `source`, `unit`, `log`, `coordinate`: as for `Powers`.
    - `size`: the number `K` of values.
    - `width`, `depth`: of the MLP.
    - `key`: of its initial values.
    """

    network: eqx.nn.MLP
    size: int = eqx.field(static=True)

    def __init__(
        self,
        source: Number,
        unit: Number = 1.0,
        *,
        size: int = 2,
        width: int = 8,
        depth: int = 1,
        log: bool = False,
        coordinate: str | None = None,
        key: PRNGKeyArray,
    ):
        linear = Powers(source, unit, log=log, coordinate=coordinate)  # checks the arguments
        _check_counts(size=size, width=width)
        self.source, self.unit, self.coordinate = linear.source, linear.unit, linear.coordinate
        self.size = size
        parameters = np.size(linear.source)
        self.network = eqx.nn.MLP(parameters, parameters * size, width, depth, jnp.tanh, key=key)

    def __call__(self, z: Any) -> Float[Array, " K"]:
        u = distance(z, self.source, self.unit, self.coordinate)
        return u @ self.network(u).reshape(len(u), self.size)


class Indexed(Basis):
    """A code for each of `n` discrete contexts: environments, machines, steps of a roll-out.

    `phi(i)` is the code of context `i`. By default it is `1` at place `i`, so that each context has
    its own directions, and shares the other fields of the adapters. With `size`, the codes are
    trained arrays `(size,)`, and contexts share directions. `phi` also takes a code instead of an
    index, so that a new context can be fitted like a parameter (`fit(..., grid=codes)`). The source
    is the code zero, which gives the pretrained model. A traced index outside of the contexts gives
    NaN.

    **Arguments:** `n`: the number of contexts. `size`, `key`: of the trained codes.

    Paper: Kassaï Koupaï et al., "GEPS: Boosting Generalization in Parametric PDE Neural Solvers
    through Adaptive Conditioning", arXiv:2410.23889, for trained codes of environments.
    """

    source: Any = eqx.field(static=True)
    codes: Float[Array, "n size"] | None
    n: int = eqx.field(static=True)

    def __init__(self, n: int, size: int | None = None, *, key: PRNGKeyArray | None = None):
        if (size is None) != (key is None):
            raise SelectionError("Trained codes need both `size=` and `key=`; fixed codes neither.")
        _check_counts(n=n, size=1 if size is None else size)
        self.n = n
        self.codes = None if key is None else jax.random.normal(key, (n, size or 0))
        self.source = (0.0,) * (n if size is None else size)

    def __call__(self, z: Any) -> Float[Array, " K"]:
        z = jnp.asarray(z)
        if z.shape == (len(self.source),) and jnp.issubdtype(z.dtype, jnp.floating):
            return z
        if z.shape != () or not jnp.issubdtype(z.dtype, jnp.integer):
            raise SelectionError(
                f"`Indexed` takes an integer, or a code of shape ({len(self.source)},), but got "
                f"{z.dtype}{list(z.shape)}"
            )
        is_index = (z >= 0) & (z < self.n)
        if not isinstance(is_index, Tracer) and not is_index:
            raise SelectionError(f"The index must be from 0 to {self.n - 1}, but is {z}")
        if self.codes is None:
            code = jnp.where(jnp.arange(self.n, dtype=z.dtype) == z, 1.0, 0.0)
        else:
            code = self.codes[z]
        # A traced index that is too large would be clamped silently.
        return jnp.where(is_index, code, jnp.nan)


class Function(Basis):
    """A function of yours: `phi(z) = f(z) - f(source)`, for a number or an array `(K,)`.

    `f` may be an Equinox module, whose floating arrays then train.
    """

    f: Callable[[Any], Any]
    source: Any = eqx.field(static=True)

    def __init__(self, f: Callable[[Any], Any], source: Number):
        self.f, self.source = f, numbers(source, "source")

    def __call__(self, z: Any) -> Float[Array, " K"]:
        z, source = parameter(z, self.source)
        phi = jnp.atleast_1d(self.f(z)) - jnp.atleast_1d(self.f(source))
        # A compiler may round the two values differently.
        return phi - jax.lax.stop_gradient(jnp.where(jnp.all(z == source), phi, 0))


def _check_counts(**counts: Any) -> None:
    """**Raises:** `SelectionError` unless all are positive integers."""
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise SelectionError(f"`{name}` must be a positive integer, but is {count!r}")


def numbers(value: Any, name: str) -> Any:
    """A float, or a tuple of floats. **Raises:** `SelectionError` for anything else."""
    try:
        array = np.asarray(value, float)
    except (TypeError, ValueError):
        array = np.asarray(np.nan)
    if array.ndim > 1 or not array.size or not np.all(np.isfinite(array)):
        raise SelectionError(f"`{name}` must be a number or a list of numbers, but is {value!r}")
    return tuple(array.tolist()) if array.ndim else float(array)


def distance(z: Any, source: Any, unit: Any, coordinate: str) -> Inexact[Array, " p"]:
    """The distance of `z` from the source in the coordinate, over `unit`, for each parameter.

    **Raises:** `SelectionError` if the shapes of `z` and `source` differ, or if the coordinate is
    not finite at `z`.
    """
    z, start = parameter(z, source)
    in_use = COORDINATES[coordinate]
    is_known = jnp.all(jnp.asarray(in_use.has(z)))
    if not isinstance(is_known, Tracer) and not is_known:
        raise SelectionError(
            f"The coordinate {coordinate!r} takes {in_use.takes} parameters, but `z` is {z}"
        )
    # The logarithm of the quotient is more accurate than a difference of logarithms.
    u = jnp.log(z / start) if coordinate == "log" else in_use.of(z) - in_use.of(start)
    return jnp.atleast_1d(u / jnp.asarray(unit, z.dtype))


def parameter(z: Any, source: Any) -> tuple[Float[Array, "*p"], Float[Array, "*p"]]:
    """`z` and the source as floating arrays, equal if `z` is the source in the dtype of `z`.

    **Raises:** `SelectionError` unless `z` consists of numbers in the shape of `source`.
    """
    refusal = f"`z` must be a number, or an array of numbers, but is {z!r}"
    if isinstance(z, str):  # NumPy would take a string as the name of a dtype
        raise SelectionError(refusal)
    try:
        given = jnp.asarray(z)
        wide = given.astype(float)
    except (TypeError, ValueError):
        raise SelectionError(refusal) from None
    if given.shape != np.shape(source):
        expected = "one number" if np.ndim(source) == 0 else f"an array {list(np.shape(source))}"
        raise SelectionError(
            f"`z` must be {expected}, but `z` has the shape {list(given.shape)}. For a value "
            "per example, map: `jax.vmap(lambda z, x: at(conditional, z)(x))(zs, xs)`"
        )
    # Round the source as `z` was, because 0.1 is a different number in half precision.
    is_floating = jnp.issubdtype(given.dtype, jnp.floating)
    start = jnp.asarray(source, given.dtype if is_floating else float)
    return wide, start.astype(wide.dtype)
