"""The array type that stands in the place of a quantised weight."""

import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Integer

from jno.lora.coded import CodedArray, row_products

from ._linear import Applied, linear
from ._schemes import Scheme

# The numbers that are decoded at once where the norms of rows are computed.
_AT_ONCE = 2**16


class QuantizedArray(CodedArray):
    """A frozen weight as codes. It reads like the weight: `shape`, `dtype`, `W @ x`, `W[rows]`.

    All leaves are integers: filters, casts and optimisers leave them alone. `W @ x` keeps the codes
    for the backward pass, and decodes them again there. Everything else, such as `jnp.asarray(W)`
    or `x @ W.T`, decodes the weight, and keeps what it needs of that.

    - `codes`: the codes of one weight as a matrix of rows, after the axes of a stack.
    - `parts`: the arrays that the scales are made of. float32 is kept as its bits.
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
    dtype: Any = eqx.field(static=True)
    scheme: Scheme = eqx.field(static=True)

    @property
    def code(self) -> str:
        return self.scheme.name

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.codes.shape[:-2], *self.form)

    @property
    def sharding(self) -> Any:
        """The weight's sharding, which follows from that of the codes."""
        found = self.codes.sharding
        if not isinstance(found, NamedSharding):
            return found
        return NamedSharding(found.mesh, PartitionSpec(*tuple(found.spec)[: self.ndim]))

    @property
    def nbytes(self) -> int:
        """The number of bytes of codes and scales."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self))

    def decoded(self) -> Array:
        over_stack = self._rows_of_one
        for _ in range(self.codes.ndim - 2):
            over_stack = jax.vmap(over_stack)
        return over_stack(self.codes, self.parts).reshape(self.shape)

    def _rows_of_one(self, codes: Array, parts: tuple[Array, ...]) -> Array:
        columns = math.prod(self.form[1:])
        return self.scheme.decode(codes, parts, columns).astype(self.dtype)

    def astype(self, dtype: Any) -> "QuantizedArray":
        return QuantizedArray(self.codes, self.parts, self.form, _floating(dtype), self.scheme)

    def applied(self, function: Callable[[Array, Array], Array], x: Array) -> Array:
        leaves, structure = jax.tree.flatten(self)
        return linear(Applied(function, structure), x, *leaves)

    def row_products(self, A: Float[Array, "r in"]) -> tuple[Array, Array]:
        """`W A^T` and the squared norm of each row, by blocks of rows: `W` is never there whole."""
        A, count = A.astype(self.compute_dtype), self.form[0]
        # In four steps at least: XLA would take a loop of one step apart, and hold all weights.
        at_once = max(1, min(-(-count // 4), _AT_ONCE // math.prod(self.form[1:])))
        starts = jnp.arange(0, count, at_once)

        def products(start: Array) -> tuple[Array, Array]:
            rows = jnp.minimum(start + jnp.arange(at_once), count - 1)
            return row_products(self._rows(rows).astype(A.dtype), A)

        found = jax.lax.map(products, starts)
        return jax.tree.map(lambda y: y.reshape(-1, *y.shape[2:])[:count], found)

    def _rows(self, rows: Integer[Array, " n"]) -> Float[Array, "n columns"]:
        """These rows of one weight as a matrix."""
        columns = math.prod(self.form[1:])
        return self.scheme.decode(self.codes[rows], self.parts, columns, rows).astype(self.dtype)

    def __getitem__(self, index: Any) -> Array:
        # Rows by their numbers, as in a lookup. Of others, the whole weight is decoded.
        is_number = isinstance(index, int) or jnp.issubdtype(
            getattr(index, "dtype", bool), jnp.integer
        )
        if self.codes.ndim > 2 or not is_number:
            return self.decoded()[index]
        # JAX's own rules: negative numbers count from the end, and others are clamped.
        rows = jnp.arange(self.form[0])[index]
        return self._rows(rows.reshape(-1)).reshape(*rows.shape, *self.form[1:])

    @classmethod
    def of(cls, weight: Array, scheme: Scheme, stack_ndim: int = 0) -> "QuantizedArray":
        """The codes of a floating array, whose first `stack_ndim` axes are those of a stack."""
        stack, form = weight.shape[:stack_ndim], weight.shape[stack_ndim:]
        matrices = weight.reshape(*stack, form[0], -1)
        codes, parts = _encode(matrices, scheme=scheme)
        return cls(codes, parts, tuple(form), _floating(weight.dtype), scheme)


@functools.partial(jax.jit, static_argnames="scheme")
def _encode(matrices: Array, *, scheme: Scheme) -> tuple[Array, tuple[Array, ...]]:
    encode = scheme.encode
    for _ in range(matrices.ndim - 2):
        encode = jax.vmap(encode)
    return encode(matrices.astype(jnp.float32))


def _floating(dtype: Any) -> Any:
    """**Raises:** `TypeError` unless `dtype` is a floating one."""
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"a quantised weight reads as floating numbers, not as {dtype}")
    return dtype
