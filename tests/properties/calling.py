"""Calling the layers of the random models."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .odd_nodes import DuckConv, DuckLinear


def output_of(layer: Any, plain: Any, rng: np.random.Generator) -> jax.Array:
    """The output of a layer, or of its adapter, for random inputs; for a stack, of each layer.

    - `plain`: the layer without an adapter, which says what it takes.
    """
    inner = plain.layer if isinstance(plain, eqx.nn.WeightNorm) else plain
    weight = jax.tree.leaves(eqx.filter(inner, eqx.is_array))[0]
    ndim, inputs = _takes(inner)
    shapes = [jnp.asarray(np.asarray(rng.normal(size=shape), np.float32)) for shape in inputs]
    xs = [x.astype(jax.dtypes.canonicalize_dtype(weight.dtype)) for x in shapes]
    if isinstance(inner, eqx.nn.Embedding):
        xs = [jnp.asarray(rng.integers(3))]
    call = _call
    for _ in range(weight.ndim - ndim):
        call = eqx.filter_vmap(call, in_axes=(eqx.if_array(0), None))
    return call(layer, xs)


def _call(layer: Any, xs: Any) -> Any:
    return layer(*xs)


def _takes(layer: Any) -> tuple[int, list[tuple[int, ...]]]:
    """The axes of its first array, if it is not a stack, and the shapes of its inputs."""
    if isinstance(layer, eqx.nn.Linear | DuckLinear):
        return 2, [(4,)]
    if isinstance(layer, eqx.nn.Conv | eqx.nn.ConvTranspose | DuckConv):
        return 3, [(2, 3)]
    if isinstance(layer, eqx.nn.GRUCell):
        return 2, [(2,), (2,)]
    if isinstance(layer, eqx.nn.MultiheadAttention):
        return 2, [(3, 4)] * 3
    assert isinstance(layer, eqx.nn.Embedding)
    return 2, []
