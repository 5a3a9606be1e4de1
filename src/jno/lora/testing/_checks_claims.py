"""Checks of an adapter's claims: what its optional members say about the adapter."""

import inspect
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .._contract import with_arrays
from .._paths import path_str
from ._case import NOT_MERGEABLE, WrapperCase, split
from ._comparisons import arrays_of, relative_error, require, require_close
from ._conformance import ConformanceError, advice, raised_in, required, skip_unless
from ._programs import merged, output

_TOLERANCE = 4e-5
_NO_MATRIX = "the adapter says no `matrix`"


@required(
    "give the `(out, in)` matrix `W` of one plain layer, with which the layer computes `W x`, as a "
    "classmethod; or leave `matrix` out."
)
def check_matrix(case: WrapperCase) -> None:
    """`matrix` is `None`, or the `(out, in)` matrix with which the layer acts on its inputs."""
    base = case.make_base()
    W: Any = _matrix(case, base)
    skip_unless(W is not None, _NO_MATRIX)
    inputs = case.make_inputs()
    rows: Any = _rows_of_inputs(case, base, inputs)
    outputs: Any = _rows_of_outputs(case, base, inputs)
    doubled: Any = _rows_of_outputs(case, base, jax.tree.map(_twice, inputs))
    at_zero: Any = _rows_of_outputs(case, base, jax.tree.map(_without_numbers, inputs))
    reason = "the class does not say which rows the matrix multiplies and gives"
    skip_unless(len(rows) == len(outputs) > 0, reason)
    of_indices = np.array_equal(outputs, doubled)  # such as the rows of a table
    is_affine = relative_error(doubled - outputs, outputs - at_zero) <= _TOLERANCE
    skip_unless(of_indices or is_affine, "the layer computes more than a matrix and a bias")
    shape = outputs.shape[1], rows.shape[1]
    require(W.shape == shape, f"`matrix` has the shape {W.shape}, not {shape}, (out, in).")
    expected = outputs if of_indices else outputs - at_zero
    problem = "`matrix` times the inputs is not the output of the layer without its bias"
    require_close(rows @ W.T, expected, _TOLERANCE, problem)


def _twice(leaf: Any) -> Any:
    return 2 * leaf if eqx.is_inexact_array(leaf) else leaf


def _without_numbers(leaf: Any) -> Any:
    return jnp.zeros_like(leaf) if eqx.is_inexact_array(leaf) else leaf


def _rows_of_inputs(case: WrapperCase, base: Any, inputs: tuple[Any, ...]) -> Any:
    """The vectors that the matrix multiplies; no rows if the class does not know them."""
    if len(inputs) == 1 and eqx.is_inexact_array(inputs[0]) and inputs[0].ndim == 1:
        return _precise(inputs[0])[None]
    try:
        return _precise(case.wrapper.inputs_of(base, *inputs))
    except Exception:  # a class without `needs` need not know them
        return np.zeros((0, 0))


def _rows_of_outputs(case: WrapperCase, base: Any, inputs: tuple[Any, ...]) -> Any:
    y = output(case, base, inputs)
    if eqx.is_array(y) and y.ndim == 1:
        return _precise(y)[None]
    try:
        return _precise(case.wrapper.outputs_of(base, y))
    except Exception:
        return np.zeros((0, 0))


