"""Adapters of grown layers: their new outputs, inputs and tokens."""

from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from jno.lora import About, LowRankForm

from .._arrays import Matrix
from .._layer_kind import Bias, Update
from .._method import Method
from ..layers import ConvLayer, EmbeddingLayer, LinearLayer


class Grown(Method):
    """New rows and columns at the end of a matrix: `W' = W + U`.

    Law: `U` is `new_rows` in the last rows, `new_columns` above them in the last columns, and zero
    elsewhere; `new_bias` is added to the last entries of the bias. All start at zero. `grow` makes
    the larger layer, with zeros as new entries, and puts this adapter around it.

    Options: `rows` and `columns`, the numbers of new rows and columns. `U` has the rank `rows +
    columns`; `rank` and `alpha` are ignored. `rows in + columns (out - rows)` parameters train, and
    `rows` of the bias.
    """

    # Without new rows or columns, the array is empty.
    adapter_fields = ("new_rows", "new_columns")
    optional_fields = ("new_bias",)
    variant = "grown"
    has_alpha = False
    # The axis of the matrix to which `start` applies: outputs, or the tokens of a table.
    start_axis: ClassVar[int] = 0
    about = About(family="sparse", formula="rows in + columns (out - rows)")
    _rank_limits = ()

    new_rows: Float[Array, "rows in"]
    new_columns: Float[Array, "old columns"]
    new_bias: Float[Array, " rows"] | None

    def start(
        self,
        W: Matrix,
        r: int,
        key: PRNGKeyArray,
        dtype: Any,
        *,
        rows: int = 0,
        columns: int = 0,
    ) -> dict[str, Any]:
        outputs, inputs = W.shape
        if not (0 <= rows < outputs and 0 <= columns < inputs and rows + columns):
            raise ValueError(
                f"of a matrix {W.shape}, expected some new rows or columns, but not all, and got "
                f"rows={rows}, columns={columns}: `jno_lora_zoo.grow` makes this adapter"
            )
        has_bias = rows and self.bias_of(self.base) is not None
        return {
            "new_rows": jnp.zeros((rows, inputs), dtype),
            "new_columns": jnp.zeros((outputs - rows, columns), dtype),
            "new_bias": jnp.zeros(rows, dtype) if has_bias else None,
        }

    @classmethod
    def options_of(cls, state: Mapping[str, Array]) -> dict[str, Any]:
        return {"rows": state["new_rows"].shape[0], "columns": state["new_columns"].shape[1]}

    def law(self, W: Matrix) -> Matrix:
        return W + self.update().astype(W.dtype)

    def bias_law(self, b: Bias) -> Bias:
        if self.new_bias is None:
            return b
        return b.at[-self.new_bias.shape[0] :].add(self.new_bias.astype(b.dtype))

    def update(self) -> Matrix:
        """`U`."""
        old = self.new_rows.shape[1] - self.new_columns.shape[1]
        upper = jnp.pad(self.new_columns, ((0, 0), (old, 0)))
        return jnp.concatenate([upper, self.new_rows])

    def low_rank_form(self) -> LowRankForm:
        rows, columns = self.new_rows, self.new_columns
        (r, inputs), (old, c) = rows.shape, columns.shape
        A = jnp.concatenate([rows, jnp.eye(c, inputs, inputs - c, dtype=rows.dtype)])
        B = jnp.concatenate(
            [jnp.eye(old + r, r, -old, dtype=rows.dtype), jnp.pad(columns, ((0, r), (0, 0)))], 1
        )
        shift = None if self.new_bias is None else jnp.pad(self.new_bias, (old, 0))
        return LowRankForm(A, B, shift=shift)

    def forward(self, x: ArrayLike) -> Array:
        return self.plus(x, Update(self.update, self._times, self._column))

    def _times(self, v: Array) -> Array:
        """`U v`."""
        rows, columns = self.new_rows.astype(v.dtype), self.new_columns.astype(v.dtype)
        return jnp.concatenate([columns @ v[len(v) - columns.shape[1] :], rows @ v])

    def _column(self, i: Array) -> Array:
        """`U[:, i]` without the whole `U`, because a table has many columns."""
        old = self.new_rows.shape[1] - self.new_columns.shape[1]
        # Old tokens have a column of zeros.
        columns = jnp.pad(self.new_columns, ((0, 0), (1, 0)))
        return jnp.concatenate([columns[:, jnp.maximum(i - old + 1, 0)], self.new_rows[:, i]])

    def with_start(self, start: str | tuple[int, ...], key: PRNGKeyArray) -> "Grown":
        """This adapter with new outputs (of a table: tokens) that start according to `start`."""
        name = ("new_rows", "new_columns")[self.start_axis]
        values = getattr(self, name)
        if start == "zeros" or not values.size:
            return self
        r, c = self.new_rows.shape[0], self.new_columns.shape[1]
        W, b = self.matrix(self.base), self.bias_of(self.base)
        old = W[: W.shape[0] - r, : W.shape[1] - c]
        if self.start_axis:
            new = started_rows(start, old.T, c, key).T
        else:  # the new inputs stay zero
            new = jnp.pad(started_rows(start, old, r, key), ((0, 0), (0, c)))
        grown = eqx.tree_at(lambda a: getattr(a, name), self, new.astype(values.dtype))
        # Inputs have no bias, and a random start is of the weights alone.
        if b is None or self.new_bias is None or self.start_axis or start == "random":
            return grown
        bias = started_rows(start, b[:-r], r, key).astype(self.new_bias.dtype)
        return eqx.tree_at(lambda a: a.new_bias, grown, bias)


class GrownLinear(Grown, LinearLayer):
    """New outputs and inputs of a linear layer. `grow` makes it."""


class GrownConv(Grown, ConvLayer):
    """New channels of a convolution. `grow` makes it."""


class GrownEmbedding(Grown, EmbeddingLayer):
    """New tokens (inputs) and features (outputs) of an embedding. `grow` makes it."""

    start_axis = 1


def started_rows(start: str | tuple[int, ...], old: Array, number: int, key: PRNGKeyArray) -> Array:
    """`number` new rows from the `old` rows: their mean, random rows, or copies by index."""
    shape = (number, *old.shape[1:])
    if start == "random":
        return jnp.std(old) * jax.random.normal(key, shape, old.dtype)
    if start == "mean":
        return jnp.broadcast_to(jnp.mean(old, axis=0), shape)
    return old[jnp.asarray(start)]
