"""The values that a slot holds for each adapter of a set."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jno.lora import AdapterSet, LoRAWrapper, SelectionError, resolve, swap_adapters
from jno.lora.extending import (
    adapted_layers,
    bullets,
    known_factors,
    layers_at,
    norms_around,
    over_stack,
    show_path,
)
from jno.lora.types import LooseAdapter
from jno_lora_zoo import IA3, DoRA, Method, row_norms

from ._slots import slots_class

# By field of `Slots`, without the axis of the slots.
Values = dict[str, Any]

_PRODUCT = {"lora_A", "lora_B", "multiplier", "bias_update"}


def values_of(model: PyTree, adapters: AdapterSet) -> dict[str, Values]:
    """The values of a slot that acts as `adapters` do around the layers of `model`, by path.

    **Raises:** `SelectionError` if the set does not fit the model, or holds adapters that are
    neither low-rank products nor scales of rows.
    """
    if not _fits(model, adapters):
        swap_adapters(model, adapters)  # raises, and says why
    others = [path for path in adapters if not is_product(adapters[path])]
    problems = [
        f"{show_path(path)}: a {adapters[path].wrapper.__name__}, which is not of a layer kind"
        for path in adapters
        if slots_class(adapters[path].wrapper) is None
    ]
    found = {p: _of_product(adapters[p]) for p in adapters if p not in others}
    if others and not problems:
        adapted = resolve(swap_adapters(model, adapters))
        for path, adapter in adapted_layers(adapted):
            values = _of_adapter(adapter) if path in others else None
            if values is not None:
                found[path] = values
    problems += [
        f"{show_path(path)}: a {adapters[path].wrapper.__name__}, whose update has another form"
        for path in adapters
        if path not in found and not problems
    ]
    if problems:
        raise SelectionError(
            "A slot holds a low-rank product (LoRA, rsLoRA, LoRA-FA, PiSSA, MiLoRA, VeRA and "
            f"others), and a scale for each output (DoRA, IA3). These adapters do not fit:\n"
            f"{bullets(problems)}\nTake the nearest product instead: "
            "extract_adapters(to_lora(swap_adapters(model, adapters), rank=...)[0])"
        )
    for values in found.values():
        values["lora_Bt"] = _transposed(values.pop("lora_B"))
    return found


def _transposed(B: Any) -> Any:
    # As NumPy's, which compiles nothing, unless another process has a part of it.
    is_whole = not isinstance(B, jax.Array) or B.is_fully_addressable
    return np.swapaxes(np.asarray(B), -1, -2) if is_whole else B.mT


def is_product(adapter: LooseAdapter) -> bool:
    """Whether the update is `s B A` of `lora_A` and `lora_B`, known without the layer."""
    cls, scale = adapter.wrapper, None
    if adapter.rank is not None and adapter.alpha is not None:
        scale = cls.low_rank_scale(adapter.rank, adapter.alpha)
    return scale is not None and adapter.state.keys() <= _PRODUCT


def _fits(model: PyTree, adapters: AdapterSet) -> bool:
    """Whether the set fits. (`swap_adapters` would build every adapter to find out.)"""
    if not isinstance(adapters, AdapterSet):
        return False
    layers = layers_at(model, adapters)
    return not norms_around(model, adapters) and all(
        path in layers
        and not adapters[path].layer.problems(layers[path])
        and adapters[path].wrapper.applies_to(layers[path])
        for path in adapters
    )


def _of_product(adapter: LooseAdapter) -> Values:
    state = adapter.state
    stack = state["lora_A"].shape[:-2]
    scale = adapter.wrapper.low_rank_scale(adapter.rank, adapter.alpha)
    scales = np.full(stack, scale, np.float64)
    if "multiplier" in state:
        scales = scales * np.asarray(state["multiplier"], np.float64)
    values = {"lora_A": state["lora_A"], "lora_B": state["lora_B"], "scale": scales}
    if "bias_update" in state:
        values["shift"] = state["bias_update"]
    return values


def _of_adapter(adapter: LoRAWrapper) -> Values | None:
    known = known_factors(adapter)
    ndim = type(adapter).stack_ndim(adapter.base)
    if known is not None:
        one = np.ones(known.A.shape[:-2], np.float32)
        values = {"lora_A": known.A, "lora_B": known.B, "scale": one}
    elif isinstance(adapter, Method) and type(adapter).law in (DoRA.law, IA3.law):
        values = _compiled_over_stack(_of_rows, adapter, ndim)
    else:
        return None
    if isinstance(adapter, Method) and type(adapter).bias_law is not Method.bias_law:
        shift = _compiled_over_stack(_shift, adapter, ndim)
        values |= {} if shift is None else {"shift": shift}
    return values


@eqx.filter_jit
def _compiled_over_stack(function: Callable[[Any], Any], layer: Any, ndim: int) -> Any:
    return over_stack(function, ndim)(layer)


def _of_rows(adapter: Any) -> Values:
    """The values of a DoRA or an IA3: their law multiplies each row by a number."""
    W = adapter.matrix(adapter.base)
    if type(adapter).law is IA3.law:
        empty = {"lora_A": jnp.zeros((0, W.shape[1])), "lora_B": jnp.zeros((W.shape[0], 0))}
        return {**empty, "scale": jnp.zeros(()), "gain": adapter.scale}
    # The norm is that of the merged weight. (The forward pass finds it from the factors.)
    B = adapter.times_scale(adapter.lora_B.astype(W.dtype))
    V = W + B @ adapter.lora_A.astype(W.dtype)
    gain = adapter.row_factor(row_norms(V))
    return {"lora_A": adapter.lora_A, "lora_B": B, "scale": jnp.ones(()), "gain": gain}


def _shift(adapter: Any) -> Any:
    """The change of the bias; `None` without one."""
    bias = adapter.bias_of(adapter.base)
    return None if bias is None else adapter.bias_law(bias) - bias
