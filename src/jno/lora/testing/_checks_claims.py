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
from ._case import NOT_MERGEABLE, WrapperCase
from ._comparisons import arrays_of, require, require_close
from ._conformance import advice, required, skip_unless
from ._programs import merged

_TOLERANCE = 4e-5
_NO_MATRIX = "the adapter says no `matrix`"


@required(
    "give `(A, B)`, `(k, in)` and `(out, k)`, with the scale and every gate in one of the factors; "
    "or `None`, if the update is not exactly `B A`."
)
def check_low_rank_update(case: WrapperCase) -> None:
    """`low_rank_update` is the change of `matrix` by `merge`, and so is `low_rank_scale` `B A`."""
    skip_unless(case.mergeable, NOT_MERGEABLE)
    trained = case.make_trained()
    before = _matrix(case, case.make_base())
    skip_unless(before is not None, _NO_MATRIX)
    factors = trained.low_rank_update()
    scale = case.wrapper.low_rank_scale(trained.rank, trained.alpha)
    skip_unless((factors, scale) != (None, None), "the adapter claims no low-rank update")
    after = _matrix(case, merged(trained))
    if factors is not None:
        _require_change(before, after, *factors, "`low_rank_update`")
    if scale is not None:
        state = trained.state()
        require(
            {"lora_A", "lora_B"} <= state.keys() and len(state["lora_A"]) == trained.rank,
            "`low_rank_scale` needs `lora_A` `(rank, in)` and `lora_B` `(out, rank)` in `state()`, "
            f"whose arrays are { ({name: array.shape for name, array in state.items()}) }.",
            "name the factors so, or let `low_rank_scale` give `None`.",
        )
        scaled = scale * np.asarray(state["lora_B"], np.float64)
        _require_change(before, after, state["lora_A"], scaled, "`low_rank_scale`")


def _matrix(case: WrapperCase, layer: Any) -> Any:
    """`matrix(layer)` in double precision, or `None`."""
    matrix = case.wrapper.matrix(with_arrays(layer))
    if matrix is None:
        return None
    require(
        jnp.ndim(matrix) == 2,
        f"`matrix` of the layer has the shape {jnp.shape(matrix)}, not (out, in).",
        "let `matrix` give the matrix that the update is added to, or `None`.",
    )
    return np.asarray(matrix, np.float64)


def _require_change(before: Any, after: Any, A: Any, B: Any, member: str) -> None:
    A, B = np.asarray(A, np.float64), np.asarray(B, np.float64)
    shapes = f"`A` {A.shape} and `B` {B.shape}, but the matrix is {before.shape}"
    is_product = A.ndim == B.ndim == 2 and A.shape[0] == B.shape[1]
    require(
        is_product and (len(B), A.shape[1]) == before.shape, f"{member} gives the factors {shapes}."
    )
    problem = f"{member} is not the update by which `merge()` changes `matrix`"
    require_close(before + B @ A, after, _TOLERANCE, problem)


@required("name the fields so that the first input belongs to the first output; or give `{}`.")
def check_factor_sides(case: WrapperCase) -> None:
    """The factors that `factor_sides` names have one number of directions."""
    sides: dict[str, list[Any]] = {"input": [], "output": []}
    for name, side in case.wrapper.factor_sides.items():
        sides[side] += arrays_of(getattr(case.make(), name, None))
    pairs = list(zip(sides["input"], sides["output"], strict=False))
    skip_unless(pairs, "the adapter has no pair of factors")
    for A, B in pairs:
        require(
            A.ndim >= 2 and B.ndim >= 2 and A.shape[-2] == B.shape[-1],
            f"`factor_sides` says that {A.shape} is `A` (..., r, in), and {B.shape} its `B` "
            "(..., out, r).",
        )


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
    }
    for name, value in objects.items():
        reason = wrapper.why_not(value)
        is_reason = reason is None or (isinstance(reason, str) and reason)
        require(is_reason, f"`why_not` answers {reason!r} to {name}, not a reason or `None`.")
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


@advice("keep in `state()` what the adapter adds to its layer, not the layer itself.")
def check_state_size(case: WrapperCase) -> None:
    """`state()` is not larger than the layer and the adapter's trained arrays together."""
    trained = case.make_trained()
    state = sum(array.size for array in jax.tree.leaves(trained.state()))
    outside = eqx.tree_at(lambda node: node.base, trained, None)
    size = sum(array.size for array in arrays_of(outside))
    require(
        state <= size,
        f"`state()` holds {state} numbers, but the adapter has {size} beside its layer.",
    )
