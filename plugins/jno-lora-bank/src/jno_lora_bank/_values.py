"""The values that a slot holds for the adapters of a set, and how to get the set back."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jno.lora import AdapterSet, LoRAWrapper, SelectionError, resolve, swap_adapters
from jno.lora.extending import (
    adapted_layers,
    adds_up,
    bullets,
    known_factors,
    layers_at,
    norms_around,
    over_stack,
    show_path,
)
from jno.lora.types import LooseAdapter, Term
from jno_lora_zoo import IA3, DoRA, Method, row_norms

from ._slots import slots_class

# By field of `Slots`, without the axis of the slots.
Values = dict[str, Any]

# The field of `Slots` for each factor of a product.
FACTORS = {"lora_A": "lora_A", "lora_B": "lora_Bt"}
_PRODUCT_STATE = {"lora_A", "lora_B", "multiplier", "bias_update"}


def values_of(model: PyTree, adapters: AdapterSet) -> dict[str, Values]:
    """The values of a slot that acts as `adapters` do around the layers of `model`, by path.

    **Raises:** `SelectionError` if the set does not fit the model, or holds adapters that are
    neither low-rank products nor scales of rows.
    """
    if not _fits(model, adapters):
        swap_adapters(model, adapters)  # raises, and says why
    without_kind = [path for path in adapters if slots_class(adapters[path].wrapper) is None]
    cannot_merge = [path for path in without_kind if not adapters[path].wrapper.mergeable]
    _refuse(adapters, cannot_merge, "which cannot be merged")
    _refuse(adapters, without_kind, "which is not of a layer kind")
    values: dict[str, Any] = {
        path: {"sum": Term(a.state, a.rank, a.alpha), "ndim": a.layer.stack_ndim}
        for path, a in adapters.adapters.items()
        if adds_up(a.wrapper)
    }
    values |= {
        path: _of_product(adapters[path]) for path in adapters if _has_factors(adapters[path])
    }
    if len(values) < len(adapters):
        adapted = adapted_layers(resolve(swap_adapters(model, adapters)))
        values |= {path: _of_layer(layer) for path, layer in adapted if path not in values}
    without_values = [path for path in adapters if values.get(path) is None]
    _refuse(adapters, without_values, "whose update has another form")
    return values


def _refuse(adapters: AdapterSet, paths: Iterable[str], reason: str) -> None:
    problems = [f"{show_path(p)}: a {adapters[p].wrapper.__name__}, {reason}" for p in paths]
    if problems:
        raise SelectionError(
            "A slot holds a low-rank product (LoRA, rsLoRA, LoRA-FA, PiSSA, MiLoRA, VeRA and "
            "similar methods) and a scale for each output (DoRA, IA3), or an adapter with a "
            "`sum_of` (spectral weights, bottlenecks). These adapters do not "
            f"fit:\n{bullets(problems)}\nTake the nearest product instead: "
            "extract_adapters(to_lora(swap_adapters(model, adapters), rank=...)[0]). Adapters that "
            "cannot be merged, such as prefixes and adapters with a router, have no nearest "
            "product: stack_adapters serves several of one structure."
        )


def _has_factors(adapter: LooseAdapter) -> bool:
    """Whether the update is `s B A` of `lora_A` and `lora_B`, beside a trained bias at most."""
    return adapter.scale is not None and adapter.state.keys() <= _PRODUCT_STATE


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
    multiplier = np.asarray(state.get("multiplier", 1), np.float64)
    scale = np.full(stack, adapter.scale, np.float64) * multiplier
    shift = {"shift": state["bias_update"]} if "bias_update" in state else {}
    return {**_factors(state["lora_A"], state["lora_B"]), "scale": scale, **shift}


def _factors(A: Any, B: Any) -> Values:
    # Transposed by NumPy, which compiles nothing, unless another process has a part of `B`.
    is_whole = not isinstance(B, jax.Array) or B.is_fully_addressable
    return {"lora_A": A, "lora_Bt": np.swapaxes(np.asarray(B), -1, -2) if is_whole else B.mT}


def _of_layer(adapter: LoRAWrapper) -> Values | None:
    """The values of an adapter in its layer; `None` if a slot cannot hold its update."""
    factors = known_factors(adapter)
    if factors is not None:
        scale = np.ones(factors.A.shape[:-2], np.float32)
        values = {**_factors(factors.A, factors.B), "scale": scale}
    elif _scales_rows(adapter):
        values = _compiled_over_stack(_of_rows, adapter)
        values |= _factors(values["lora_A"], values.pop("lora_B"))
    else:
        return None
    if isinstance(adapter, Method) and type(adapter).bias_law is not Method.bias_law:
        shift = _compiled_over_stack(_shift, adapter)
        values |= {} if shift is None else {"shift": shift}
    return values


def _scales_rows(adapter: LoRAWrapper) -> bool:
    """Whether the law is `diag(g) (W + B A)`, perhaps without `B A`."""
    methods = [method for method in (DoRA, IA3) if isinstance(adapter, method)]
    return any(type(adapter).law is method.law for method in methods)  # not another law


@eqx.filter_jit
def _compiled_over_stack(function: Callable[[Any], Any], adapter: Any) -> Any:
    return over_stack(function, adapter.stack_ndim(adapter.base))(adapter)


def _of_rows(adapter: Any) -> Values:
    W = adapter.matrix(adapter.base)
    if isinstance(adapter, IA3):
        empty = {"lora_A": jnp.zeros((0, W.shape[1])), "lora_B": jnp.zeros((W.shape[0], 0))}
        return {**empty, "scale": jnp.zeros(()), "gain": adapter.scale}
    # The norm of the merged weight. (The forward pass of DoRA computes it from the factors.)
    B = adapter.times_scale(adapter.weighted(adapter.lora_B).astype(W.dtype))
    V = W + B @ adapter.lora_A.astype(W.dtype)
    gain = adapter.row_factor(row_norms(V))
    return {"lora_A": adapter.lora_A, "lora_B": B, "scale": jnp.ones(()), "gain": gain}


def rank_needed(cls: Any, fields: Values, rank: int) -> int:
    """The rank that slots of class `cls` need for these values, at least `rank` if possible."""
    if "sum" not in fields:
        return max(rank, fields["lora_A"].shape[-2])
    # A small layer may clamp the rank.
    return eqx.filter_eval_shape(cls.at_rank, fields["sum"], rank, fields["ndim"]).rank or 0


def at_rank_of(rooms: Mapping[str, Any], values: Mapping[str, Values]) -> dict[str, Values]:
    """The values, with the states of adapters with a `sum_of` at the rank of their slots.

    - `rooms`: class and rank of the slots of each layer.
    """
    expanded: dict[str, Values] = dict(values)
    for path, fields in values.items():
        if "sum" in fields:
            cls: Any = rooms[path].cls
            term = cls.at_rank(fields["sum"], rooms[path].rank, fields["ndim"])
            states = {f"states/{name}": x for name, x in term.state.items()}
            expanded[path] = {"sum": term, "scale": 1.0, **states}
    return expanded


def _shift(adapter: Any) -> Any:
    """The change of the bias; `None` without a bias."""
    bias = adapter.bias_of(adapter.base)
    return None if bias is None else adapter.bias_law(bias) - bias


def without_factors(adapters: AdapterSet) -> AdapterSet:
    """The set with shapes in the place of the factors of its products, which are in a slot."""
    return _map_factors(adapters, lambda path, field, x: jax.ShapeDtypeStruct(x.shape, x.dtype))


def with_factors(adapters: AdapterSet, read: Callable[[str, str], Array]) -> AdapterSet:
    """The set of `without_factors`, with arrays. `read(path, field)` gives the array of a slot."""

    def factor(path: str, field: str, form: jax.ShapeDtypeStruct) -> Array:
        array = read(path, field)
        array = array.mT if field == "lora_Bt" else array
        return array[tuple(slice(0, size) for size in form.shape)].astype(form.dtype)

    return _map_factors(adapters, factor)


def _map_factors(adapters: AdapterSet, function: Callable[[str, str, Any], Any]) -> AdapterSet:
    loose = dict(adapters.adapters)
    for path, adapter in loose.items():
        if _has_factors(adapter):
            factors = {
                name: function(path, field, adapter.state[name]) for name, field in FACTORS.items()
            }
            loose[path] = dataclasses.replace(adapter, state={**adapter.state, **factors})
    return AdapterSet(loose, adapters.shared)
