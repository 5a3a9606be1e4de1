"""Adapters whose update is a product `s B A` of a matrix: these can be added up and scaled."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._compute import at_least_float32
from .._contract import LoRAWrapper, check_number
from .._errors import SelectionError
from .._paths import bullets, show_path
from ._adapter_set import AdapterSet, LooseAdapter, check_set
from ._low_rank import Factors

# `multiplier` is a frozen factor of the scale.
_STATE = {"lora_A", "lora_B", "multiplier"}


def scale_adapters(adapters: AdapterSet, factor: Any) -> AdapterSet:
    """`adapters` with every update multiplied by `factor`, which goes into `lora_B`.

    **Arguments:**

    - `adapters`: a set of adapters whose update is only a product (LoRA, rsLoRA, LoRA-FA).
    - `factor`: one real number, which may be traced. 0 gives the base's outputs.

    **Raises:** `SelectionError` that lists every adapter whose update is something else, or if
    `adapters` is not a set, or `factor` not such a number.
    """
    check_set(adapters, "adapters")
    check_number("factor", factor)
    _check_products([adapters])

    def scaled(adapter: LooseAdapter) -> LooseAdapter:
        B = jnp.asarray(adapter.state["lora_B"])
        # Half precision would round the factor itself.
        wide = at_least_float32(B)
        B = (wide * jnp.asarray(factor, wide.dtype)).astype(B.dtype)
        return dataclasses.replace(adapter, state={**adapter.state, "lora_B": B})

    return AdapterSet({path: scaled(adapter) for path, adapter in adapters.adapters.items()})


def scale_times(adapter: LooseAdapter, weight: Any) -> Array:
    """The scale `s` of an adapter, times a weight that may be traced."""
    scale = _scale(adapter)
    assert scale is not None
    return scale * jnp.asarray(weight, jax.dtypes.canonicalize_dtype(float))


def factors_of(state: Mapping[str, Any], scale: Array, dtype: Any) -> Factors:
    """The update of an adapter with this state. The scale goes into `B`."""
    A, B = (jnp.asarray(state[name], dtype) for name in ("lora_A", "lora_B"))
    if "multiplier" in state:  # one for each slice of a stack
        B = B * jnp.asarray(state["multiplier"], dtype)[..., None, None]
    return Factors(A, scale * B)


def check_combinable(sets: Sequence[AdapterSet], density: float | None) -> None:
    """**Raises:** `SelectionError` that lists the adapters that are not products, those at one path
    that are for different matrices, or the matrices that `density`, if given, leaves empty.
    """
    _check_products(sets)
    misfits: list[str] = []
    empty: list[str] = []
    seen: dict[str, tuple[int, LooseAdapter]] = {}
    for index, one in enumerate(sets):
        for path, adapter in one.adapters.items():
            entries = adapter.state["lora_B"].shape[-2] * adapter.state["lora_A"].shape[-1]
            if density is not None and path not in seen and round(density * entries) == 0:
                empty.append(f"{show_path(path)}: of {entries:,} entries")
            former, first = seen.setdefault(path, (index, adapter))
            if first.layer.arrays != adapter.layer.arrays:
                misfits.append(
                    f"{show_path(path)}: set {former} is for {first.layer}, set {index} for "
                    f"{adapter.layer}"
                )
            elif not _update_the_same(first, adapter):
                misfits.append(
                    f"{show_path(path)}: set {former} has a {first.wrapper.__name__}, set {index} "
                    f"a {adapter.wrapper.__name__}, which may lay out the matrix in another way"
                )
    if misfits:
        raise SelectionError(
            f"Only adapters for the same layers can be combined:\n{bullets(misfits)}"
        )
    if empty:
        raise SelectionError(
            f"The `density` {density} keeps no entry of these matrices:\n{bullets(empty)}"
        )


def _check_products(sets: Sequence[AdapterSet]) -> None:
    others = [
        f"{show_path(path)}: a {adapter.wrapper.__name__}"
        + (f" in set {index}" if len(sets) > 1 else "")
        for index, one in enumerate(sets)
        for path, adapter in one.adapters.items()
        if _scale(adapter) is None or not adapter.state.keys() <= _STATE
    ]
    if others:
        raise SelectionError(
            "Only adapters whose update is a low-rank product (LoRA, rsLoRA, LoRA-FA) can be added "
            f"up and scaled, but there are others:\n{bullets(others)}\n"
            "Convert them first: extract_adapters(to_lora(model, rank=...)[0])."
        )


def _scale(adapter: LooseAdapter) -> float | None:
    if adapter.rank is None or adapter.alpha is None:
        return None
    return adapter.wrapper.low_rank_scale(adapter.rank, adapter.alpha)


def _update_the_same(one: LooseAdapter, other: LooseAdapter) -> bool:
    """Whether the updates of two adapters are updates of the same matrix of a layer."""
    if one.wrapper is other.wrapper:
        return one.layer.stack_ndim == other.layer.stack_ndim
    # Adapters of one layer kind inherit the function that reads the matrix.
    views = [getattr(cls.matrix, "__func__", None) for cls in (one.wrapper, other.wrapper)]
    return views[0] is views[1] is not getattr(LoRAWrapper.matrix, "__func__", None)
