"""Stack sets of adapters, so that each example of a batch can use a different set."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array

from jno.lora import AdapterSet, LooseAdapter, SelectionError
from jno.lora.extending import bullets, check_rank, run, show_array, show_path, widest

from ._checks import check_products, listed_sets, paths_of
from ._factors import factors_of, padded


def stack_adapters(
    sets: Sequence[AdapterSet], *, rank: int | None = None, base_slot: bool = False
) -> AdapterSet:
    """One set whose arrays have a leading axis, with a slot for each set.

    The examples of a batch can then use different adapters of one base: inside `vmap`, take a set
    for each example by `take_adapters(stacked, index)` and swap it in. `swap_adapters` does not
    accept the stack itself.

    **Arguments:**

    - `sets`: with adapters of the same classes for the same layers. If the update of every adapter
        is only a product (LoRA, rsLoRA, LoRA-FA), ranks, alphas and paths may differ, because the
        factors are padded with zeros, different scales go into `lora_B`, and a set without an
        adapter at a path adds zero there. With other methods, all sets need the same structure.
    - `rank`: of each product in the stack, at most the largest rank of its matrix. By default the
        largest rank at its path. A larger rank leaves room for sets that are stacked later.
    - `base_slot`: whether slot 0 is the base alone; set `i` is then in slot `i + 1`. Only for
        products, because the zero of other methods (DoRA's magnitude) depends on the weights.

    **Raises:** `SelectionError` that lists every difference and every adapter of a rank above
    `rank`; or every adapter that is not a product, if `rank` or `base_slot` needs products.
    """
    sets = listed_sets(sets, "stacked")
    if rank is not None:
        check_rank(rank)
    if rank is not None or base_slot:
        check_products(sets, "padded or stacked with a base slot")
    is_padded = all(a.is_product for adapters in sets for a in adapters.adapters.values())
    problems = [*_differences(sets, is_padded), *_above(rank, sets)]
    if problems:
        raise SelectionError(
            f"Sets that differ like this cannot be stacked:\n{bullets(problems)}\n"
            "Only products (LoRA, rsLoRA, LoRA-FA) may differ, in rank, alpha and path. "
            'to_lora(model, rank=...) makes products, and combine([adapters], [1.0], "svd", '
            "rank=...) cuts their rank."
        )
    if not is_padded or not (rank or base_slot or any(_differences(sets, is_padded=False))):
        return jax.tree.map(lambda *arrays: jnp.stack(arrays), *sets)
    if base_slot:
        sets = [AdapterSet({}), *sets]
    paths = paths_of(sets)
    return AdapterSet({p: _padded([s.adapters.get(p) for s in sets], rank) for p in paths})


def take_adapters(stacked: AdapterSet, index: int | np.integer | Array) -> AdapterSet:
    """The set in one slot of a stack. Inside `vmap`, each example can take a different slot.

    **Arguments:**

    - `stacked`: a set that `stack_adapters` made, perhaps trained.
    - `index`: one whole number from 0, which may be traced. A traced index that is outside the
        stack gives NaN in every array, and so in the outputs of this example only.

    **Raises:** `SelectionError` if the index is known and outside the stack (or negative), or if
    `stacked` is not a stack.
    """
    leaves = jax.tree.leaves(stacked)
    slots = leaves[0].shape[0] if leaves and leaves[0].ndim else 0
    if not slots or any(leaf.shape[:1] != (slots,) for leaf in leaves):
        raise SelectionError("`stacked` is not a set of adapters that stack_adapters made.")
    if not isinstance(index, Tracer):
        if not 0 <= index < slots:
            raise SelectionError(f"There is no slot {index}: the stack has {slots}, from 0.")
        return jax.tree.map(lambda array: array[int(index)], stacked)
    index = jnp.asarray(index).astype(int)
    is_inside = (index >= 0) & (index < slots)

    def take(array: Array) -> Array:
        values = array[jnp.clip(index, 0, slots - 1)]
        is_inexact = jnp.issubdtype(array.dtype, jnp.inexact)
        return jnp.where(is_inside, values, jnp.nan) if is_inexact else values

    return jax.tree.map(take, stacked)


def _padded(adapters: list[LooseAdapter | None], rank: int | None) -> LooseAdapter:
    """The stack of products at one path, with zero where a set has no adapter.

    All adapters get the first scale, and the ratios of their scales to it multiply `lora_B`.
    """
    first = next(adapter for adapter in adapters if adapter is not None)
    zero = jax.tree.map(jnp.zeros_like, first)
    filled = [zero if adapter is None else adapter for adapter in adapters]
    states = [adapter.state for adapter in filled]
    scale = next((adapter.scale for adapter in filled if adapter.scale), 1.0)
    ratios = [adapter.scale / scale for adapter in filled]
    A, B = ([state[name] for state in states] for name in ("lora_A", "lora_B"))
    rank = min(rank or max(array.shape[-2] for array in A), A[0].shape[-1], B[0].shape[-2])
    dtype = widest(array.dtype for array in (*A, *B))
    wide = widest([dtype, jnp.dtype(jnp.float32)])
    if not {*ratios} <= {0.0, 1.0} or any("multiplier" in state for state in states):
        dtype = wide  # half precision would round the scale
    scales = [np.asarray(ratio, wide) for ratio in ratios]
    state = run(_stacked, states, scales, rank, dtype)
    alpha = float(scale / (dataclasses.replace(first, rank=rank, alpha=1.0).scale or 1.0))
    return LooseAdapter(state, first.wrapper, rank, alpha, first.layer)


def _stacked(
    states: list[Mapping[str, Array]], scales: list[np.ndarray], rank: int, dtype: DTypeLike
) -> dict[str, Array]:
    updates = [padded(update, rank) for update in factors_of(states, scales, scales[0].dtype)]
    A, B = (jnp.stack(arrays).astype(dtype) for arrays in zip(*updates, strict=True))
    return {"lora_A": A, "lora_B": B}


def _above(rank: int | None, sets: Sequence[AdapterSet]) -> Iterator[str]:
    """The adapters whose rank is larger than the rank of the stack."""
    for number, adapters in enumerate(sets):
        for path, adapter in adapters.adapters.items():
            if rank and (adapter.rank or 0) > rank:
                yield f"{show_path(path)}: rank {adapter.rank} in set {number}, above {rank}"


def _differences(sets: Sequence[AdapterSet], is_padded: bool) -> Iterator[str]:
    """Each fact that differs from the first set with this fact. Padded sets may lack adapters."""
    facts = [_facts(adapters, is_padded) for adapters in sets]
    for name in dict.fromkeys(itertools.chain(*facts)):
        having = [number for number in range(len(sets)) if name in facts[number]]
        first, expected = having[0], facts[having[0]][name]
        for number in having if is_padded else range(len(sets)):
            value = facts[number].get(name, "none")
            if value != expected:
                yield f"{name}: {expected} in set {first}, {value} in set {number}"


def _facts(adapters: AdapterSet, is_padded: bool) -> dict[str, object]:
    """The facts that must be equal in all sets, by the place and the name of each fact."""
    facts: dict[str, object] = {"shared arrays": _shown(adapters.shared)}
    for path, adapter in adapters.adapters.items():
        of_adapter = {
            # A class may have been defined twice, for example by a notebook cell that ran again.
            "class": adapter.wrapper,
            "made for": str(adapter.layer.kinds),
            "axes of a stack": adapter.layer.stack_ndim,
        }
        if not is_padded:
            of_adapter |= {"rank": adapter.rank, "alpha": adapter.alpha, **_shown(adapter.state)}
        facts |= {f"{show_path(path)}, {name}": fact for name, fact in of_adapter.items()}
    return facts


def _shown(arrays: Mapping[str, Array]) -> dict[str, str]:
    return {name: show_array(array) for name, array in arrays.items()}
