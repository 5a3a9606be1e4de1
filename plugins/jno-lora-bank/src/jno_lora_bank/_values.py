"""The values in a slot for the adapters of a set, and how to get the set back."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jno.lora import (
    AdapterSet,
    LooseAdapter,
    LoRAWrapper,
    SelectionError,
    Term,
    resolve,
    swap_adapters,
)
from jno.lora.extending import (
    adapted_layers,
    adds_up,
    bullets,
    layers_at,
    norms_around,
    over_stack,
    show_path,
)
from jno_lora_combine import AdapterSum
from jno_lora_zoo import IA3, DoRA, Method, PiSSA, known_factors, row_norms

from ._slots import slots_class

# By field of `Slots`, without the axis of the slots.
Values = dict[str, Any]

# The field of `Slots` for each factor of a product.
FACTORS = {"lora_A": "lora_A", "lora_B": "lora_Bt"}
_PRODUCT_STATE = {"lora_A", "lora_B", "multiplier", "bias_update"}
# The states of a split of the weight, and of DoRA, without further options.
_SPLIT_STATE = {"lora_A", "lora_B", "initial_A", "initial_B"}
_DORA_STATE = {"lora_A", "lora_B", "magnitude", "multiplier"}
_DORA_MEMBERS = ("law", "direction", "row_factor", "scaling", "times_scale")


def values_of(model: PyTree, adapters: AdapterSet) -> dict[str, Values]:
    """The values with which a slot acts as `adapters` around the layers of `model`, by path.

    **Raises:** `SelectionError` if some adapters are neither low-rank products nor scales of rows.
    """
    without_kind = {
        path: "which is not of a layer kind" if a.wrapper.mergeable else "which cannot be merged"
        for path, a in adapters.adapters.items()
        if slots_class(a.wrapper) is None
    }
    refuse(model, adapters, without_kind)
    values: dict[str, Any] = {
        path: {"sum": Term(a.state, a.rank, a.alpha), "ndim": a.layer.stack_ndim}
        for path, a in adapters.adapters.items()
        if adds_up(a.wrapper)
    }
    layers = layers_at(model, adapters)
    from_states = {path: _of_state(a, layers[path]) for path, a in adapters.adapters.items()}
    values |= {path: fields for path, fields in from_states.items() if fields is not None}
    if len(values) < len(adapters):
        adapted = adapted_layers(resolve(swap_adapters(model, adapters)))
        values |= {path: _of_layer(layer) for path, layer in adapted if path not in values}
    without_values = [path for path in adapters if values.get(path) is None]
    refuse(model, adapters, dict.fromkeys(without_values, "whose update has another form"))
    return values


def refuse(model: PyTree, adapters: AdapterSet, reasons: Mapping[str, str]) -> None:
    """**Raises:** `SelectionError` if there is a reason, with a way out that fits the set."""
    if not reasons:
        return
    problems = [
        f"{show_path(p)}: a {adapters[p].wrapper.__name__}, {why}" for p, why in reasons.items()
    ]
    adapted = "swap_adapters(model, adapters)"
    if not all(a.wrapper.mergeable for a in adapters.adapters.values()):
        way_out = (
            "Adapters that cannot be merged, such as prefixes, bottlenecks and adapters with a "
            "router, have no nearest product. Serve sets of one structure by "
            "stack_adapters([adapters, ...])."
        )
    elif _change_biases(model, adapters):
        way_out = (
            "They also change a bias, which no product does. Merge them, and give the merged model "
            f"a bank: AdapterBank(merge_lora({adapted}))."
        )
    else:
        way_out = (
            f"Take the nearest product instead: extract_adapters(to_lora({adapted}, rank=...)[0])."
        )
    raise SelectionError(
        "A slot holds a low-rank product (LoRA, rsLoRA, LoRA-FA, PiSSA, MiLoRA, VeRA and "
        "similar methods) and a scale for each output (DoRA, IA3), or an adapter with a "
        "`sum_of` (spectral weights, bottlenecks). These adapters do not "
        f"fit:\n{bullets(problems)}\n{way_out}"
    )


def _change_biases(model: PyTree, adapters: AdapterSet) -> bool:
    """Whether an adapter of the zoo, perhaps in a sum, changes the bias of its layer."""

    def shifts(adapter: Any) -> list[Any]:
        is_sum = isinstance(adapter, AdapterSum)
        parts = [adapter.member(m.name) for m in adapter.members] if is_sum else [adapter]
        return [_shift(part) for part in parts if isinstance(part, Method)]

    layers = adapted_layers(resolve(swap_adapters(model, adapters)))
    changes = [_compiled_over_stack(shifts, layer) for _, layer in layers]
    return any(bool(jnp.any(change)) for change in jax.tree.leaves(changes))


def fits(model: PyTree, adapters: AdapterSet) -> bool:
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


def has_factors(adapter: LooseAdapter) -> bool:
    """Whether the update is `s B A` of `lora_A` and `lora_B`, with at most a trained bias."""
    return adapter.scale is not None and adapter.state.keys() <= _PRODUCT_STATE


def _of_state(adapter: LooseAdapter, layer: Any) -> Values | None:
    """The values of an adapter whose rank may be new. `None` for adapters of other forms.

    NumPy computes them, because JAX would compile programs for each rank.
    """
    state, cls = adapter.state, adapter.wrapper
    if has_factors(adapter):
        shift = {"shift": state["bias_update"]} if "bias_update" in state else {}
        scale = _scale_of(adapter, adapter.scale)
        return {**_factors(state["lora_A"], state["lora_B"]), "scale": scale, **shift}
    if not all(map(_is_whole, state.values())):
        return None
    if state.keys() == _SPLIT_STATE and _keeps(cls, PiSSA, "low_rank_update", "scaling"):
        A = np.concatenate([state["lora_A"], state["initial_A"]], axis=-2)
        B = np.concatenate([state["lora_B"], -np.asarray(state["initial_B"])], axis=-1)
        return {**_factors(A, B), "scale": _scale_of(adapter, adapter.alpha / adapter.rank)}
    if state.keys() <= _DORA_STATE and _keeps(cls, DoRA, *_DORA_MEMBERS):
        return _of_dora(adapter, layer)
    return None


def _keeps(cls: Any, method: Any, *names: str) -> bool:
    """Whether a class has these members of the method, and overrides none of them."""
    return all(getattr(cls, name, None) is getattr(method, name) for name in names)


def _scale_of(adapter: LooseAdapter, scale: Any) -> np.ndarray:
    multiplier = np.asarray(adapter.state.get("multiplier", 1), np.float64)
    return np.asarray(np.full(adapter.state["lora_A"].shape[:-2], scale) * multiplier)


def _of_dora(adapter: LooseAdapter, layer: Any) -> Values:
    cls: Any = adapter.wrapper
    state, ndim = adapter.state, adapter.layer.stack_ndim
    A, B = np.asarray(state["lora_A"]), np.asarray(state["lora_B"])
    scale = _scale_of(adapter, cls.scale_for(adapter.rank, adapter.alpha))
    B = B * scale[..., None, None].astype(np.result_type(B.dtype, np.float32))
    # One program serves all ranks up to a power of two.
    zeros = (1 << (A.shape[-2] - 1).bit_length()) - A.shape[-2]
    untouched = [(0, 0)] * ndim
    factors = (
        np.pad(A, [*untouched, (0, zeros), (0, 0)]),
        np.pad(B, [*untouched, (0, 0), (0, zeros)]),
    )
    gain = _gain(cls, ndim, layer, *factors, state["magnitude"])
    return {**_factors(A, B), "scale": np.ones(A.shape[:-2]), "gain": gain}


@eqx.filter_jit
def _gain(cls: Any, ndim: int, layer: Any, A: Any, B: Any, magnitude: Any) -> Array:
    """The gain of DoRA, by the norm of the merged weight. `B` includes the scale."""

    def of_layer(arguments: Any) -> Array:
        layer, A, B, magnitude = arguments
        W = cls.matrix(layer)
        norms = row_norms(W + B.astype(W.dtype) @ A.astype(W.dtype))
        return magnitude.astype(norms.dtype) / jnp.where(norms > 0, norms, 1)

    return over_stack(of_layer, ndim)((layer, A, B, magnitude))


def _factors(A: Any, B: Any) -> Values:
    Bt = np.swapaxes(np.asarray(B), -1, -2) if _is_whole(B) else B.mT
    return {"lora_A": A, "lora_Bt": Bt}


def _is_whole(array: Any) -> bool:
    """Whether this process has the whole array, not just a part."""
    return not isinstance(array, jax.Array) or array.is_fully_addressable


def _of_layer(adapter: LoRAWrapper) -> Values | None:
    """The values of an adapter in its layer; `None` if its update does not fit a slot."""
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
    members = {DoRA: ("law", "direction"), IA3: ("law",)}
    return any(_keeps(type(adapter), method, *names) for method, names in members.items())


@eqx.filter_jit
def _compiled_over_stack(function: Callable[[Any], Any], adapter: Any) -> Any:
    return over_stack(function, adapter.stack_ndim(adapter.base))(adapter)


def _of_rows(adapter: Any) -> Values:
    W = adapter.matrix(adapter.base)
    if isinstance(adapter, IA3):
        empty = {"lora_A": jnp.zeros((0, W.shape[1])), "lora_B": jnp.zeros((W.shape[0], 0))}
        return {**empty, "scale": jnp.zeros(()), "gain": adapter.scale}
    # The norm of the merged weight. (DoRA's forward pass computes it from the factors.)
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
    """The values, where states of adapters with a `sum_of` get the rank of their slots.

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
    """The set with shapes instead of the factors of its products, which are in a slot."""
    return _map_factors(adapters, lambda path, field, x: jax.ShapeDtypeStruct(x.shape, x.dtype))


def with_factors(adapters: AdapterSet, read: Callable[[str, str], Array]) -> AdapterSet:
    """Undo `without_factors`. `read(path, field)` returns the array of a slot."""

    def factor(path: str, field: str, form: jax.ShapeDtypeStruct) -> Array:
        array = read(path, field)
        array = array.mT if field == "lora_Bt" else array
        return array[tuple(slice(0, size) for size in form.shape)].astype(form.dtype)

    return _map_factors(adapters, factor)


def _map_factors(adapters: AdapterSet, function: Callable[[str, str, Any], Any]) -> AdapterSet:
    loose = dict(adapters.adapters)
    for path, adapter in loose.items():
        if has_factors(adapter):
            factors = {
                name: function(path, field, adapter.state[name]) for name, field in FACTORS.items()
            }
            loose[path] = dataclasses.replace(adapter, state={**adapter.state, **factors})
    return AdapterSet(loose, adapters.shared)
