"""Checks of an adapter's claims about its matrix: `matrix`, and updates of low rank."""

import operator
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jno.lora import MatrixAdapter
from jno.lora.extending import with_arrays

from ._case import NOT_MERGEABLE, WrapperCase
from ._comparisons import relative_error, require, require_close
from ._conformance import required, skip_unless
from ._programs import merged, output

_TOLERANCE = 4e-5
_NO_MATRIX = "the adapter says no `matrix`"


@required(
    "give the `(out, in)` matrix `W` of one plain layer that the update is added to, as a "
    "classmethod; or leave `matrix` out."
)
def check_matrix(case: WrapperCase) -> None:
    """`matrix` is `None`, or the layer's `(out, in)` matrix to which the update is added.

    A linear layer computes `W x`, perhaps with a bias and a factor for each output.
    """
    base = case.make_base()
    W: Any = _matrix(case, base)
    skip_unless(W is not None, _NO_MATRIX)
    samples = [case.make_inputs(), case.make_inputs(seed=9)]
    has_numbers = any(map(eqx.is_inexact_array, jax.tree.leaves(samples[0])))
    if has_numbers:  # with the same indices, masks and keys
        samples[1] = _on_numbers(lambda first, second: second, *samples)
    rows, outputs = _rows_of(case, base, samples)
    reason = "the class does not say which rows the matrix multiplies and gives"
    skip_unless(len(rows) == len(outputs) > 0, reason)
    if has_numbers:  # otherwise the inputs select rows of a table
        outputs = outputs - _constants(case, base, samples, outputs)
    shape = outputs.shape[1], rows.shape[1]
    require(W.shape == shape, f"`matrix` has the shape {W.shape}, not {shape}, (out, in).")
    products = rows @ W.T
    squares = np.sum(np.abs(products) ** 2, axis=0)
    gains = np.sum(products.conj() * outputs, axis=0) / np.where(squares == 0, 1, squares)
    problem = "`matrix` x, up to a factor for each output, is not the layer's output without bias"
    require_close(products * gains[None], outputs, _TOLERANCE, problem)


def _constants(case: WrapperCase, base: Any, samples: list[Any], outputs: Any) -> Any:
    """The layer's constant term. **Raises:** `NotApplicableError` if the layer is not affine."""
    zeros = [_on_numbers(jnp.zeros_like, inputs) for inputs in samples]
    at_zero: Any = _rows_of(case, base, zeros)[1]
    of_sum: Any = _rows_of(case, base, [_on_numbers(operator.add, *samples)])[1]
    first, second = np.split(outputs - at_zero, 2)
    is_linear = relative_error(of_sum - np.split(at_zero, 2)[0], first + second) <= _TOLERANCE
    skip_unless(is_linear, "the layer computes more than a matrix and a bias")
    return at_zero


def _on_numbers(function: Callable[..., Any], *samples: Any) -> Any:
    """`function` of the samples' floating arrays, with the first sample's remaining inputs."""
    return jax.tree.map(
        lambda *leaves: function(*leaves) if eqx.is_inexact_array(leaves[0]) else leaves[0],
        *samples,
    )


def _rows_of(case: WrapperCase, base: Any, samples: list[Any]) -> tuple[Any, Any]:
    """The vectors that the matrix multiplies, and the vectors that the layer returns."""
    adapter = MatrixAdapter.of(case.wrapper)
    outputs = [output(case, base, inputs) for inputs in samples]
    rows = [_as_rows(adapter.inputs_of, base, *inputs) for inputs in samples]
    return np.concatenate(rows), np.concatenate(
        [_as_rows(adapter.outputs_of, base, y) for y in outputs]
    )


def _as_rows(read: Callable[..., Any], base: Any, *arrays: Any) -> Any:
    """A single vector as a row, or the rows that the class finds, if it can."""
    if len(arrays) == 1 and eqx.is_inexact_array(arrays[0]) and arrays[0].ndim == 1:
        return _precise(arrays[0])[None]
    try:
        return _precise(read(base, *arrays))
    except Exception:  # a class without `needs` may not support this
        return np.zeros((0, 0))


