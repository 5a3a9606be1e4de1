"""Dtypes to compute in, where the dtypes of the arrays would round too much."""

from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree


def held_dtype(array: Any) -> Any:
    """The dtype in which JAX computes with `array`: without x64, NumPy's float64 is float32."""
    is_numpy = isinstance(array, np.ndarray)
    return jax.dtypes.canonicalize_dtype(array.dtype) if is_numpy else array.dtype


def count_reals(array: Any) -> int:
    """How many parameters `array` has: its real numbers, so a complex number counts twice."""
    return array.size * (2 if jnp.issubdtype(array.dtype, jnp.complexfloating) else 1)


def compute_dtype(weight: Any) -> np.dtype:
    """The dtype to compute in with `weight`, and of arrays that train beside it.

    This is JAX's dtype for `weight`, or float32 instead of half precision, in which small updates
    vanish: `jnp.zeros(shape, compute_dtype(weight))`, and `weight.astype(compute_dtype(weight))`
    before a sum or a decomposition.

    **Arguments:** `weight`: a floating or complex array, or its shape and dtype.
    """
    dtype = jax.dtypes.canonicalize_dtype(weight.dtype)
    return jnp.dtype(jnp.float32) if dtype.itemsize < 4 else dtype


def widest(dtypes: Iterable[Any]) -> Any:
    """The first dtype of the largest size. (Strict promotion allows no mixture of dtypes.)"""
    return max(dtypes, key=lambda dtype: dtype.itemsize)


def count_non_finite(array: np.ndarray) -> int:
    """The number of NaN and infinite values in an array."""
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        return 0
    return int(array.size - np.count_nonzero(np.isfinite(array)))


def is_finite(leaf: object) -> bool:
    """Whether `leaf` is no floating array whose values this process has, or all are finite."""
    if not isinstance(leaf, jax.Array | np.ndarray | np.generic) or isinstance(leaf, Tracer):
        return True
    is_here = getattr(leaf, "is_fully_addressable", True)
    is_floating = jnp.issubdtype(leaf.dtype, jnp.inexact)
    return not (is_here and is_floating) or bool(np.isfinite(np.asarray(leaf)).all())


def in_dtypes_of(base: PyTree, layer: PyTree) -> PyTree:
    """`layer`, with NumPy arrays wherever `base` has NumPy arrays of a dtype that JAX lacks.

    - `base`: a layer of the same structure.
    """

    def put_back(old: PyTree, new: PyTree) -> PyTree:
        is_lacked = isinstance(old, np.ndarray) and held_dtype(old) != old.dtype
        return np.asarray(new, old.dtype) if is_lacked and not isinstance(new, Tracer) else new

    has_numpy = any(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(base))
    return jax.tree.map(put_back, base, layer) if has_numpy else layer


def at_least_float32(tree: PyTree) -> PyTree:
    """`tree` with half precision widened to float32. NumPy arrays stay NumPy arrays."""
    return jax.tree.map(lambda x: x.astype(jnp.float32) if _is_half(x) else x, tree)


def widened(tree: PyTree) -> PyTree:
    """`tree` with half precision widened to float32, other precisions to float64 or complex128.

    Call it, and compute with its result, under `jax.enable_x64(True)`.
    """

    def widen(leaf: object) -> PyTree:
        if _is_half(leaf):
            return jnp.asarray(leaf, jnp.float32)
        if not eqx.is_inexact_array(leaf):
            return leaf
        return jnp.asarray(leaf, jnp.complex128 if jnp.iscomplexobj(leaf) else jnp.float64)

    return jax.tree.map(widen, tree)


def _is_half(leaf: object) -> bool:
    # Equinox treats NumPy's bfloat16 as an exact dtype.
    return (
        isinstance(leaf, jax.Array | np.ndarray)
        and bool(jnp.issubdtype(leaf.dtype, jnp.floating))
        and leaf.dtype.itemsize < 4
    )
