"""`from_sets`: a conditional that interpolates adapters which were trained separately."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jno.lora import AdapterSet, LooseAdapter, Net, SelectionError, swap_adapters
from jno.lora.extending import adapted_layers, adds_up, bullets, compute_dtype, show_path
from jno_lora_combine import combine

from ._bases import numbers
from ._conditional import Conditional
from ._hats import Hats


def from_sets(
    model: PyTree,
    sets: Iterable[tuple[float, AdapterSet]],
    source: float | None = None,
    *,
    extrapolate: bool = False,
) -> Conditional:
    """A conditional that has a trained set of adapters at each of some values of one parameter.

    At `z_i` the model has the update of set `i`, up to the rounding of a sum. Between two values,
    the update is exactly the weighted mean of the two sets (`Hats`), because the factors are put
    side by side. The sets were trained independently, so adapters that are trained together
    (`Conditional`) are usually better between the values. The result may be trained further.

    The rank is the sum of the ranks of the sets, and the moving field has a direction for each set,
    so `n` sets of rank `r` cost as much as one adapter of rank `n r`, and LoRA's `B` is stored `n`
    times at that rank.

    **Arguments:**

    - `model`: the plain model that the sets were trained for.
    - `sets`: pairs of a value and a set, as `extract_adapters` and `read_adapters` return it. A set
        without an adapter for a layer does not change this layer.
    - `source`: a further value, at which the model is the plain model, or `None`.
    - `extrapolate`: whether the weights continue linearly outside of the values. By default, the
        nearest set is used there.

    **Returns:** a `Conditional` with the basis `Hats`.

    **Raises:** `SelectionError` if the values are not different numbers, if a set does not fit the
    model, or if an adapter is not a product of two factors (LoRA, rsLoRA, LoRA-FA) or a class whose
    changes add up (spectral weights); with its path, its class, and what to do.
    """
    pairs = _sorted_pairs(sets)
    values, ordered = [value for value, _ in pairs], [adapters for _, adapters in pairs]
    if source is not None and source in values:
        raise SelectionError(
            f"`source` is {source}, but there is a set for this value too. Leave out either."
        )
    _check_sets(pairs)
    for adapters in ordered:  # its errors name paths and shapes
        eqx.filter_eval_shape(swap_adapters, model, adapters)
    zero = swap_adapters(model, _combined(ordered, [0.0] * len(ordered)))
    conditional = Conditional(Net(zero).train_adapters(), Hats(values, source, extrapolate))
    units = np.eye(len(ordered)).tolist()
    at_values = [swap_adapters(model, _combined(ordered, unit)) for unit in units]
    directions = {
        path: _directions(path, zero_adapter, adapters, tuple(conditional.directions[path]))
        for path, zero_adapter, *adapters in adapted_layers(zero, *at_values)
    }
    return eqx.tree_at(lambda c: c.directions, conditional, directions)


def _sorted_pairs(sets: Any) -> list[tuple[float, AdapterSet]]:
    try:
        pairs = [(numbers(value, "value"), adapters) for value, adapters in sets]
    except (TypeError, ValueError):
        pairs = []
    is_right = [not np.ndim(value) and isinstance(s, AdapterSet) for value, s in pairs]
    if not pairs or not all(is_right):
        raise SelectionError(
            "`sets` must be pairs of a number and a set, [(0.05, set1), (0.1, set2)], but is "
            f"{sets!r:.200}. extract_adapters(model) gives the set of an adapted model."
        )
    return sorted(pairs, key=lambda pair: pair[0])


def _check_sets(pairs: Sequence[tuple[float, AdapterSet]]) -> None:
    """**Raises:** `SelectionError` for adapters that cannot be put side by side."""
    lines: list[str] = []
    first: dict[str, tuple[float, LooseAdapter]] = {}
    for value, adapters in pairs:
        for path, adapter in adapters.adapters.items():
            place, name = f"{show_path(path)} at {value:g}", adapter.wrapper.__name__
            former, before = first.setdefault(path, (value, adapter))
            if not (adapter.is_product or adds_up(adapter.wrapper)):
                lines.append(f"{place}: the update of a {name} is not a product of two factors")
            elif before.wrapper is not adapter.wrapper:
                lines.append(f"{place}: a {name}, but a {before.wrapper.__name__} at {former:g}")
    if lines:
        raise SelectionError(
            f"These sets cannot be interpolated:\n{bullets(lines)}\nConvert their adapters to "
            "LoRA: extract_adapters(to_lora(swap_adapters(model, adapters), rank=...)[0])"
        )


def _combined(sets: Sequence[AdapterSet], weights: Sequence[float]) -> AdapterSet:
    """The weighted sum of the sets, with the factors of all sets side by side."""
    is_sum = {path: adds_up(a.wrapper) for s in sets for path, a in s.adapters.items()}
    products = {
        path: _side_by_side(
            [(s[path], w) for s, w in zip(sets, weights, strict=True) if path in s.adapters]
        )
        for path, adds in is_sum.items()
        if not adds
    }
    if not any(is_sum.values()):
        return AdapterSet(products)
    sums = [
        AdapterSet({path: a for path, a in s.adapters.items() if is_sum[path]}, s.shared)
        for s in sets
    ]
    combined = combine(sums, weights, "cat")
    return AdapterSet({**products, **combined.adapters}, combined.shared)


def _side_by_side(terms: Sequence[tuple[LooseAdapter, float]]) -> LooseAdapter:
    """The weighted sum of products, whose rank is at most the largest that the matrix allows."""
    first = terms[0][0]
    dtype = max((a.state["lora_B"].dtype for a, _ in terms), key=lambda dtype: dtype.itemsize)
    wide = compute_dtype(jax.ShapeDtypeStruct((), dtype))
    A = [jnp.asarray(adapter.state["lora_A"], wide) for adapter, _ in terms]
    B = [_scaled_B(adapter, weight, wide) for adapter, weight in terms]
    rank, outputs, inputs = sum(a.shape[-2] for a in A), B[0].shape[-2], A[0].shape[-1]
    if rank > min(outputs, inputs):  # whole matrices need fewer numbers
        rank = min(outputs, inputs)
        if inputs > rank and "lora_A" not in first.wrapper.adapter_fields:
            raise SelectionError(
                f"The ranks of the sets sum to more than {rank}, which a {first.wrapper.__name__} "
                f"of {inputs} inputs and {outputs} outputs cannot have without another `lora_A`. "
                "Convert the sets to LoRA: "
                "extract_adapters(to_lora(swap_adapters(model, adapters))[0])"
            )
        total = jnp.sum(jnp.stack([b @ a for a, b in zip(A, B, strict=True)]), axis=0)
        eye = jnp.broadcast_to(jnp.eye(rank, dtype=wide), (*total.shape[:-2], rank, rank))
        A, B = ([eye], [total]) if inputs == rank else ([total], [eye])
    scale = dataclasses.replace(first, rank=rank, alpha=float(rank)).scale
    state = {
        "lora_A": jnp.concatenate(A, axis=-2).astype(dtype),
        "lora_B": (jnp.concatenate(B, axis=-1) / jnp.asarray(scale, wide)).astype(dtype),
    }
    return dataclasses.replace(first, state=state, rank=rank, alpha=float(rank))


def _scaled_B(adapter: LooseAdapter, weight: float, dtype: Any) -> Any:
    factor = jnp.asarray(adapter.scale * weight, dtype)
    if "multiplier" in adapter.state:  # a number for each slice of a stack
        factor = factor * jnp.asarray(adapter.state["multiplier"], dtype)[..., None, None]
    return factor * jnp.asarray(adapter.state["lora_B"], dtype)


def _directions(
    path: str, zero: Any, adapters: Sequence[Any], moving: tuple[str, ...]
) -> dict[str, Any]:
    """By moving field, the values of the adapters at the nodes, stacked.

    **Raises:** `SelectionError` if other arrays differ, because a sum was cut to a smaller rank.
    """

    def without_moving(adapter: Any) -> Any:
        blank = [None] * len(moving)
        return eqx.tree_at(lambda a: [getattr(a, name) for name in moving], adapter, blank)

    expected = without_moving(zero)
    if not all(eqx.tree_equal(expected, without_moving(adapter)) for adapter in adapters):
        raise SelectionError(
            f"{show_path(path)}: the ranks of the {len(adapters)} sets sum to more than this "
            f"{type(zero).__name__} can have, so that their sum would not be exact. Give sets of a "
            "smaller rank: `jno_lora_combine.shrink` and `jno_lora_combine.to_lora` cut it."
        )
    return {
        name: jax.tree.map(lambda *x: jnp.stack(x), *(getattr(a, name) for a in adapters))
        for name in moving
    }