@required(
    "give `(A, B)`, `(k, in)` and `(out, k)`, with the scale and every gate in one of the factors; "
    "or `None`, if the update is not exactly `B A`."
)
def check_low_rank_update(case: WrapperCase) -> None:
    """`low_rank_update` is the change that `merge` makes to the matrix."""
    skip_unless(case.mergeable, NOT_MERGEABLE)
    trained = case.make_trained()
    factors: Any = MatrixAdapter.of(case.wrapper).low_rank_update(trained)
    skip_unless(factors is not None, "the adapter claims no low-rank update")
    require(
        isinstance(factors, tuple) and len(factors) == 2 and all(map(eqx.is_array, factors)),
        f"`low_rank_update` gives {eqx.tree_pformat(factors)}, not two arrays `(A, B)`.",
    )
    A, B = factors
    _require_change(case, trained, A, B, "`low_rank_update`")


@required(
    "give the factor `s` of the update `s B A`, as a classmethod of the rank in use and alpha; or "
    "`None`, if the adapter does anything else."
)
def check_low_rank_scale(case: WrapperCase) -> None:
    """`low_rank_scale` times `lora_B lora_A` of `state()` is the change of the merged matrix."""
    skip_unless(case.mergeable, NOT_MERGEABLE)
    trained = case.make_trained()
    scale = MatrixAdapter.of(case.wrapper).low_rank_scale(trained.rank, trained.alpha)
    skip_unless(scale is not None, "the adapter claims no scale of a low-rank update")
    state = trained.state()
    shapes = {name: jnp.shape(array) for name, array in state.items()}
    is_named = {"lora_A", "lora_B"} <= state.keys() and shapes["lora_A"][:1] == (trained.rank,)
    require(
        is_named,
        "`low_rank_scale` needs `lora_A` `(rank, in)` and `lora_B` `(out, rank)` in `state()`, "
        f"whose arrays have the shapes {shapes}.",
        "name the factors so, or let `low_rank_scale` give `None`.",
    )
    scaled = scale * _precise(state["lora_B"])
    _require_change(case, trained, state["lora_A"], scaled, "`low_rank_scale`")


def _precise(array: Any) -> Any:
    """`array` in NumPy's double precision, real or complex."""
    array = np.asarray(array)
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)


def _matrix(case: WrapperCase, layer: Any) -> Any:
    """`matrix(layer)` in double precision, or `None`."""
    matrix: Any = MatrixAdapter.of(case.wrapper).matrix(with_arrays(layer))
    if matrix is None:
        return None
    require(
        jnp.ndim(matrix) == 2,
        f"`matrix` of the layer has the shape {jnp.shape(matrix)}, not (out, in).",
        "let `matrix` give the matrix that the update is added to, or `None`.",
    )
    return _precise(matrix)


def _require_change(case: WrapperCase, trained: Any, A: Any, B: Any, member: str) -> None:
    """**Raises:** `ConformanceError` unless `merge` adds `B A` to the matrix of the layer."""
    base, plain = case.make_base(), merged(trained)
    before, after = _matrix(case, base), _matrix(case, plain)
    if before is None:  # the layout of the weight is unknown
        skip_unless(isinstance(base, eqx.nn.Linear), _NO_MATRIX)
        before, after = _precise(base.weight), _precise(plain.weight)
    A, B = _precise(A), _precise(B)
    is_product = A.ndim == B.ndim == 2 and len(A) == B.shape[1]
    require(
        is_product and (len(B), A.shape[1]) == before.shape,
        f"{member} gives factors `A` {A.shape} and `B` {B.shape}, but the matrix of the layer is "
        f"{before.shape}, (out, in).",
    )
    problem = f"{member} is not the update by which `merge()` changes the matrix of the layer"
    require_close(before + B @ A, after, _TOLERANCE, problem)
