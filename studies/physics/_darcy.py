"""Steady Darcy flow, `-div(a grad u) = 1` with `a = exp(z g)`, and what an operator minimises.

All losses use one grid of `N x N` inner points and one five-point scheme, so that the energy, both
norms of the residual, and the labels have the same minimum.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import foundax
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jno.lora import Net
from jno_lora_conditional import Conditional, Powers, at

from .._families import relative_errors
from .._solvers import random_fields

N = 24
SOURCE, TARGET = 0.5, 1.5
TRAINED, INSIDE, OUTSIDE = (0.75, 1.0, 1.25, 1.5), (0.9, 1.1, 1.4), (1.75,)

Field = Float[Array, "n n"]


def fields(key: Any, number: int) -> Float[Array, "number n+2 n+2"]:
    """Random fields `g` on the inner points and the boundary."""
    return random_fields(key, number, N + 2, 2, modes=3)


def energy(u: Field, g: Any, z: Any) -> Any:
    """Ritz's energy, whose gradient is `h²` times the residual."""
    a, u_all = jnp.exp(z * g), jnp.pad(u, 1)

    def edges(a: Any, u: Any) -> Any:  # along the first axis
        return jnp.sum((a[1:] + a[:-1])[:, 1:-1] / 2 * jnp.diff(u, axis=0)[:, 1:-1] ** 2)

    return (edges(a, u_all) + edges(a.T, u_all.T)) / 2 - jnp.sum(u) / (N + 1) ** 2


def residual(u: Field, g: Any, z: Any) -> Field:
    """`-div(a grad u) - 1` at the inner points."""
    return jax.grad(energy)(u, g, z) * (N + 1) ** 2


def raw(u: Field, g: Any, z: Any) -> Any:
    """The mean square of the residual."""
    return jnp.mean(residual(u, g, z) ** 2)


def dual(u: Field, g: Any, z: Any) -> Any:
    """The residual's square in the norm of H⁻¹: `<r, (-Δ)⁻¹ r>`, by sine transforms."""
    k = jnp.arange(1, N + 1)
    sines = jnp.sin(jnp.pi * k[:, None] * k[None] / (N + 1)) * (2 / (N + 1)) ** 0.5
    eigenvalues = (2 - 2 * jnp.cos(jnp.pi * k / (N + 1))) * (N + 1) ** 2
    modes = sines @ residual(u, g, z) @ sines
    return jnp.mean(modes**2 / (eigenvalues[:, None] + eigenvalues[None]))


@jax.jit
def solve(g: Any, z: Any) -> Field:
    """The exact solution on the grid, by conjugate gradients."""
    zero = jnp.zeros((N, N), g.dtype)
    load = -residual(zero, g, z)
    return jax.scipy.sparse.linalg.cg(
        lambda u: residual(u, g, z) + load, load, tol=1e-6, maxiter=2000
    )[0]


def solve_all(g: Any, z: float) -> Float[Array, "number n n"]:
    """The solutions of fields `(number, n + 2, n + 2)`."""
    return jax.lax.map(lambda g: solve(g, z), g)


def new_operator(key: Any) -> Any:
    """An FNO of random values: channels `log a`, `x`, `y`."""
    return foundax.fno2d(
        *(3, 12, 6), n_layers=3, d_model=(N, N), norm=None, linear_conv=False, key=key
    )


def predict(model: Any, g: Any, z: Any, with_input: bool = False) -> Field:
    """The solution that a model predicts for a field."""
    x = jnp.arange(1, N + 1) / (N + 1)
    xs, ys = jnp.meshgrid(x, x, indexing="ij")
    channels = [z * g[1:-1, 1:-1], xs, ys]
    if with_input:
        channels.append(jnp.broadcast_to((z - SOURCE) / (TARGET - SOURCE), xs.shape))
    return 2 * xs * (1 - xs) * ys * (1 - ys) * model(jnp.stack(channels, axis=-1))[..., 0]


class OperatorWay(NamedTuple):
    """A way, as `start(base, key) -> (trainable, frozen)` and `predict(tree, g, z)`.

    `values` are the values that it is trained at.
    """

    name: str
    start: Callable[[Any, Any], tuple[Any, Any]]
    predict: Callable[[Any, Any, Any], Any]
    values: tuple[float, ...]


