"""Stack sets of adapters, so that each example of a batch can use its own."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._contract import check_rank, is_traced, is_whole
from .._errors import SelectionError
from .._paths import bullets, show_array, show_path
from .._sharding import on_the_mesh
from ._adapter_set import AdapterSet, LooseAdapter, check_set, listed_sets
from ._products import check_products, factors_of, is_product, scale_of, widest


def stack_adapters(
    sets: Sequence[AdapterSet], *, rank: int | None = None, base_slot: bool = False
) -> AdapterSet:
    """The sets as one, whose arrays have a leading axis with a slot for each set.

    Then the examples of a batch can use different adapters of one base: inside `vmap`, each takes
    its own by `take_adapters(stacked, index)` and swaps it in. `swap_adapters` does not take the
    stack itself.

    **Arguments:**

    - `sets`: with adapters of the same classes for the same layers. If the update of every adapter
        is only a product (LoRA, rsLoRA, LoRA-FA), ranks, alphas and paths may differ: zeros fill up
        the factors, other scales go into `lora_B`, and a set without an adapter at a path adds zero
        there. Other methods need one structure in all sets.
    - `rank`: of each product in the stack, at most what its matrix allows. By default the largest
        at its path. A larger one leaves room for sets that are stacked later.
    - `base_slot`: whether slot 0 is the base alone; set `i` is then in slot `i + 1`. For products
        only: the zero of other methods (DoRA's magnitude) depends on the weights of the layer.

    **Raises:** `SelectionError` that lists every difference, every adapter that is not a product
    if one is needed, or every adapter of a rank above `rank`.
    """
    sets = listed_sets(sets, "stack")
    if rank is not None:
        check_rank(rank)
    if rank is not None or base_slot:
        check_products(sets, "padded or stacked with a base slot")
    is_padded = all(is_product(one) for each in sets for one in each.adapters.values())
    problems = list(_differences(sets, is_padded))
    if problems:
        raise SelectionError(
            "Only sets of the same structure can be stacked (of products such as LoRA: of the same "
            f"classes for the same layers), but\n{bullets(problems)}\n"
            "to_lora(model, rank=...) makes products of other adapters."
        )
    are_alike = all(_structure(one) == _structure(sets[0]) for one in sets)
    if not is_padded or (are_alike and rank is None and not base_slot):
        return jax.tree.map(lambda *arrays: jnp.stack(arrays), *sets)
    too_large = [
        f"{show_path(path)}: rank {adapter.rank} in set {index}"
        for index, one in enumerate(sets)
        for path, adapter in one.adapters.items()
        if rank is not None and (adapter.rank or 0) > rank
    ]
    if too_large:
        raise SelectionError(
            f"A stack of `rank` {rank} cannot hold\n{bullets(too_large)}\nGive a larger `rank`, or "
            f'cut a set to it: combine([one], [1.0], "svd", rank={rank})'
        )
    if base_slot:
        sets = [AdapterSet({}), *sets]
    paths = dict.fromkeys(path for one in sets for path in one)
    return AdapterSet({path: _padded([s.adapters.get(path) for s in sets], rank) for path in paths})


def take_adapters(stacked: AdapterSet, index: Any) -> AdapterSet:
    """The set in one slot of a stack. Inside `vmap`, each example takes its own.

    **Arguments:**

    - `stacked`: a set that `stack_adapters` made, perhaps trained.
    - `index`: one whole number from 0, which may be traced. A traced index that is outside the
        stack gives NaN in every array, so that the example's output is NaN, and others' are not.

    **Raises:** `SelectionError` if the index is known and outside the stack (negative ones too), or
    not one whole number; or if `stacked` is not a stack.
    """
    check_set(stacked, "stacked")
    if not (is_whole(index) or (_is_integer(index) and index.ndim == 0)):
        raise SelectionError(f"`index` must be one whole number, but is {index!r}.")
    lengths = {leaf.shape[:1] for leaf in jax.tree.leaves(stacked)} or {()}
    if len(lengths) > 1 or () in lengths:
        raise SelectionError("`stacked` is not a set of adapters that stack_adapters made.")
    (slots,) = lengths.pop()
    if not is_traced(index):
        if not 0 <= int(index) < slots:
            raise SelectionError(
                f"The index {int(index)} is outside a stack of {slots} slots (0 to {slots - 1})."
            )
        return jax.tree.map(lambda array: array[int(index)], stacked)
    index = index.astype(jax.dtypes.canonicalize_dtype(int))
    is_inside, nearest = (index >= 0) & (index < slots), jnp.clip(index, 0, slots - 1)

    def take(array: Array) -> Array:
        is_inexact = jnp.issubdtype(array.dtype, jnp.inexact)
        return jnp.where(is_inside, array[nearest], jnp.nan) if is_inexact else array[nearest]

    return jax.tree.map(take, stacked)


def _is_integer(index: Any) -> bool:
    return isinstance(index, jax.Array | np.ndarray) and jnp.issubdtype(index.dtype, jnp.integer)


def _padded(adapters: list[LooseAdapter | None], rank: int | None) -> LooseAdapter:
    """The stack of products at one path, with zero where there is no adapter.

    The first scale stays, and the others become factors of `lora_B`.
    """
    present = [adapter for adapter in adapters if adapter is not None]
    first = present[0]
    largest = min(first.state["lora_A"].shape[-1], first.state["lora_B"].shape[-2])
    rank = min(rank or max(adapter.rank or 0 for adapter in present), largest)
    scale = next((s for s in map(scale_of, present) if s), 1.0)
    ratios = [float(scale_of(adapter) / scale) for adapter in present]
    states = [adapter.state for adapter in present]
    dtype = widest(state[name].dtype for state in states for name in ("lora_A", "lora_B"))
    if any(ratio != 1 for ratio in ratios) or any("multiplier" in state for state in states):
        dtype = widest([dtype, jnp.dtype(jnp.float32)])  # half precision would round the scale
    slots = [slot for slot, adapter in enumerate(adapters) if adapter is not None]
    factors = [np.asarray(ratio, widest([dtype, jnp.dtype(jnp.float32)])) for ratio in ratios]
    state = on_the_mesh(states, _stacked, states, factors, rank, tuple(slots), len(adapters), dtype)
    alpha = float(scale / (first.wrapper.low_rank_scale(rank, 1.0) or 1.0))
    return LooseAdapter(state, first.wrapper, rank, alpha, first.layer)


def _stacked(
    states: list[Mapping[str, Any]],
    ratios: list[Any],
    rank: int,
    slots: tuple[int, ...],
    number: int,
    dtype: Any,
) -> dict[str, Array]:
    updates = [
        factors_of(state, jnp.asarray(ratio), ratio.dtype)
        for state, ratio in zip(states, ratios, strict=True)
    ]

    def stack(arrays: list[Array], axis: int) -> Array:
        shape = list(arrays[0].shape)
        shape[axis] = rank
        filled = [jnp.zeros(shape, dtype)] * number
        for slot, array in zip(slots, arrays, strict=True):
            missing = [(0, 0)] * array.ndim
            missing[axis] = (0, rank - array.shape[axis])
            filled[slot] = jnp.pad(array.astype(dtype), missing)
        return jnp.stack(filled)

    return {
        "lora_A": stack([update.A for update in updates], -2),
        "lora_B": stack([update.B for update in updates], -1),
    }


def _structure(one: AdapterSet) -> Any:
    leaves, treedef = jax.tree.flatten(one)
    return treedef, [(leaf.shape, leaf.dtype) for leaf in leaves]


def _differences(sets: Sequence[AdapterSet], is_padded: bool) -> Iterator[str]:
    """How the sets differ, except for what padding makes the same."""
    for path in dict.fromkeys(path for one in sets for path in one):
        former, first = next((i, one[path]) for i, one in enumerate(sets) if path in one.adapters)
        here = _described(first, is_padded)
        for index, one in enumerate(sets):
            if path not in one.adapters:
                if not is_padded:
                    yield f"{show_path(path)}: set {index} has no adapter there"
                continue
            there = _described(one[path], is_padded)
            for name in dict.fromkeys([*here, *there]):
                if here.get(name) != there.get(name):
                    yield (
                        f"{show_path(path)}, {name}: {here.get(name, 'none')} in set {former}, "
                        f"{there.get(name, 'none')} in set {index}"
                    )
            if here["class"] == there["class"] and first.wrapper is not one[path].wrapper:
                yield (
                    f"{show_path(path)}: {here['class']} in set {index} is another class than in "
                    f"set {former}. It was defined twice (a notebook cell that ran again): make "
                    "both sets with one"
                )


def _described(adapter: LooseAdapter, is_padded: bool) -> dict[str, Any]:
    fixed = {
        "class": f"{adapter.wrapper.__module__}.{adapter.wrapper.__qualname__}",
        "made for": str(adapter.layer),
        "axes of a stack": adapter.layer.stack_ndim,
    }
    arrays = {name: show_array(array) for name, array in adapter.state.items()}
    return fixed if is_padded else {**fixed, "rank": adapter.rank, "alpha": adapter.alpha, **arrays}
