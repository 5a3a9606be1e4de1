"""The derivative of a loss by the parameter of a conditional adapter. Serves ours."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ._models import data_of, model_of, outputs_of
from ._timing import Subject, timed
from .jax_conditional import conditional_of, values_of
from .jax_train import costs_of

Loss = Callable[[jax.Array], jax.Array]

STEP = 0.02  # of the finite difference, in units of the parameter


def forward_mode(loss: Loss, z: jax.Array) -> Any:
    """Loss and derivative by `jax.jvp`."""
    return jax.jvp(loss, (z,), (jnp.ones_like(z),))


def reverse_mode(loss: Loss, z: jax.Array) -> Any:
    """Loss and derivative by `jax.vjp`."""
    value, pull = jax.vjp(loss, z)
    return value, pull(jnp.ones_like(value))[0]


def difference(loss: Loss, z: jax.Array) -> Any:
    """Loss and derivative by two calls, which are compiled as one program."""
    below, above = loss(z - STEP / 2), loss(z + STEP / 2)
    return (below + above) / 2, (above - below) / STEP


def no_derivative(loss: Loss, z: jax.Array) -> Any:
    """The loss alone."""
    return loss(z)


WAYS = {way.__name__: way for way in (forward_mode, reverse_mode, difference, no_derivative)}


def build(case: dict[str, Any], device: str) -> Subject:
    """Loss and derivative in the way of the case, as a compiled program."""
    plain = model_of(case)
    tree = conditional_of(case, plain), values_of(case), *data_of(case, plain)
    arrays, static = eqx.partition(tree, eqx.is_array)
    leaves, form = jax.tree.flatten(arrays)

    def derivative(leaves: list[jax.Array]) -> Any:
        conditional, z, x, y = eqx.combine(jax.tree.unflatten(form, leaves), static)
        return WAYS[case["way"]](loss_of(conditional, x, y), z)

    compiled = jax.jit(derivative).lower(leaves).compile()
    call = timed(lambda: compiled(leaves), jax.block_until_ready, queue=device == "gpu")
    facts = costs_of(compiled)
    if not case["has_memory"]:
        facts["temp"] = None
    return Subject(facts, {"derivative": call})


def loss_of(conditional: Any, x: jax.Array, y: jax.Array) -> Loss:
    """The mean square as a function of the parameter.

    It is a number for a value of the whole batch, and `(batch,)` for a value of each example. No
    example's loss depends on another example's value.
    """

    def loss(z: jax.Array) -> jax.Array:
        squares = (outputs_of(conditional, (z, x)) - y) ** 2
        return jnp.mean(squares, axis=tuple(range(z.ndim, squares.ndim)))

    return loss
