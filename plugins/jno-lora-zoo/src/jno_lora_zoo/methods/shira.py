"""SHiRA: train a few entries of the weight."""

import jax.numpy as jnp
from jax.tree_util import Partial
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from .._arrays import Matrix
from .._bibtex import cited
from .._layer_kind import Update
from .._method import Method
from .._positions import count_of, drawn_positions, row_and_column, scattered


class Scattered(Method):
    """`W' = W + U`, where `U` has trained values at some positions, and zeros elsewhere."""

    adapter_fields = ("values",)
    has_alpha = False

    values: Float[Array, " n"]
    positions: Shaped[Array, "n 4"]

    def law(self, W: Matrix) -> Matrix:
        entries = row_and_column(self.positions, W.shape)
        return W.at[entries].add(self.values.astype(W.dtype))

    def update(self) -> Matrix:
        """`U`, in the dtype of `W`."""
        W = self.matrix(self.base)
        return scattered(self.values.astype(W.dtype), self.positions, W.shape)

    def forward(self, x: ArrayLike) -> Array:
        # Through the weight: by the rows and columns of the values, a step of `Linear(512, 512)` at
        # rank 8 takes 4 times as long for 64 samples, and 128 lookups 15 times as long.
        return self.plus(x, Update(Partial(Scattered.update, self)))


class SHiRA(Scattered):
    """SHiRA: sparse high-rank adaptation, trained values at random entries of the weight.

    Law: `W' = W + scatter(values)`, `values = 0`, at as many positions as LoRA of rank `r` has
    numbers. `min(r(in + out), in out)` parameters train. `alpha` is ignored.
    `r = min(rank, in, out)`. The positions are drawn from the key and saved: all entries are
    equally likely, and the positions are spread evenly over the weight.

    Paper: Bhardwaj et al., "Sparse High Rank Adapters", arXiv:2406.13175. This is the random mask,
    which PEFT uses too; the paper's other masks need gradients. In a small layer, all entries
    train, while PEFT raises an error.
    """

    variant = "shira"
    about = cited(
        "2406.13175",
        family="sparse",
        formula="min(r (in + out), in out)",
        cost="makes a matrix as large as the weight at every call: merge before decoding.",
    )

    def start(self, W: Matrix, r: int, key: PRNGKeyArray, dtype: DTypeLike) -> dict[str, Array]:
        n = count_of(W.shape, r, None, "rank")
        return {"values": jnp.zeros(n, dtype), "positions": drawn_positions(key, n, W.size)}
