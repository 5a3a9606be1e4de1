"""Checks of `MatrixAdapter`: the matrix, its form of low rank, factors, and a gate of ranks."""

import dataclasses
import operator
from collections.abc import Callable, Mapping
from typing import TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from jno.lora import LoRAWrapper, LowRankForm, MatrixAdapter
from jno.lora.extending import path_str, with_arrays

from ._case import NOT_MERGEABLE, WrapperCase, constructed
from ._comparisons import relative_error, require, require_close
from ._conformance import NotApplicableError, required, skip_unless
from ._programs import merged, output
from ._symmetries import Inputs

_TOLERANCE = 4e-5
_EFFECT = 1e-4  # the least relative change of an output
_NO_MATRIX = "the adapter says no `matrix`"
_PathAndArray: TypeAlias = tuple[jtu.KeyPath, Array]


@required(
    "return the `(out, in)` matrix of one plain layer that the update is added to, in a "
    "classmethod; or leave `matrix` out."
)
def check_matrix(case: WrapperCase) -> None:
    """`matrix` is `None`, or the layer's `(out, in)` matrix to which the update is added.

    A linear layer computes `W x`, perhaps with a bias and a factor for each output.
    """
    base = case.make_base()
    W = _matrix(case, base)
    if W is None:
        raise NotApplicableError(_NO_MATRIX)
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


def _constants(
    case: WrapperCase, base: PyTree, samples: list[Inputs], outputs: np.ndarray
) -> np.ndarray:
    """The layer's constant term. **Raises:** `NotApplicableError` if the layer is not affine."""
    zeros = [_on_numbers(jnp.zeros_like, inputs) for inputs in samples]
    at_zero = _rows_of(case, base, zeros)[1]
    of_sum = _rows_of(case, base, [_on_numbers(operator.add, *samples)])[1]
    first, second = np.split(outputs - at_zero, 2)
    is_linear = relative_error(of_sum - np.split(at_zero, 2)[0], first + second) <= _TOLERANCE
    skip_unless(is_linear, "the layer computes more than a matrix and a bias")
    return at_zero


def _on_numbers(function: Callable[..., Array], *samples: Inputs) -> Inputs:
    """`function` of the samples' floating arrays, with the first sample's remaining inputs."""
    return jax.tree.map(
        lambda *leaves: function(*leaves) if eqx.is_inexact_array(leaves[0]) else leaves[0],
        *samples,
    )


def _rows_of(
    case: WrapperCase, base: PyTree, samples: list[Inputs]
) -> tuple[np.ndarray, np.ndarray]:
    """The vectors that the matrix multiplies, and the vectors that the layer returns."""
    adapter = MatrixAdapter.of(case.wrapper)
    outputs = [output(case, base, inputs) for inputs in samples]
    rows = [_as_rows(adapter.inputs_of, base, *inputs) for inputs in samples]
    return np.concatenate(rows), np.concatenate(
        [_as_rows(adapter.outputs_of, base, y) for y in outputs]
    )


def _as_rows(read: Callable[..., Array], base: PyTree, *arrays: PyTree) -> np.ndarray:
    """A single vector as a row, or the rows that the class finds, if it can."""
    if len(arrays) == 1 and eqx.is_inexact_array(arrays[0]) and arrays[0].ndim == 1:
        return _precise(arrays[0])[None]
    try:
        return _precise(read(base, *arrays))
    except Exception:  # a class without `needs` may not support this
        return np.zeros((0, 0))


@required(
    "return `LowRankForm(A, B, gain, shift)`: factors `(k, in)` and `(out, k)` that include the "
    "scale and every gate, a factor per output, and a change of the bias; or `None` if the adapter "
    "does anything else."
)
def check_low_rank_form(case: WrapperCase) -> None:
    """`low_rank_form` is the change that `merge` makes to the matrix and the bias."""
    skip_unless(case.mergeable, NOT_MERGEABLE)
    trained = case.make_trained()
    form = MatrixAdapter.of(case.wrapper).low_rank_form(trained)
    if form is None:
        raise NotApplicableError("the adapter claims no low-rank form")
    require(
        isinstance(form, LowRankForm),
        f"`low_rank_form` gives {eqx.tree_pformat(form)}, not a `LowRankForm`.",
    )
    _require_change(case, trained, form, "`low_rank_form`")
    before, after = (_bias(case, layer) for layer in (case.make_base(), merged(trained)))
    if before is None:
        require(form.shift is None, "`shift` is given, but the layer has no `bias`.")
        return
    shift = 0 if form.shift is None else _precise(form.shift)
    problem = "`shift` is not what `merge()` adds to the bias of the layer"
    require_close(before + shift, after, _TOLERANCE, problem)


