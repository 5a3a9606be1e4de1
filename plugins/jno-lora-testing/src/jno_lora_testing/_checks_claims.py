"""Checks of an adapter's claims, made by its optional members."""

import inspect
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from jno.lora import MatrixAdapter
from jno.lora.extending import path_str, takes, with_arrays

from ._case import WrapperCase, split
from ._comparisons import arrays_of, require, require_close
from ._conformance import advice, answer_of, required, skip_unless
from ._programs import output, shard, stacked

_TOLERANCE = 4e-5


@required("name the fields so that the first input belongs to the first output; or give `{}`.")
def check_factor_sides(case: WrapperCase) -> None:
    """The factors that `factor_sides` names form a product, `(..., r, in)` and `(..., out, r)`.

    Moving a scalar from one factor to the other must not change the output, unless the adapter
    cannot be merged, because it may then be nonlinear between its factors.
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
    if not case.mergeable:
        return
    moved = jtu.tree_map_with_path(
        lambda path, x: np.asarray(x) * x.dtype.type(powers[path]) if path in powers else x, trained
    )
    problem = "Twice `A` and half of `B`, as `factor_sides` names them, change the output"
    require_close(output(case, moved), output(case, trained), _TOLERANCE, problem)


def _pairs(adapter: Any) -> list[tuple[tuple[Any, Any], tuple[Any, Any]]]:
    """The path and array of each `A` and its `B`."""
    sides: dict[str, list[Any]] = {"input": [], "output": []}
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


@required("answer every object of a model, and never raise.")
def check_answers(case: WrapperCase) -> None:
    """`why_not`, `stack_ndim`, `is_stateful` and `alpha` return what the contract requires."""
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
        reason = answer_of(wrapper.why_not, name, value)
        is_reason = reason is None or (isinstance(reason, str) and reason)
        require(is_reason, f"`why_not` returns {reason!r} for {name}, not a reason or `None`.")
    for _ in range(2):
        problem = "`applies_to` gives another result when called again."
        require(wrapper.applies_to(base) is True, problem, "let `applies_to` change nothing.")
    reason = wrapper.why_not(base)
    require(reason is None, f"`why_not` returns {reason!r} for a layer that `applies_to` claims.")
    ndim = wrapper.stack_ndim(base)
    require(
        type(ndim) is int and ndim == 0,
        f"`stack_ndim` of a single layer is {ndim!r}, not 0.",
        "count the axes before one layer's own axes.",
    )
    stack = stacked([base, base])
    ndim = wrapper.stack_ndim(stack) if wrapper.applies_to(stack) else 1
    require(
        ndim == 1,
        f"`applies_to` claims a stack of two layers, whose `stack_ndim` is {ndim!r}, not 1: one "
        "adapter would be shared by both layers.",
        "define `stack_ndim(leaf)`: how many axes come before one layer's own axes. Or let "
        "`applies_to` return `False` for stacks.",
    )
    _check_stateful(base, adapter)
    alpha = adapter.alpha
    is_kept = alpha is None or (not eqx.is_array(alpha) and alpha == case.alpha)
    require(
        is_kept or "alpha" not in takes(wrapper),
        f"The constructor got alpha {case.alpha}, but `alpha` is {alpha!r}.",
        "keep alpha as given: a file restores the adapter with this number.",
    )


# `*args` and `**kwargs` take a state too.
_ANY_ARGUMENTS = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _check_stateful(base: Any, adapter: Any) -> None:
    says = adapter.is_stateful()
    require(isinstance(says, bool), f"`is_stateful()` is {says!r}, not True or False.")
    has_state = isinstance(base, eqx.nn.StatefulLayer) and base.is_stateful()
    parameters = inspect.signature(type(adapter).__call__).parameters.values()
    takes_state = any(p.name == "state" or p.kind in _ANY_ARGUMENTS for p in parameters)
    require(
        not says or has_state or takes_state,
        "`is_stateful()` is True, but neither the layer nor `__call__` takes a state.",
        "leave `is_stateful` out: by default it answers as the layer does.",
    )


@required("name fields, or paths in fields, with a spec of at most as many axes as the array has.")
def check_partition_specs(case: WrapperCase) -> None:
    """`partition_specs` names arrays of the adapter and axes of the layer's mesh."""
    sharded, _ = shard(case.make_base())
    adapter = eqx.tree_at(lambda node: node.base, case.make(), sharded)
    specs = adapter.partition_specs()
    skip_unless(specs, "the adapter gives no `partition_specs`")
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


# How many times larger than the layer the frozen arrays of a checkpoint may be.
_TIMES_THE_LAYER = 100


@advice("make large frozen arrays again in `from_state`, from a seed or from the layer.")
def check_state_size(case: WrapperCase) -> None:
    """`state()` has at most a hundred times as many frozen numbers as the layer has numbers."""
    trained = case.make_trained()
    in_state = sum(array.size for array in jax.tree.leaves(trained.state()))
    of_training = sum(array.size for array in arrays_of(split(trained)[0]))
    of_layer = sum(array.size for array in arrays_of(case.make_base()))
    require(
        in_state - of_training <= _TIMES_THE_LAYER * of_layer,
        f"`state()` has {in_state} numbers, of which {of_training} train, but the layer has only "
        f"{of_layer}.",
    )