def _adapted(base: Any, key: Any) -> Net:
    net = Net(base, key=key).freeze()
    net.lora(4, 8.0, target="conv_layers", wrapper="cp")
    return net.lora(2, 4.0, target="^(?!.*conv_layers)", wrapper="lora")


def _lora(base: Any, key: Any) -> Any:
    return _adapted(base, key).partition()


def _full(base: Any, key: Any) -> Any:
    return eqx.partition(base, eqx.is_inexact_array)


def _with_input(base: Any, key: Any) -> Any:
    weight = base.P.weight
    wider = jnp.concatenate([weight, jnp.zeros_like(weight[:, :1])], axis=1)
    return _full(eqx.tree_at(lambda m: m.P.weight, base, wider), key)


def _conditional(base: Any, key: Any) -> Any:
    basis = Powers(SOURCE, TARGET - SOURCE, degree=2)
    return Conditional(_adapted(base, key), basis).partition()


def _at_value(tree: Any, g: Any, z: Any) -> Any:
    return predict(at(tree, z), g, z)


def _of_input(tree: Any, g: Any, z: Any) -> Any:
    return predict(tree, g, z, with_input=True)


LORA = OperatorWay("lora 2, cp 4", _lora, predict, (TARGET,))
FULL = OperatorWay("full", _full, predict, (TARGET,))
CONDITIONAL = OperatorWay("conditional", _conditional, _at_value, TRAINED)
WITH_INPUT = OperatorWay("full, an input more", _with_input, _of_input, TRAINED)
BASE = OperatorWay("base", _full, predict, (SOURCE,))


def _of_field(loss: Callable[[Any, Any, Any], Any]) -> Callable[..., Any]:
    return lambda u, label, g, z: loss(u, g, z)


def _labels(u: Field, label: Field, g: Any, z: Any) -> Any:
    return relative_errors(u[None], label[None])[0]


# By what is minimised: the loss of `u, label, g, z`.
LOSSES: dict[str, Callable[..., Any]] = {
    "energy": _of_field(energy),
    "residual in H⁻¹": _of_field(dual),
    "raw residual": _of_field(raw),
    "16 labels": _labels,
}


class Data(NamedTuple):
    """Labels (which only the loss by labels reads), fields `g`, values `z`: `(number, ...)`."""

    labels: Any
    g: Any
    z: Any


def adam(way: OperatorWay, by: str, frozen: Any, steps: int, every: int, batch: int) -> Any:
    """`run(trainable, train, held_out, rate) -> (trainable, validation)`, compiled.

    The arrays are kept that have the lowest loss on the data that is held out.
    """

    def loss(trainable: Any, data: Data) -> Any:
        tree = eqx.combine(trainable, frozen)
        u = jax.vmap(lambda g, z: way.predict(tree, g, z))(data.g, data.z)
        return jnp.mean(jax.vmap(LOSSES[by])(u, *data))

    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam())
    decay = optax.cosine_decay_schedule(1.0, steps)

    def run(trainable: Any, train: Data, held_out: Data, rate: Any) -> Any:
        def step(index: Any, carry: Any) -> Any:
            trainable, state = carry
            rows = jax.random.randint(jax.random.key(index), (batch,), 0, len(train.g))
            gradient = jax.grad(loss)(trainable, jax.tree.map(lambda x: x[rows], train))
            updates, state = optimiser.update(gradient, state)
            factor = -rate * decay(index)
            return jax.tree.map(lambda x, u: x + factor * u, trainable, updates), state

        def evaluate(round: Any, carry: Any) -> Any:
            current, best, lowest = carry
            current = jax.lax.fori_loop(round * every, (round + 1) * every, step, current)
            value = loss(current[0], held_out)
            best = jax.tree.map(lambda x, y: jnp.where(value < lowest, x, y), current[0], best)
            return current, best, jnp.fmin(value, lowest)

        start = (trainable, optimiser.init(trainable))
        carry = (start, trainable, loss(trainable, held_out))
        return jax.lax.fori_loop(0, steps // every, evaluate, carry)[1:]

    return jax.jit(run)
