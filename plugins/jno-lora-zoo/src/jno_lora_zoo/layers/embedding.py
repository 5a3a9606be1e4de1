"""Embedding tables: `eqx.nn.Embedding`, its subclasses, and look-alikes."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from .._arrays import cast_like, compute_dtype, describe, in_compute_dtype, is_float_array
from .._layer_kind import Map, MatrixLayer, Update, unchanged


class EmbeddingLayer(MatrixLayer):
    """A table `weight` of shape `(num_embeddings, embedding_size)`, read one row at a time.

    The matrix is the transposed table: a lookup is `W e_i`, so `in` is the number of embeddings and
    `out` their size. `lora_A` is `(r, num_embeddings)` and `lora_B` is `(embedding_size, r)`. "Per
    output" (the scale of IA3, the magnitude of DoRA, the rotation of OFT) therefore means per
    dimension of the embedding, the same for every token.

    `A e_i` is a column of `A`. Features are at least float32, and are rounded only once, at the
    end.

    Duck types must declare `num_embeddings` and `embedding_size`. A duck type or a subclass may do
    more than a lookup, so it is called itself, with the adapted table.
    """

    weight_axes = "io"

    @classmethod
    def fits(cls, leaf: object) -> bool:
        shape = (getattr(leaf, "num_embeddings", None), getattr(leaf, "embedding_size", None))
        has_sizes = all(isinstance(size, int | np.integer) and size > 0 for size in shape)
        if not callable(leaf) or not has_sizes:
            return False
        weight: Any = getattr(leaf, "weight", None)
        return is_float_array(weight) and weight.shape[-2:] == shape

    @classmethod
    def misfit(cls, leaf: object) -> str | None:
        if not isinstance(leaf, eqx.nn.Embedding):
            return None
        sizes = (leaf.num_embeddings, leaf.embedding_size)
        return (
            f"its weight is {describe(leaf.weight)}, not (num_embeddings, embedding_size) = {sizes}"
        )

    @classmethod
    def fan_in(cls, W: Float[Array, "out in"]) -> int:
        return 1  # A lookup reads one column: 1/num would make first updates of a table vanish.

    def computes(self, x: object) -> bool:
        return type(self.base) is eqx.nn.Embedding

    def product(self, x: ArrayLike, before: Map = unchanged) -> Array:
        # The base is called so that it raises for invalid inputs as usual, such as vectors of ids.
        return in_compute_dtype(self.base(x))

    def down(self, x: ArrayLike, A: Float[Array, "r in"]) -> Array:
        # Indexed like the base: negative ids count from the end, and large ids are clamped.
        return A[:, x].astype(compute_dtype(self.base.weight))

    def plus(self, x: ArrayLike, U: Update) -> Array:
        i = _row(self.base, x)
        column = U.matrix()[:, i] if U.column is None else U.column(i)
        return self.product(x) + column.astype(compute_dtype(self.base.weight))

    @classmethod
    def inputs_of(cls, layer: Any, *args: Any, **kwargs: Any) -> Float[Array, "n in"]:
        rows = jnp.arange(layer.num_embeddings)
        return (_row(layer, args[0]).reshape(-1, 1) == rows[None]).astype(jnp.float32)

    def finish(self, y: Array, b: Float[Array, " out"] | None) -> Array:
        return cast_like(y, self.base.weight)


def _row(layer: Any, x: ArrayLike) -> Array:
    """The index of the row that `layer.weight[x]` reads, as an integer that can be divided."""
    count = layer.num_embeddings
    # JAX's default integers, because the count may exceed a `uint8`.
    index = jnp.asarray(x).astype(int)
    return jnp.clip(jnp.where(index < 0, index + count, index), 0, count - 1)