@required(
    "return the factor `s` of the update `s B A`, in a classmethod of the rank in use and alpha; "
    "or `None` if the adapter does anything else."
)
def check_low_rank_scale(case: WrapperCase) -> None:
    """`low_rank_scale` times `lora_B lora_A` of `state()` is the change of the merged matrix."""
    skip_unless(case.mergeable, NOT_MERGEABLE)
    trained = case.make_trained()
    scale = MatrixAdapter.of(case.wrapper).low_rank_scale(trained.rank, trained.alpha)
    if scale is None:
        raise NotApplicableError("the adapter claims no scale of a low-rank update")
    state = trained.state()
    shapes = {name: jnp.shape(array) for name, array in state.items()}
    is_named = {"lora_A", "lora_B"} <= state.keys() and shapes["lora_A"][:1] == (trained.rank,)
    require(
        is_named,
        "`low_rank_scale` needs `lora_A` `(rank, in)` and `lora_B` `(out, rank)` in `state()`, "
        f"whose arrays have the shapes {shapes}.",
        "name the factors so, or let `low_rank_scale` give `None`.",
    )
    form = LowRankForm(state["lora_A"], scale * jnp.asarray(state["lora_B"]))
    _require_change(case, trained, form, "`low_rank_scale`")


def _precise(array: ArrayLike) -> np.ndarray:
    """`array` in NumPy's double precision, real or complex."""
    array = np.asarray(array)
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)


def _matrix(case: WrapperCase, layer: PyTree) -> np.ndarray | None:
    """`matrix(layer)` in double precision, or `None`."""
    matrix = MatrixAdapter.of(case.wrapper).matrix(with_arrays(layer))
    if matrix is None:
        return None
    require(
        jnp.ndim(matrix) == 2,
        f"`matrix` of the layer has the shape {jnp.shape(matrix)}, not (out, in).",
        "let `matrix` give the matrix that the update is added to, or `None`.",
    )
    return _precise(matrix)


def _bias(case: WrapperCase, layer: PyTree) -> np.ndarray | None:
    """The bias as a vector in double precision, or `None`."""
    read = getattr(case.wrapper, "bias_of", lambda layer: getattr(layer, "bias", None))
    bias = read(layer)
    if bias is None or not eqx.is_inexact_array(bias):
        return None
    return _precise(bias).reshape(-1)


def _require_change(case: WrapperCase, trained: PyTree, form: LowRankForm, member: str) -> None:
    """**Raises:** `ConformanceError` unless `merge` makes `diag(gain) (W + B A)` of the matrix."""
    base, plain = case.make_base(), merged(trained)
    before, after = _matrix(case, base), _matrix(case, plain)
    if before is None:  # the layout of the weight is unknown
        skip_unless(isinstance(base, eqx.nn.Linear), _NO_MATRIX)
        before, after = _precise(base.weight), _precise(plain.weight)
    A, B = _precise(form.A), _precise(form.B)
    is_product = A.ndim == B.ndim == 2 and len(A) == B.shape[1]
    require(
        is_product and (len(B), A.shape[1]) == before.shape,
        f"{member} gives factors `A` {A.shape} and `B` {B.shape}, but the matrix of the layer is "
        f"{before.shape}, (out, in).",
    )
    gain = np.ones(len(B)) if form.gain is None else _precise(form.gain)
    require(
        gain.shape == (len(B),),
        f"`gain` has the shape {gain.shape}, not {(len(B),)}, a factor for each output.",
    )
    problem = f"{member} is not the update by which `merge()` changes the matrix of the layer"
    require_close(gain[:, None] * (before + B @ A), after, _TOLERANCE, problem)


@required("name the fields so that the first input belongs to the first output; or use `{}`.")
def check_factor_sides(case: WrapperCase) -> None:
    """The factors that `factor_sides` names form a product, `(..., r, in)` and `(..., out, r)`.

    Moving a scalar from one factor to the other must not change the output, unless the adapter
    cannot be merged, because it may then be nonlinear between its factors.
    """
    trained = with_arrays(case.make_trained())
    pairs = _pairs(trained)
    skip_unless(pairs, "the adapter has no pair of factors")
    powers: dict[jtu.KeyPath, float] = {}
    for (path_A, A), (path_B, B) in pairs:
        require(
            min(A.ndim, B.ndim) >= 2 and A.shape[-2] == B.shape[-1],
            f"`factor_sides` says that `{path_str(path_A)}` {A.shape} is `A` (..., r, in), and "
            f"`{path_str(path_B)}` {B.shape} is its `B` (..., out, r).",
        )
        powers |= {path_A: 2, path_B: 0.5}
    if not case.mergeable:
        return
    moved = jtu.tree_map_with_path(
        lambda path, x: np.asarray(x) * x.dtype.type(powers[path]) if path in powers else x, trained
    )
    problem = "Twice `A` and half of `B`, as `factor_sides` names them, change the output"
    require_close(output(case, moved), output(case, trained), _TOLERANCE, problem)


