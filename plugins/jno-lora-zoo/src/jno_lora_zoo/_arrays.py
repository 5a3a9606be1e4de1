"""Weights and features: dtypes, mesh axes, and linear maps along the first axis."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jno.lora import WrapperError
from jno.lora.extending import CodedArray, compute_dtype as compute_dtype, is_coded

from ._derivatives import differentiated_by

Matrix = Float[Array, "out in"]
# The mesh axes along which an axis of an array is sharded.
MeshAxis = str | tuple[str, ...] | None

_ARRAYS = (jax.Array, np.ndarray)


def is_float_array(weight: object) -> bool:
    """Whether `weight` is a real floating array, or codes of such an array (`CodedArray`)."""
    return (isinstance(weight, _ARRAYS) or is_coded(weight)) and _is_floating(weight.dtype)


@functools.lru_cache(maxsize=64)
def _is_floating(dtype: np.dtype) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.floating))


def describe(weight: object) -> str:
    """A weight for a message: its shape, and its dtype if that is wrong."""
    if not (isinstance(weight, _ARRAYS) or is_coded(weight)):
        return f"a {type(weight).__name__}"
    return f"{weight.shape}" if is_float_array(weight) else f"{weight.dtype} {weight.shape}"


def sharded_over(weight: Any) -> tuple[MeshAxis, ...]:
    """The mesh axes of each axis of `weight`, `None` where it is not sharded."""
    sharding = getattr(weight, "sharding", None)
    spec = tuple(sharding.spec) if isinstance(sharding, NamedSharding) else ()
    return spec + (None,) * (weight.ndim - len(spec))


def dtype_of(weight: Any) -> np.dtype:
    """The JAX dtype of `weight`: float32 for NumPy's float64, unless x64 is enabled."""
    return jax.dtypes.canonicalize_dtype(weight.dtype)


def in_compute_dtype(weight: ArrayLike | CodedArray) -> Array:
    """`weight` as an array of its `compute_dtype`."""
    if is_coded(weight):
        weight = weight.decoded()
    return jnp.asarray(weight, compute_dtype(weight))


def cast_like(array: Array, weight: Any) -> Array:
    """`array` in the dtype of `weight`."""
    return array.astype(dtype_of(weight))


def in_form_of(array: Array, weight: Any) -> Array:
    """`array` in the shape and dtype of `weight`, to replace it.

    **Raises:** `WrapperError` if `weight` is stored as codes, which cannot represent arbitrary
    values.
    """
    if is_coded(weight):
        raise WrapperError(weight.refusal)
    return cast_like(array, weight).reshape(weight.shape)


def scaled(y: Float[Array, "n *rest"], v: Float[Array, " n"]) -> Float[Array, "n *rest"]:
    """`diag(v) y`: a factor for each entry of the first axis.

    The product is computed in at least float32, because half precision would round a factor within
    0.4 % of 1 to 1.
    """
    return _times(y, v) if y.dtype.itemsize >= 4 else _half_times(y, v)


def _times(y: Array, v: Array) -> Array:
    wide = in_compute_dtype(y)
    factor = v.astype(wide.dtype).reshape(-1, *(1,) * (y.ndim - 1))
    return (wide * factor).astype(y.dtype)


def _half_times_rule(value: Array, primals: Any, tangents: Any) -> tuple[Array, Array | None]:
    # The derivative by `v` needs `y`, and must store `y` itself, not its float32 copy.
    times = jax.checkpoint(_times, prevent_cse=False)
    return value, eqx.filter_jvp(times, primals, tangents)[1]


@differentiated_by(_half_times_rule)
def _half_times(y: Array, v: Array) -> Array:
    return _times(y, v)


def mixed(h: Float[Array, "r *rest"], R: Float[Array, "k r"]) -> Float[Array, "k *rest"]:
    """`R h`: a matrix on the first axis."""
    transposed = R.astype(h.dtype).T
    # On a CPU, XLA takes ten times as long for a tall matrix's gradient by rows as by columns.
    if R.shape[0] > R.shape[1]:
        transposed = with_stored_gradient(transposed)
    if h.ndim == 1:  # one matrix product under `vmap`; a random `R` is drawn inside it
        return h @ transposed
    return jnp.moveaxis(jax.lax.dot_general(h, transposed, (((0,), (0,)), ((), ()))), -1, 0)


@jax.custom_jvp
def with_stored_gradient(a: Array) -> Array:
    """`a`, with a gradient that the compiler stores as an array of this shape.

    Otherwise XLA may choose a layout in which a product takes ten times as long, or recompute the
    gradient entry by entry.
    """
    return a


@with_stored_gradient.defjvp
def _with_stored_gradient_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    return with_stored_gradient(*primals), jax.lax.optimization_barrier(*tangents)


def rotated(y: Float[Array, "n *rest"], R: Float[Array, "blocks r r"]) -> Float[Array, "n *rest"]:
    """`blockdiag(R_1, R_2, ...) y` along the first axis, cut to its length."""
    blocks, r, _ = R.shape
    padded = jnp.pad(y, ((0, blocks * r - y.shape[0]), *((0, 0),) * (y.ndim - 1)))
    in_blocks = with_stored_gradient(padded.reshape(blocks, r, *y.shape[1:]))
    turned = jnp.einsum("kj...,kij->ki...", in_blocks, R.astype(y.dtype))
    return with_stored_gradient(turned).reshape(-1, *y.shape[1:])[: y.shape[0]]


def row_norms(V: Matrix) -> Float[Array, " out"]:
    """The norm of each row, divided by its largest entry first so that squares do not overflow."""
    largest = jnp.max(jnp.abs(V), axis=1)
    unit = jnp.where(largest > 0, largest, 1)
    return unit * jnp.sqrt(jnp.sum(jnp.square(V / unit[:, None]), axis=1))
