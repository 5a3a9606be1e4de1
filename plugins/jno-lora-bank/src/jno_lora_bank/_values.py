"""The values in a slot for the adapters of a set, and how to get the set back."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import equinox as eqx
import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from jno.lora import AdapterSet, LowRankForm, SelectionError, Term, resolve
from jno.lora.extending import (
    adds_up,
    bullets,
    check_fit,
    layers_at,
    members_of,
    put_around,
    run,
    show_path,
)
from jno_lora_combine import combine
from jno_lora_zoo import known_form

from ._slots import Slots, SumSlots, slots_class

_Factor: TypeAlias = Array | jax.ShapeDtypeStruct

# The field of `Slots` for each factor of a product.
FACTORS = {"lora_A": "lora_A", "lora_B": "lora_Bt"}


class FactorValues(NamedTuple):
    """The values of a slot of `cls` by their fields, without the axis of the slots."""

    cls: type[Slots]
    arrays: Mapping[str, ArrayLike]

    def rank_needed(self, least: int) -> int:
        return max(least, np.shape(self.arrays["lora_A"])[-2])

    def at_rank(self, rank: int) -> "FactorValues":
        return self  # shorter factors are padded when they are written


class SumValues(NamedTuple):
    """An adapter with a `sum_of`, its slots, and how many axes of a stack its arrays have."""

    cls: type[SumSlots]
    term: Term
    ndim: int

    @property
    def arrays(self) -> Mapping[str, ArrayLike]:
        return {"scale": 1.0, **{f"states/{name}": x for name, x in self.term.state.items()}}

    def rank_needed(self, least: int) -> int:
        """The rank of slots for this adapter: at least `least`, unless a small layer clamps it."""
        return eqx.filter_eval_shape(self.at_rank, least).term.rank or 0

    def at_rank(self, rank: int) -> "SumValues":
        """The same adapter with at least this rank."""
        return self._replace(term=self.cls.at_rank(self.term, rank, self.ndim))


Values: TypeAlias = FactorValues | SumValues


def joined_sums(model: PyTree, adapters: AdapterSet) -> AdapterSet:
    """The set, where each sum that `combine` takes is replaced by one adapter of a member's class.

    **Raises:** `SelectionError` if the set does not fit the model.
    """
    check_fit(model, adapters, "These adapters")
    joined = dict(adapters.adapters)
    for path, adapter in adapters.adapters.items():
        if members_of(adapter.wrapper):
            # A sum of other adapters may still have a `low_rank_form`.
            with contextlib.suppress(SelectionError):
                joined[path] = combine([AdapterSet({path: adapter})], [1.0], "cat")[path]
    return AdapterSet(joined, adapters.shared)


def values_of(model: PyTree, adapters: AdapterSet) -> dict[str, Values]:
    """The values with which a slot acts as `adapters` around the layers of `model`, by path.

    **Raises:** `SelectionError` if an adapter has neither a `low_rank_form` nor a `sum_of`, or no
    slot is for the matrix that it changes.
    """
    layers = layers_at(model, adapters)
    values: dict[str, Values] = {}
    refused: dict[str, str] = {}
    for path, adapter in adapters.adapters.items():
        cls = slots_class(adapter.wrapper, layers[path])
        if cls is None:
            is_mergeable = adapter.wrapper.mergeable
            reason = "which is not of a layer kind" if is_mergeable else "which cannot be merged"
            refused[path] = reason
        elif (fields := _values_at(cls, layers[path], path, adapters)) is None:
            refused[path] = "whose update has another form"
        else:
            values[path] = fields
    if refused:
        raise _refusal(adapters, refused)
    return values


def _values_at(cls: Any, layer: PyTree, path: str, adapters: AdapterSet) -> Values | None:
    adapter = adapters[path]
    if adds_up(adapter.wrapper):
        term = Term(adapter.state, adapter.rank, adapter.alpha)
        return SumValues(cls, term, adapter.layer.stack_ndim)
    if adapter.is_product:
        # By NumPy, because JAX would compile a program for each rank.
        A, B = adapter.state["lora_A"], adapter.state["lora_B"]
        multiplier = np.asarray(adapter.state.get("multiplier", 1), np.float64)
        scale = np.full(A.shape[:-2], adapter.scale) * multiplier
        return FactorValues(cls, {"lora_A": A, "lora_Bt": _transposed(B), "scale": scale})
    alone = AdapterSet({"": adapter}, adapters.shared)
    form = run(_form_around, layer, alone, beside=layer)
    if form is None:
        return None
    scale = np.ones(form.A.shape[:-2], np.float32)
    arrays = {"lora_A": form.A, "lora_Bt": _transposed(form.B), "scale": scale}
    optional = {"gain": form.gain, "shift": form.shift}
    return FactorValues(cls, arrays | {name: x for name, x in optional.items() if x is not None})


def _form_around(layer: PyTree, adapter: AdapterSet) -> LowRankForm | None:
    """The form of the one adapter in a set, in one program, which leaves out the merged base."""
    return known_form(resolve(put_around(layer, adapter)))


def _transposed(B: Array | np.ndarray) -> Array | np.ndarray:
    is_elsewhere = isinstance(B, jax.Array) and not B.is_fully_addressable
    return B.mT if is_elsewhere else np.swapaxes(np.asarray(B), -1, -2)


def _refusal(adapters: AdapterSet, reasons: Mapping[str, str]) -> SelectionError:
    """The error for adapters that no slot holds, with a way out that fits the set."""
    problems = [
        f"{show_path(path)}: a {adapters[path].wrapper.__name__}, {reason}"
        for path, reason in reasons.items()
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
    return SelectionError(
        "A slot holds factors, a scale and a shift for each output (the `low_rank_form` of LoRA, "
        "PiSSA, VeRA, DoRA, IA3 and others), or an adapter with a `sum_of` (spectral weights, "
        f"bottlenecks). These adapters do not fit:\n{bullets(problems)}\n{way_out}"
    )


def without_factors(adapters: AdapterSet) -> AdapterSet:
    """The set with shapes instead of the factors of its products, which are in a slot."""
    return _map_factors(adapters, lambda path, field, x: jax.ShapeDtypeStruct(x.shape, x.dtype))


def with_factors(adapters: AdapterSet, read: Callable[[str, str], Array]) -> AdapterSet:
    """Undo `without_factors`. `read(path, field)` returns the array of a slot."""

    def factor(path: str, field: str, form: _Factor) -> Array:
        array = read(path, field)
        array = array.mT if field == "lora_Bt" else array
        return array[tuple(slice(0, size) for size in form.shape)].astype(form.dtype)

    return _map_factors(adapters, factor)


def _map_factors(
    adapters: AdapterSet, function: Callable[[str, str, _Factor], _Factor]
) -> AdapterSet:
    loose = dict(adapters.adapters)
    for path, adapter in loose.items():
        if adapter.is_product:
            factors = {
                name: function(path, field, adapter.state[name]) for name, field in FACTORS.items()
            }
            loose[path] = dataclasses.replace(adapter, state={**adapter.state, **factors})
    return AdapterSet(loose, adapters.shared)
