"""A layer and its adapter in a wider dtype, in which rounding is no matter."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp


def widened(tree: Any) -> Any:
    """`tree` with float32 for half precision, and float64 (complex128) for everything else.

    To be called, and its result to be computed with, under `jax.enable_x64(True)`.
    """
    return jax.tree.map(_widened, tree)


def _widened(leaf: Any) -> Any:
    if not eqx.is_inexact_array(leaf):
        return leaf
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return jnp.asarray(leaf, jnp.complex128)
    return jnp.asarray(leaf, jnp.float32 if leaf.dtype.itemsize < 4 else jnp.float64)