@required(
    "give `(A, B)`, `(k, in)` and `(out, k)`, with the scale and every gate in one of the factors; "
    "or `None`, if the update is not exactly `B A`."
)
def check_low_rank_update(case: WrapperCase) -> None:
    """`low_rank_update` is the change of the matrix by `merge`."""
    skip_unless(case.mergeable, NOT_MERGEABLE)
    trained = case.make_trained()
    factors: Any = trained.low_rank_update()
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
    """`low_rank_scale` times `lora_B lora_A` of `state()` is the change of the matrix."""
    skip_unless(case.mergeable, NOT_MERGEABLE)
    trained = case.make_trained()
    scale = case.wrapper.low_rank_scale(trained.rank, trained.alpha)
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
    matrix: Any = case.wrapper.matrix(with_arrays(layer))
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
    before, after = _matrix(case, case.make_base()), _matrix(case, merged(trained))
    if before is None:  # the class does not say which matrix it updates
        weights: Any = [getattr(x, "weight", None) for x in (case.make_base(), merged(trained))]
        skip_unless(all(eqx.is_array(w) and jnp.ndim(w) == 2 for w in weights), _NO_MATRIX)
        before, after = map(_precise, weights)
    A, B = _precise(A), _precise(B)
    is_product = A.ndim == B.ndim == 2 and len(A) == B.shape[1]
    require(
        is_product and (len(B), A.shape[1]) == before.shape,
        f"{member} gives factors `A` {A.shape} and `B` {B.shape}, but the matrix of the layer is "
        f"{before.shape}, (out, in).",
    )
    problem = f"{member} is not the update by which `merge()` changes the matrix of the layer"
    require_close(before + B @ A, after, _TOLERANCE, problem)


@required("name the fields so that the first input belongs to the first output; or give `{}`.")
def check_factor_sides(case: WrapperCase) -> None:
    """The factors that `factor_sides` names are a product, `(..., r, in)` and `(..., out, r)`.

    A number that moves from one factor to the other must not change the output.
    """
    trained = with_arrays(case.make_trained())
    pairs = _pairs(trained)
    skip_unless(pairs, "the adapter has no pair of factors")
    powers: dict[Any, float] = {}
    for (path_A, A), (path_B, B) in pairs:
        require(
            min(A.ndim, B.ndim) >= 2 and A.shape[-2] == B.shape[-1],
            f"`factor_sides` says that `{path_str(path_A)}` {A.shape} is `A` (..., r, in), and "
            f"`{path_str(path_B)}` {B.shape} is its `B` (..., out, r).",
        )
        powers |= {path_A: 2, path_B: 0.5}
    moved = jtu.tree_map_with_path(
        lambda path, x: np.asarray(x) * x.dtype.type(powers[path]) if path in powers else x, trained
    )
    problem = (
        "The output is not a function of the products that `factor_sides` names: twice `A` and "
        "half of `B` change the output"
    )
    require_close(output(case, moved), output(case, trained), _TOLERANCE, problem)


def _pairs(adapter: Any) -> list[tuple[tuple[Any, Any], tuple[Any, Any]]]:
    """The paths and arrays of each `A` and its `B`."""
    sides: dict[str, list[Any]] = {"input": [], "output": []}
    for name, side in type(adapter).factor_sides.items():
        leaves = jtu.tree_leaves_with_path(getattr(adapter, name, None))
        field = jtu.GetAttrKey(name)
        sides[side].append({path: ((field, *path), x) for path, x in leaves if eqx.is_array(x)})
    return [
        (A[path], B[path])
        for A, B in zip(sides["input"], sides["output"], strict=False)
        for path in A
        if path in B
    ]


@required("answer every object of a model, and never raise.")
def check_answers(case: WrapperCase) -> None:
    """`why_not`, `stack_ndim`, `is_stateful` and `alpha` answer as the contract says."""
    base, adapter = case.make_base(), case.make()
    wrapper = case.wrapper
    objects = {
        "None": None,
        "an array": jnp.ones((3, 3)),
        "a module without arrays": eqx.nn.Identity(),
        "a container": (base,),
        "the layer with its arrays taken out": jax.tree.map(lambda _: None, base),
    }
    for name, value in objects.items():
        _check_reason(wrapper, name, value)
    for _ in range(2):
        problem = "`applies_to` answers otherwise when it is asked again."
        require(wrapper.applies_to(base) is True, problem, "let `applies_to` change nothing.")
    reason = wrapper.why_not(base)
    require(reason is None, f"`why_not` says {reason!r} of a layer that `applies_to` claims.")
    ndim = wrapper.stack_ndim(base)
    require(
        type(ndim) is int and ndim == 0,
        f"`stack_ndim` of a single layer is {ndim!r}, not 0.",
        "count the axes before one layer's own axes.",
    )
    _check_stateful(base, adapter)
    require(
        adapter.alpha is None or (not eqx.is_array(adapter.alpha) and adapter.alpha == case.alpha),
        f"The constructor got alpha {case.alpha}, but `alpha` is {adapter.alpha!r}.",
        "keep alpha as it came: a file restores the adapter with this number.",
    )