def _pairs(adapter: LoRAWrapper) -> list[tuple[_PathAndArray, _PathAndArray]]:
    """The path and array of each `A` and its `B`."""
    sides: dict[str, list[dict[jtu.KeyPath, _PathAndArray]]] = {"input": [], "output": []}
    for name, side in MatrixAdapter.of(type(adapter)).factor_sides.items():
        leaves = jtu.tree_leaves_with_path(getattr(adapter, name, None))
        field = jtu.GetAttrKey(name)
        sides[side].append({path: ((field, *path), x) for path, x in leaves if eqx.is_array(x)})
    return [
        (A[path], B[path])
        for A, B in zip(sides["input"], sides["output"], strict=False)
        for path in A
        if path in B
    ]


@required(
    "name in `rank_gate` the field with a factor per direction, and in `rank_axes` the axis of the "
    "directions in one layer's array of each other field."
)
def check_rank_gate(case: WrapperCase) -> None:
    """Only directions with an open gate have an effect, and all gates share one program."""
    name = MatrixAdapter.of(case.wrapper).rank_gate
    if name is None:
        raise NotApplicableError("the adapter declares no `rank_gate`")
    opened, inputs = case.make_trained(), case.make_inputs()
    traces: list[None] = []

    @eqx.filter_jit
    def run(adapter: PyTree) -> PyTree:
        traces.append(None)
        return case.run(adapter, inputs)

    with_direction = run(opened)
    for matrix, gate in _by_matrix(getattr(opened, name)).items():
        problem = f"The gate {name!r} of one layer has the shape {gate.shape}, not (r,)."
        require(gate.ndim == 1, problem)
        closed = _with(opened, name, matrix, gate.at[-1].set(0))
        without = run(closed)
        require(
            relative_error(without, with_direction) > _EFFECT,
            f"The output does not change if an entry of the gate {name!r} becomes zero.",
        )
        for field, axis in MatrixAdapter.of(case.wrapper).rank_axes.items():
            array = _by_matrix(getattr(opened, field))[matrix]
            require(
                array.shape[axis : axis + 1] == gate.shape,
                f"`rank_axes` gives axis {axis} of {field!r}, whose shape is {array.shape}, but "
                f"the gate has {gate.size} directions.",
            )
            changed = array.at[(slice(None),) * axis + (-1,)].add(1)
            which = f"The direction of {field!r} along axis {axis}"
            problem = f"{which} whose gate is zero changes the output"
            y = run(_with(closed, field, matrix, changed))
            require_close(y, without, _TOLERANCE, problem)
            error = relative_error(run(_with(opened, field, matrix, changed)), with_direction)
            require(error > _EFFECT, f"{which} has no effect, though its gate is open.")
    _check_no_axis_is_missing(case, name)
    require(
        len(traces) == 1,
        f"The call was traced {len(traces)} times for other values of one shape.",
        "keep everything that a controller changes in array fields.",
    )


def _check_no_axis_is_missing(case: WrapperCase, gate: str) -> None:
    """**Raises:** `ConformanceError` if an array that grows with the rank is not in `rank_axes`."""
    cases = (case, dataclasses.replace(case, rank=1 if case.rank > 1 else 2))
    key, declared = jax.random.key(3), MatrixAdapter.of(case.wrapper).rank_axes
    grown = [eqx.filter_eval_shape(constructed, ranked, case.make_base(), key) for ranked in cases]
    for name in {*case.wrapper.adapter_fields} - {gate}:
        shapes = [getattr(getattr(adapter, name), "shape", ()) for adapter in grown]
        axes = [i for i, sizes in enumerate(zip(*shapes, strict=False)) if len({*sizes}) > 1]
        named = [axis for field, axis in declared.items() if field == name]
        require(
            axes == named or len(axes) != 1,
            f"The shape of {name!r} grows with the rank along axis {axes}, but `rank_axes` gives "
            f"{named or 'no axis'}: a controller would not shrink the array.",
        )


def _by_matrix(value: Array | Mapping[str, Array]) -> Mapping[str, Array]:
    """The arrays of a field by the name of their matrix; a single array is `""`."""
    return value if isinstance(value, Mapping) else {"": value}


def _with(adapter: PyTree, field: str, matrix: str, array: Array) -> PyTree:
    value = getattr(adapter, field)
    new = {**value, matrix: array} if matrix else array
    return eqx.tree_at(lambda node: getattr(node, field), adapter, new)
