"""Gradients of complex arrays, as optimisers expect them."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from .._trainer import ConjugateState


def conjugate() -> optax.GradientTransformation:
    """Conjugate the gradients of complex arrays; the first transformation of a chain.

        optimiser = optax.chain(conjugate(), optax.adam(1e-3))

    For a complex array, `jax.grad` returns `dL/dx - i dL/dy`, whose conjugate is the direction of
    ascent. Without `conjugate`, an optimiser descends in the real parts and climbs in the imaginary
    parts, because optax's optimisers do not conjugate. Real arrays pass unchanged.

    Use it in your own loops. `Trainer` and `compare` conjugate the gradients themselves, so do not
    pass them an optimiser that conjugates as well: two conjugations cancel.

    Adam scales a complex number as a whole, by the average of `|g|^2`. To scale real and imaginary
    parts separately, as Adam does for a pair of real arrays, write
    `optax.chain(conjugate(), optax.contrib.split_real_and_imaginary(optax.adam(1e-3)))`, which
    needs `conjugate` as well. A line search of optax (L-BFGS) takes JAX's gradient as `grad=`.
    """

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        return jax.tree.map(jnp.conj, updates), state

    return optax.GradientTransformation(lambda params: ConjugateState(), update)
