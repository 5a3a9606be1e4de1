"""Turn several sets of adapters of a model into the experts of one adapter per layer."""

import os
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from jno.lora import AdapterSet, LooseAdapter, LoRAWrapper, SelectionError, read_adapters
from jno.lora.extending import bullets

Source = AdapterSet | str | os.PathLike[str]


class Experts(NamedTuple):
    """The factors of one layer. Each update is `B A`, after any stack axes."""

    like: LooseAdapter  # of the first set
    A: Float[np.ndarray, "*stack experts r in"]
    B: Float[np.ndarray, "*stack experts out r"]


def experts_of(
    sets: Mapping[str, Source] | Iterable[Source], general: Iterable[Source] = ()
) -> dict[str, Experts]:
    """The experts of each layer, by path. Smaller ranks are padded with zeros.

    - `general`: sets; their mean `A` and mean `B` are subtracted from each `A` and each `B`.

    **Raises:** `SelectionError` that names the set and the path, unless all sets are plain LoRA of
    the same layers; or if `general` is given and the sets have several ranks.
    """
    experts, subtracted = _listed(sets), _listed(general)
    if not experts or not experts[0].adapters:
        raise SelectionError("There are no adapters to route between. Give at least one set.")
    names = ", ".join(sorted(experts[0]))
    problems: list[str] = []
    for index, adapters in enumerate(experts + subtracted):
        if adapters.adapters.keys() != experts[0].adapters.keys():
            problems.append(f"set {index} adapts {', '.join(sorted(adapters))}, not {names}")
        problems += [
            f"set {index}, {path}: {adapter.wrapper.__name__} is not a product of factors"
            for path, adapter in adapters.adapters.items()
            if not adapter.is_product
        ]
    if problems:
        raise SelectionError(
            "The sets must be plain LoRA of the same layers (`to_lora` makes plain LoRA):\n"
            f"{bullets(problems)}"
        )
    return {
        path: _of_layer(path, [s[path] for s in experts], [s[path] for s in subtracted])
        for path in experts[0]
    }


def set_of_experts(
    experts: Mapping[str, Experts],
    wrapper: type[LoRAWrapper],
    settings: Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]],
) -> AdapterSet:
    """Adapters with these experts, and with a router that has the arrays of `settings(A, B)`."""
    adapters: dict[str, LooseAdapter] = {}
    for path, (like, A, B) in experts.items():
        state = {f"settings/{name}": array for name, array in settings(A, B).items()}
        state = {n: jnp.asarray(x) for n, x in {"lora_A": A, "lora_B": B, **state}.items()}
        rank = A.shape[-2]
        adapters[path] = LooseAdapter(state, wrapper, rank, float(rank), like.layer)
    return AdapterSet(adapters)


def _listed(sets: Mapping[str, Source] | Iterable[Source]) -> list[AdapterSet]:
    if isinstance(sets, AdapterSet | str | os.PathLike):
        raise SelectionError("`sets` must be a list, or a dict by name, of sets or files.")
    listed = sets.values() if isinstance(sets, Mapping) else sets
    return [s if isinstance(s, AdapterSet) else read_adapters(s) for s in listed]


def _of_layer(path: str, experts: list[LooseAdapter], general: list[LooseAdapter]) -> Experts:
    ranks = {adapter.state["lora_A"].shape[-2] for adapter in experts + general}
    if general and len(ranks) > 1:
        raise SelectionError(f"{path}: `general` needs sets of one rank, but they have {ranks}")
    rank, axis = max(ranks), experts[0].layer.stack_ndim
    A = np.stack([_padded(a.state["lora_A"], rank, -2) for a in experts], axis)
    B = np.stack([_padded(a.state["lora_B"], rank, -1) for a in experts], axis)
    if general:
        # The mean gets the axis of the experts, which comes after the axes of a stack.
        A = A - np.expand_dims(np.mean([_wide(a.state["lora_A"]) for a in general], axis=0), axis)
        B = B - np.expand_dims(np.mean([_wide(a.state["lora_B"]) for a in general], axis=0), axis)
    scales = [_scale(a) for a in experts]
    return Experts(experts[0], A, np.stack(scales, axis)[..., None, None].astype(B.dtype) * B)


def _scale(adapter: LooseAdapter) -> np.ndarray | np.float64:
    """The scale of the update, for each layer of a stack."""
    stack = adapter.state["lora_A"].shape[:-2]
    multiplier = np.asarray(adapter.state.get("multiplier", 1), np.float64)
    return np.full(stack, adapter.scale, np.float64) * multiplier


def _wide(array: ArrayLike) -> np.ndarray:
    """A NumPy array in at least float32. NumPy avoids compilation."""
    array = np.asarray(array)
    return array if array.dtype.itemsize >= 4 else array.astype(np.float32)


def _padded(array: ArrayLike, rank: int, axis: int) -> np.ndarray:
    array = _wide(array)
    pads = [(0, 0)] * array.ndim
    pads[axis] = (0, rank - array.shape[axis])
    return np.pad(array, pads)
