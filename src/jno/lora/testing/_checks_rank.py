"""Checks of an adapter's penalty, and of its directions for controllers of rank."""

from typing import Any

import equinox as eqx
import jax.tree_util as jtu
import numpy as np

from .._contract import LoRAWrapper
from .._paths import path_str
from .._penalty import penalty
from .._trainability import lora_trainable_filter
from ._case import WrapperCase
from ._comparisons import arrays_of, relative_error, require, require_close
from ._conformance import required, skip_unless

_TOLERANCE = 1e-5


@required("wrap the arrays that should not move in `jax.lax.stop_gradient`.")
def check_penalty(case: WrapperCase) -> None:
    """The penalty is one finite number, and moves only trained arrays."""
    is_defined = case.wrapper.penalty is not LoRAWrapper.penalty
    skip_unless(is_defined, "the adapter defines no `penalty`")
    trained = case.make_trained()
    value = penalty(trained)
    compiled, grads = eqx.filter_jit(eqx.filter_value_and_grad(penalty))(trained)
    require(np.isfinite(value), f"The penalty is {value}.", "mind divisions, and roots, at zero.")
    require_close(compiled, value, 10 * _TOLERANCE, "Compiled and eager penalties differ")
    moving, fixed = eqx.partition(grads, lora_trainable_filter(trained))
    for path, grad in jtu.tree_leaves_with_path(grads):
        where = f"The gradient of the penalty by `{path_str(path)}`"
        require(np.all(np.isfinite(grad)), f"{where} is not finite.", "mind roots at zero.")
    for path, grad in jtu.tree_leaves_with_path(fixed):
        where = f"The gradient of the penalty by `{path_str(path)}`"
        require(not np.any(grad), f"{where} is not zero, but this array does not train.")
    problem = "The penalty moves no trained array."
    require(any(map(np.any, arrays_of(moving))), problem, "let it depend on a trained field.")


@required(
    "let `rank_gate` name the field with a factor for each direction, and `rank_axes` the axis of "
    "the directions in one layer's array of each other field."
)
def check_rank_gate(case: WrapperCase) -> None:
    """Only directions with an open gate have an effect, in one program for all gates."""
    name: Any = case.wrapper.rank_gate
    skip_unless(name, "the adapter declares no `rank_gate`")
    opened, inputs = case.make_trained(), case.make_inputs()
    gate = getattr(opened, name)
    _check_rank_axes(opened, name, gate)
    traces: list[None] = []

    @eqx.filter_jit
    def run(adapter: Any) -> Any:
        traces.append(None)
        return case.run(adapter, inputs)

    closed = _with(opened, name, gate.at[-1].set(0))
    with_direction, without = run(opened), run(closed)
    require(
        relative_error(without, with_direction) > 10 * _TOLERANCE,
        f"The output does not change if an entry of the gate {name!r} becomes zero.",
    )
    for field, axis in case.wrapper.rank_axes.items():
        changed = getattr(opened, field).at[(slice(None),) * axis + (-1,)].add(1)
        which = f"The direction of {field!r} along axis {axis}"
        problem = f"{which} whose gate is zero changes the output"
        require_close(run(_with(closed, field, changed)), without, _TOLERANCE, problem)
        error = relative_error(run(_with(opened, field, changed)), with_direction)
        require(error > 10 * _TOLERANCE, f"{which} has no effect, though its gate is open.")
    require(
        len(traces) == 1,
        f"The call was traced {len(traces)} times for other values of one shape.",
        "keep everything that a controller changes in array fields.",
    )


def _check_rank_axes(adapter: Any, name: str, gate: Any) -> None:
    require(gate.ndim == 1, f"The gate {name!r} of one layer has the shape {gate.shape}, not (r,).")
    for field, axis in type(adapter).rank_axes.items():
        shape = getattr(adapter, field).shape
        require(
            shape[axis : axis + 1] == gate.shape,
            f"`rank_axes` gives axis {axis} of {field!r}, whose shape is {shape}, but the gate has "
            f"{gate.size} directions.",
        )


def _with(adapter: Any, field: str, array: Any) -> Any:
    return eqx.tree_at(lambda node: getattr(node, field), adapter, array)
