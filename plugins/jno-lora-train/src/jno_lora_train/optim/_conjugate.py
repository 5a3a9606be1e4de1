"""Gradients of complex arrays, as optimisers take them."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from .._trainer import ConjugateState


def conjugate() -> optax.GradientTransformation:
    """Conjugate the gradients of complex arrays, as the first member of a chain.

        optimiser = optax.chain(conjugate(), optax.adam(1e-3))

    For a complex array, `jax.grad` returns `dL/dx - i dL/dy`, whose conjugate is the direction of
    ascent. Without `conjugate`, an optimiser descends in the real parts and climbs in the imaginary
    parts, and no optimiser of optax conjugates by itself. Real arrays pass unchanged.

    It is for loops of your own. `Trainer` and `compare` conjugate the gradients themselves, so do
    not give them an optimiser that conjugates as well: two conjugations cancel.

    Adam scales a complex number as a whole, by the average of `|g|^2`. To scale real and imaginary
    parts separately, as Adam does for a pair of real arrays, write
    `optax.chain(conjugate(), optax.contrib.split_real_and_imaginary(optax.adam(1e-3)))`, which
    needs `conjugate` as well. A line search of optax (L-BFGS) takes JAX's gradient as `grad=`.
    """

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, Any]:
        return jax.tree.map(jnp.conj, updates), state

    return optax.GradientTransformation(lambda params: ConjugateState(), update)
