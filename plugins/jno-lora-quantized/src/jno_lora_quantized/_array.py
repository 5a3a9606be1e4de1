"""The array type that replaces a quantised weight."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array, DTypeLike, Float, Integer, PyTree

from jno.lora.extending import CodedArray, over_stack, row_products

from ._linear import Applied, linear
from ._schemes import Scheme

# How many numbers to decode at a time for the norms of rows.
_AT_ONCE = 2**16


class QuantizedArray(CodedArray):
    """A frozen weight as codes, used like the weight: `shape`, `dtype`, `W @ x`, `W[rows]`.

    All leaves are integers, so that filters, casts and optimisers leave them alone. `W @ x` saves
    only the codes for the backward pass, which decodes them again. All other operations, such as
    `jnp.asarray(W)` or `x @ W.T`, decode the weight and may keep the decoded weight.

    - `codes`: the codes of one weight as a matrix, after any stack axes.
    - `parts`: the encoded scales. Float32 numbers are stored as their bits.
    - `form`: the shape of one weight.
    - `dtype`: the dtype of the weight. Decoding computes in float32 and casts.
    """

    refusal: ClassVar[str] = (
        "a quantised weight cannot take other values: rounding them to its codes would lose most "
        "of a small update. Merge into plain layers by merge_lora(dequantize(model)), of "
        "jno_lora_quantized, and quantise the result anew if it must be small. Adapters that start "
        "by changing the weight (PiSSA, MiLoRA, OLoRA) go in first: "
        "quantize(apply_lora(model, ...)). Codes cannot give the original weight back: for files "
        'and unwrapping, start LoRA by loftq(model, start="pissa").'
    )

    codes: Integer[Array, "*stack rows bytes"]
    parts: tuple[Array, ...]
    form: tuple[int, ...] = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)
    scheme: Scheme = eqx.field(static=True)

    @property
    def code(self) -> str:
        return self.scheme.name

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.codes.shape[:-2], *self.form)

    @property
    def sharding(self) -> Sharding:
        """The weight's sharding, which follows from the sharding of the codes."""
        sharding = self.codes.sharding
        if not isinstance(sharding, NamedSharding):
            return sharding
        return NamedSharding(sharding.mesh, PartitionSpec(*tuple(sharding.spec)[: self.ndim]))

    @property
    def nbytes(self) -> int:
        """The number of bytes of codes and scales."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self))

    def decoded(self) -> Array:
        return over_stack(QuantizedArray._matrix, self.codes.ndim - 2)(self).reshape(self.shape)

    def _matrix(self, rows: Integer[Array, " n"] | None = None) -> Float[Array, "n columns"]:
        """One weight, without a stack, as a matrix; or only these rows."""
        codes, columns = self.codes if rows is None else self.codes[rows], math.prod(self.form[1:])
        return self.scheme.decode(codes, self.parts, columns, rows).astype(self.dtype)

    def astype(self, dtype: DTypeLike) -> "QuantizedArray":
        return dataclasses.replace(self, dtype=_floating(dtype))

    def applied(self, function: Callable[[Array, Array], Array], x: Array) -> Array:
        leaves, structure = jax.tree.flatten(self)
        return linear(Applied(function, structure), x, *leaves)

    def row_products(self, A: Float[Array, "r in"]) -> tuple[Array, Array]:
        """`W A^T` and each row's squared norm, by blocks of rows to avoid decoding all of `W`."""
        A, count = A.astype(self.compute_dtype), self.form[0]
        # At least four steps, because XLA would unroll a loop of one step and keep all weights.
        at_once = max(1, min(-(-count // 4), _AT_ONCE // math.prod(self.form[1:])))
        starts = jnp.arange(0, count, at_once)

        def products(start: Array) -> tuple[Array, Array]:
            rows = jnp.minimum(start + jnp.arange(at_once), count - 1)
            return row_products(self._matrix(rows).astype(A.dtype), A)

        blocks = jax.lax.map(products, starts)
        return jax.tree.map(lambda y: y.reshape(-1, *y.shape[2:])[:count], blocks)

    def __getitem__(self, index: PyTree) -> Array:
        # A lookup decodes only its rows. Any other index decodes the whole weight.
        dtype = getattr(index, "dtype", int if isinstance(index, int) else bool)
        if self.codes.ndim > 2 or not jnp.issubdtype(dtype, jnp.integer):
            return self.decoded()[index]
        # As in JAX, negative indices count from the end, and indices out of range are clamped.
        rows = jnp.arange(self.form[0])[index]
        return self._matrix(rows.reshape(-1)).reshape(*rows.shape, *self.form[1:])

    @classmethod
    def of(cls, weight: Array, scheme: Scheme, stack_ndim: int = 0) -> "QuantizedArray":
        """The codes of a floating array with `stack_ndim` axes of a stack in front."""
        stack, form = weight.shape[:stack_ndim], weight.shape[stack_ndim:]
        codes, parts = _encode(weight.reshape(*stack, form[0], -1), scheme=scheme)
        dtype = _floating(weight.dtype)
        return cls(codes=codes, parts=parts, form=form, dtype=dtype, scheme=scheme)


@functools.partial(jax.jit, static_argnames="scheme")
def _encode(matrices: Array, *, scheme: Scheme) -> tuple[Array, tuple[Array, ...]]:
    return over_stack(scheme.encode, matrices.ndim - 2)(matrices.astype(jnp.float32))


def _floating(dtype: DTypeLike) -> np.dtype:
    """**Raises:** `TypeError` unless `dtype` is a floating dtype."""
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"a quantised weight reads as floating numbers, not as {dtype}")
    return dtype


def placed_like(array: PyTree, weight: object) -> PyTree:
    """`array` sharded like `weight`; codes only along axes that divide evenly."""
    sharding = None if isinstance(weight, Tracer) else getattr(weight, "sharding", None)
    if not isinstance(sharding, NamedSharding):
        return array
    if not isinstance(array, QuantizedArray):
        return jax.device_put(array, sharding)
    mesh, ndim = sharding.mesh, array.codes.ndim

    def place(leaf: Array) -> Array:
        # Codes and scales have the stack axes, and usually an axis of rows and an axis of blocks.
        spec = tuple(sharding.spec)[: ndim if leaf.ndim == ndim else ndim - 2]
        pairs = zip(spec, leaf.shape, strict=False)
        axes = [axis if _divides(mesh, axis, size) else None for axis, size in pairs]
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*axes)))

    return jax.tree.map(place, array)


def _divides(mesh: Mesh | AbstractMesh, axis: str | tuple[str, ...] | None, size: int) -> bool:
    if axis is None:
        return True
    names = axis if isinstance(axis, tuple) else (axis,)
    return size % math.prod(mesh.shape[name] for name in names) == 0
