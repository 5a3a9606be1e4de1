"""`fit`: find the parameter at which a conditional model explains data or solves an equation."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from jno.lora import SelectionError
from jno.lora.extending import gauss_jordan

from ._bases import coordinate_named
from ._conditional import Conditional, at

Vector = Float[Array, " p"]
Objective = Callable[[Vector], Float[Array, ""]]

_MOST = 8  # numbers: a step costs p^2 second derivatives


class Fitted(NamedTuple):
    """The result of `fit`.

    - `z`: the parameter, in the shape that `at` takes.
    - `loss`: the loss at `z`.
    - `grid_losses`: the loss at each point of the grid, `(G,)`, which shows if there are several
        minima.
    """

    z: Float[Array, "*p"]
    loss: Float[Array, ""]
    grid_losses: Float[Array, " G"]


def fit(
    conditional: Conditional,
    loss: Callable[[Any], Any],
    grid: Any,
    *,
    steps: int = 20,
    coordinate: str = "z",
) -> Fitted:
    """Find the parameter `z` with the lowest loss by Newton's method from the best grid point.

    Only `z` is fitted, one to eight numbers. May be compiled, and mapped over data, with one trace
    for all queries:

    ```python
    def fit_to(data):
        return fit(conditional, lambda model: error(model, data), jnp.linspace(0.02, 0.3, 15))

    fitted = jax.jit(jax.vmap(fit_to))(many)     # fitted.z: a parameter for each
    ```

    Each step of Newton's method is damped until it lowers the loss. The first step is no longer
    than the spacing of the grid. A loss of NaN is never accepted. `z` may leave the grid, so
    compare it with the range of the training values. The Hessian `H` is replaced by its absolute
    value `(H^2)^(1/2)`, so that each step descends.

    The grid is evaluated point by point, and derivatives are computed in forward mode, so that the
    memory is a few times the memory of one call of `loss`, and `loss` may contain loops of any
    kind. Each step costs a second derivative for each pair of numbers. Outside of `jax.jit`, each
    call of `fit` compiles.

    **Arguments:**

    - `conditional`: as trained.
    - `loss`: takes an adapted model, `at(conditional, z)`, and returns one floating number, such as
        an error on data, or the mean square of a residual with derivatives in the input.
    - `grid`: the points to start from, `(G,)` for one parameter and `(G, p)` for several. For
        `Indexed`, codes: `grid=conditional.basis.codes` starts from the trained contexts.
    - `steps`: of Newton's method. With 0, the result is the best point of the grid.
    - `coordinate`: the coordinate of the steps: `"z"`, `"log"`, `"sqrt"` or `"1/z"`. The result is
        `z` in any case. With `"log"`, a positive parameter stays positive.

    **Returns:** `Fitted(z, loss, grid_losses)`. If no loss on the grid is a number, `z` is the
    first point, and the loss is NaN or infinite.

    **Raises:** `SelectionError` if the shape of the grid does not fit the basis, if there are more
    than eight numbers, if the loss is not one floating number, or for an unknown coordinate.

    Paper: Dauphin et al., "Identifying and attacking the saddle point problem in high-dimensional
    non-convex optimization", arXiv:1406.2572, for the absolute value of the Hessian.
    """
    points = _checked_grid(conditional, grid)

    in_use = coordinate_named(coordinate)
    if not isinstance(points, Tracer):
        starts = np.asarray(points)
        # Newton's method cannot leave a point where the coordinate, or its slope, is not finite.
        if not np.all(in_use.has(starts)) or (coordinate != "z" and not np.all(starts)):
            raise SelectionError(
                f"In the coordinate {coordinate!r}, the points of `grid` must be {in_use.takes}, "
                f"and not 0, but go from {starts.min():g} to {starts.max():g}. Give other points"
            )
    to, back, *_ = in_use

    def objective(z: Array) -> Float[Array, ""]:
        return _one_number(loss(at(conditional, z.reshape(points.shape[1:])))).astype(z.dtype)

    losses = jax.lax.map(objective, points)
    best = jnp.argmin(jnp.where(jnp.isnan(losses), jnp.inf, losses))
    z, lowest = points[best], losses[best]
    if steps:
        flat = to(points.reshape(len(points), -1))
        spacing = _spacing(flat, flat[best])
        newton = _newton(lambda u: objective(back(u)), flat[best], spacing, steps)
        z = back(newton[0]).reshape(z.shape)
        lowest = jnp.where(jnp.isfinite(newton[1]), newton[1], lowest)
    return Fitted(z, lowest, losses)


class _State(NamedTuple):
    z: Vector  # the best point
    loss: Float[Array, ""]
    gradient: Vector  # at `z`, in units of the spacing
    hessian: Float[Array, "p p"]
    trial: Vector  # the next point to try
    damping: Float[Array, ""]
    longest: Float[Array, ""]  # the longest step, in units of the spacing


def _newton(
    objective: Objective, start: Vector, spacing: Vector, steps: int
) -> tuple[Vector, Float[Array, ""]]:
    """The best point and its loss, which is infinite if every loss was NaN."""

    def scaled(trial: Vector) -> Any:
        return _derivatives(lambda v: objective(trial + spacing * v), jnp.zeros_like(trial))

    def step(_: Array, state: _State) -> _State:
        loss, gradient, hessian = scaled(state.trial)
        accept = loss < state.loss  # not for NaN
        accepted = _State(
            state.trial, loss, gradient, hessian, state.trial, state.damping / 10, 2 * state.longest
        )
        refused = state._replace(
            damping=jnp.maximum(8 * state.damping, 0.01), longest=jnp.ones_like(loss)
        )
        state = jax.tree.map(lambda new, old: jnp.where(accept, new, old), accepted, refused)
        move = _step(state.gradient, state.hessian, state.damping)
        move = move * jnp.minimum(1, state.longest / jnp.maximum(jnp.max(jnp.abs(move)), 1))
        return state._replace(trial=state.z + spacing * move)

    zeros = jnp.zeros((start.size, start.size), start.dtype)
    number = zeros[0, 0]
    # The first iteration computes the derivatives at `start`, so that they are traced only once. It
    # counts as accepted.
    state = _State(start, number + jnp.inf, zeros[0], zeros, start, number + 0.1, number + 0.5)
    state = jax.lax.fori_loop(0, steps + 1, step, state)
    return state.z, state.loss


def _step(gradient: Vector, hessian: Float[Array, "p p"], damping: Float[Array, ""]) -> Vector:
    """`-(|H| + damping)^-1 g`, with a damping relative to the sizes of `H` and `g`."""
    eye = jnp.eye(gradient.size, dtype=gradient.dtype)
    scale = jnp.max(jnp.abs(hessian)) + jnp.max(jnp.abs(gradient))
    scale = jnp.where(scale > 0, scale, 1)
    damped = _absolute(hessian / scale) + damping * eye
    return -gauss_jordan(damped, (gradient / scale)[:, None], pivoting=False)[:, 0]


def _absolute(matrix: Float[Array, "p p"]) -> Float[Array, "p p"]:
    """`(M^2)^(1/2)` of a symmetric matrix, by Newton and Schulz's iteration for its sign.

    Eigenvalues below a millionth of the largest come out too small.
    """
    norm = jnp.sqrt(jnp.sum(matrix**2))
    eye = jnp.eye(len(matrix), dtype=matrix.dtype)

    def iterate(_: Array, sign: Array) -> Array:
        return sign @ (3 * eye - sign @ sign) / 2

    sign = jax.lax.fori_loop(0, 45, iterate, matrix / jnp.where(norm > 0, norm, 1))
    absolute = matrix @ sign
    return (absolute + absolute.T) / 2


def _derivatives(
    function: Objective, at_point: Vector
) -> tuple[Float[Array, ""], Vector, Float[Array, "p p"]]:
    """Value, gradient and Hessian, in forward mode to save the memory of a backward pass."""
    basis = jnp.eye(at_point.size, dtype=at_point.dtype)

    def first(point: Vector) -> tuple[Array, Array]:
        return jax.vmap(lambda tangent: jax.jvp(function, (point,), (tangent,)))(basis)

    def second(tangent: Vector) -> Any:
        return jax.jvp(first, (at_point,), (tangent,))

    # The Hessian is computed row by row.
    (values, gradients), (_, rows) = jax.lax.map(second, basis)
    return values[0, 0], gradients[0], (rows + rows.T) / 2


def _spacing(points: Float[Array, "G p"], best: Vector) -> Vector:
    """The mean distance of neighbours in the grid, for each number; 1 as a last resort."""
    G, p = points.shape
    width = jnp.max(points, axis=0) - jnp.min(points, axis=0)
    mean = width / max(G ** (1 / p) - 1, 1)
    return jnp.where(mean > 0, mean, jnp.where(best != 0, jnp.abs(best), 1))


def _checked_grid(conditional: Conditional, grid: Any) -> Float[Array, "G *p"]:
    """The grid as floating numbers. **Raises:** `SelectionError` for a wrong shape."""
    basis, shape = conditional.basis, np.shape(conditional.basis.source)
    points = jnp.asarray(grid, float)
    if points.ndim != 1 + len(shape) or points.shape[1:] != shape or not points.shape[0]:
        expected = f"(G, {', '.join(map(str, shape))})" if shape else "(G,)"
        raise SelectionError(
            f"`grid` must have the shape {expected}, with G points of the form of the basis's "
            f"source {basis.source!r}, but has the shape {points.shape}. Trained codes of contexts "
            "are such points: grid=conditional.basis.codes"
        )
    if np.prod(shape) > _MOST:
        raise SelectionError(
            f"`fit` finds at most {_MOST} numbers, but the basis takes {np.prod(shape)}. Give "
            "contexts trained codes of fewer numbers (`Indexed(n, size=2, key=key)`), or train a "
            "code by gradient descent."
        )
    return points


def _one_number(loss: Any) -> Array:
    """**Raises:** `SelectionError` if `loss` is not one floating number."""
    if jnp.shape(loss) != () or not jnp.issubdtype(jnp.result_type(loss), jnp.floating):
        raise SelectionError(
            "`loss` must return one floating number, but returned "
            f"{jnp.result_type(loss)}{list(jnp.shape(loss))}. Take a mean: jnp.mean(errors**2)"
        )
    return jnp.asarray(loss)
