"""Recurrent cells: `eqx.nn.GRUCell`, `eqx.nn.LSTMCell` and their subclasses."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from jno.lora import WrapperError

from .._arrays import cast_like, describe, in_compute_dtype, is_float_array, sharded_over
from .._layer_kind import LayerKind, MeshAxes

Cell = eqx.nn.GRUCell | eqx.nn.LSTMCell


class RecurrentLayer(LayerKind):
    """A cell with the raw weights `weight_ih` `(gates h, in)` and `weight_hh` `(gates h, h)`.

    The gates get `weight_ih x + weight_hh h` from the input `x` and the hidden state `h` (in a
    GRU's third gate, the second term is multiplied by the reset gate). The matrix is the two
    weights side by side, `(gates h, in + h)`, with 3 gates in a GRU and 4 in an LSTM, so `lora_A`
    reads input and state, `lora_B` writes to the gates, and "per output" means per gate and unit.
    Biases are untouched.

    The cell is called with the law's weights, which a `lax.scan` merges again in each step; to
    merge only once, call `merge_lora` before the scan.
    """

    @classmethod
    def fits(cls, leaf: object) -> bool:
        if not isinstance(leaf, Cell):
            return False
        ih, hh = leaf.weight_ih, leaf.weight_hh
        if not (is_float_array(ih) and is_float_array(hh)) or 0 in ih.shape:
            return False
        return ih.shape[-2:] == (hh.shape[-2], leaf.input_size) and hh.shape[-1] == leaf.hidden_size

    @classmethod
    def misfit(cls, leaf: object) -> str | None:
        if not isinstance(leaf, Cell):
            return None
        return (
            f"its weights are {describe(leaf.weight_ih)} and {describe(leaf.weight_hh)}, which do "
            f"not fit {leaf.input_size} inputs and {leaf.hidden_size} units"
        )

    @classmethod
    def stack_ndim(cls, leaf: Any) -> int:
        return leaf.weight_ih.ndim - 2

    @classmethod
    def matrix(cls, layer: Cell) -> Float[Array, "out in"]:
        ih, hh = in_compute_dtype(layer.weight_ih), in_compute_dtype(layer.weight_hh)
        dtype = jnp.result_type(ih, hh)
        return jnp.concatenate([ih.astype(dtype), hh.astype(dtype)], axis=1)

    @classmethod
    def with_matrix(cls, base: Cell, matrix: Float[Array, "out in"]) -> eqx.Module:
        ih, hh = jnp.split(matrix, [base.weight_ih.shape[1]], axis=1)
        weights = (cast_like(ih, base.weight_ih), cast_like(hh, base.weight_hh))
        return eqx.tree_at(lambda cell: (cell.weight_ih, cell.weight_hh), base, weights)

    @classmethod
    def inputs_of(cls, layer: Cell, *args: Any, **kwargs: Any) -> Float[Array, "n in"]:
        x, hidden, *_ = args
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden  # an LSTM also has a cell state
        return super().inputs_of(layer, jnp.concatenate([x, hidden]))

    @classmethod
    def outputs_of(cls, layer: Cell, y: object) -> Float[Array, "n out"]:
        raise WrapperError("the gates of a cell are not among its outputs")

    @classmethod
    def mesh_axes(cls, base: Cell) -> MeshAxes:
        # The inputs of both weights share an axis of the matrix, which cannot be sharded like
        # either.
        *stack, outputs, _ = sharded_over(base.weight_ih)
        is_same = sharded_over(base.weight_hh)[-2] == outputs
        return MeshAxes(tuple(stack), outputs if is_same else None, None)