def _check_reason(wrapper: Any, name: str, value: Any) -> None:
    try:
        reason = wrapper.why_not(value)
    except Exception as err:
        problem = f"`why_not` raises for {name}: {type(err).__name__}: {err}"
        raise ConformanceError(f"{problem}\n{raised_in(err, wrapper)}", "") from err
    is_reason = reason is None or (isinstance(reason, str) and reason)
    require(is_reason, f"`why_not` answers {reason!r} to {name}, not a reason or `None`.")


def _check_stateful(base: Any, adapter: Any) -> None:
    says = adapter.is_stateful()
    require(isinstance(says, bool), f"`is_stateful()` is {says!r}, not True or False.")
    has_state = isinstance(base, eqx.nn.StatefulLayer) and base.is_stateful()
    takes_state = "state" in inspect.signature(type(adapter).__call__).parameters
    require(
        not says or has_state or takes_state,
        "`is_stateful()` is True, but neither the layer nor `__call__` takes a state.",
        "leave `is_stateful` out: by default it answers as the layer does.",
    )


@required("name fields, or paths in fields, with a spec of at most as many axes as the array has.")
def check_partition_specs(case: WrapperCase) -> None:
    """`partition_specs` names arrays of the adapter, and axes of the layer's mesh."""
    mesh = Mesh(np.array(jax.devices()[:1]), ("devices",))

    def place(array: Any) -> Any:
        axes = PartitionSpec(*("devices",)[: array.ndim])
        return jax.device_put(array, NamedSharding(mesh, axes))

    base: Any = case.make_base()
    arrays, static = eqx.partition(base, eqx.is_array)
    sharded = eqx.combine(jax.tree.map(place, arrays), static)
    adapter = eqx.tree_at(lambda node: node.base, case.make(), sharded)
    specs = adapter.partition_specs()
    outside = eqx.tree_at(lambda node: node.base, adapter, None)
    leaves = {path_str(path): leaf for path, leaf in jtu.tree_leaves_with_path(outside)}
    for name, spec in specs.items():
        named = [leaf for path, leaf in leaves.items() if f"{path}/".startswith(f"{name}/")]
        is_field = name in vars(adapter)  # an optional field, or a field of a shared array
        require(named or is_field, f"`partition_specs` names {name!r}, which is not a field.")
        axes = {axis for axes in spec for axis in (axes if isinstance(axes, tuple) else (axes,))}
        require(
            axes <= {None, "devices"} and all(len(spec) <= leaf.ndim for leaf in named),
            f"`partition_specs` gives {name!r} the spec {spec}, but its arrays are "
            f"{[leaf.shape for leaf in named]}, and the layer's mesh has the axis 'devices'.",
        )


# How much larger than the layer the frozen arrays of a checkpoint may be.
_TIMES_THE_LAYER = 10


@advice("make large frozen arrays again in `from_state`, from a seed or from the layer.")
def check_state_size(case: WrapperCase) -> None:
    """The frozen numbers in `state()` are at most ten times the numbers of the layer."""
    trained = case.make_trained()
    in_state = sum(array.size for array in jax.tree.leaves(trained.state()))
    of_training = sum(array.size for array in arrays_of(split(trained)[0]))
    of_layer = sum(array.size for array in arrays_of(case.make_base()))
    require(
        in_state - of_training <= _TIMES_THE_LAYER * of_layer,
        f"`state()` holds {in_state} numbers, of which {of_training} train, but the layer has only "
        f"{of_layer}.",
    )
