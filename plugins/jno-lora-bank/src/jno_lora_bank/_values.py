"""The values in a slot for the adapters of a set, and how to get the set back."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, PyTree

from jno.lora import (
    AdapterSet,
    LowRankForm,
    SelectionError,
    Term,
    resolve,
)
from jno.lora.extending import (
    adds_up,
    bullets,
    layers_at,
    norms_around,
    put_around,
    run,
    show_path,
)
from jno_lora_zoo import known_form

from ._slots import slots_class

# By field of `Slots`, without the axis of the slots.
Values = dict[str, Any]

# The field of `Slots` for each factor of a product.
FACTORS = {"lora_A": "lora_A", "lora_B": "lora_Bt"}


def values_of(model: PyTree, adapters: AdapterSet) -> dict[str, Values]:
    """The values with which a slot acts as `adapters` around the layers of `model`, by path.

    **Raises:** `SelectionError` if an adapter has neither a `low_rank_form` nor a `sum_of`, or no
    slot is for the matrix that it changes.
    """
    layers = layers_at(model, adapters)
    without_kind = {
        path: "which is not of a layer kind" if a.wrapper.mergeable else "which cannot be merged"
        for path, a in adapters.adapters.items()
        if slots_class(a.wrapper, layers[path]) is None
    }
    refuse(adapters, without_kind)
    values = {path: _values_at(layers[path], path, adapters) for path in adapters}
    unknown = [path for path, fields in values.items() if fields is None]
    refuse(adapters, dict.fromkeys(unknown, "whose update has another form"))
    return {path: fields for path, fields in values.items() if fields is not None}


def _values_at(layer: Any, path: str, adapters: AdapterSet) -> Values | None:
    adapter = adapters[path]
    if adds_up(adapter.wrapper):
        return {
            "sum": Term(adapter.state, adapter.rank, adapter.alpha),
            "ndim": adapter.layer.stack_ndim,
        }
    if adapter.is_product:
        # By NumPy, because JAX would compile a program for each rank.
        A, B = adapter.state["lora_A"], adapter.state["lora_B"]
        multiplier = np.asarray(adapter.state.get("multiplier", 1), np.float64)
        return {**_factors(A, B), "scale": np.full(A.shape[:-2], adapter.scale) * multiplier}
    alone = AdapterSet({"": adapter}, adapters.shared)
    form = run(_form_around, layer, alone, beside=layer)
    if form is None:
        return None
    optional = {"gain": form.gain, "shift": form.shift}
    return {
        **_factors(form.A, form.B),
        "scale": np.ones(form.A.shape[:-2], np.float32),
        **{name: x for name, x in optional.items() if x is not None},
    }


def _form_around(layer: Any, adapter: AdapterSet) -> LowRankForm | None:
    """The form of the one adapter in a set, in one program, which leaves out the merged base."""
    return known_form(resolve(put_around(layer, adapter)))


def _factors(A: Any, B: Any) -> Values:
    is_here = not isinstance(B, jax.Array) or B.is_fully_addressable
    return {"lora_A": A, "lora_Bt": np.swapaxes(np.asarray(B), -1, -2) if is_here else B.mT}


def refuse(adapters: AdapterSet, reasons: Mapping[str, str]) -> None:
    """**Raises:** `SelectionError` if there is a reason, with a way out that fits the set."""
    if not reasons:
        return
    problems = [
        f"{show_path(p)}: a {adapters[p].wrapper.__name__}, {why}" for p, why in reasons.items()
    ]
    if all(a.wrapper.mergeable for a in adapters.adapters.values()):
        adapted = "swap_adapters(model, adapters)"
        way_out = (
            f"Take the nearest product instead: extract_adapters(to_lora({adapted}, rank=...)[0]). "
            "If they also change a bias, which no product does, merge them, and give the merged "
            f"model a bank: AdapterBank(merge_lora({adapted}))."
        )
    else:
        way_out = (
            "Adapters that cannot be merged, such as prefixes, bottlenecks and adapters with a "
            "router, have no nearest product. Serve sets of one structure by "
            "stack_adapters([adapters, ...])."
        )
    raise SelectionError(
        "A slot holds factors, a scale and a shift for each output (the `low_rank_form` of LoRA, "
        "PiSSA, VeRA, DoRA, IA3 and others), or an adapter with a `sum_of` (spectral weights, "
        f"bottlenecks). These adapters do not fit:\n{bullets(problems)}\n{way_out}"
    )


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
        if adapter.is_product:
            factors = {
                name: function(path, field, adapter.state[name]) for name, field in FACTORS.items()
            }
            loose[path] = dataclasses.replace(adapter, state={**adapter.state, **factors})
    return AdapterSet(loose, adapters.shared)
