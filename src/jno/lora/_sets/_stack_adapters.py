"""Stack many sets of adapters into one, along a new leading axis."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .._errors import SelectionError
from .._paths import bullets, show_array, show_path
from ._adapter_set import AdapterSet, LooseAdapter, listed_sets


def stack_adapters(sets: Sequence[AdapterSet]) -> AdapterSet:
    """The sets as one, whose arrays have a leading axis of length `len(sets)`.

    Then the examples of a batch can use different adapters of one base: inside `vmap`, each takes
    its own by `jax.tree.map(lambda a: a[index], stacked)` and swaps it in. `swap_adapters` does not
    take the stack itself.

    **Arguments:** `sets` with adapters of the same classes, ranks, alphas, shapes and dtypes at the
    same paths. `combine([one], [1.0], "svd", rank=8)` brings a set of products to another rank.

    **Raises:** `SelectionError` that lists every difference.
    """
    first, *others = listed_sets(sets, "stack")
    problems = [line for i, other in enumerate(others, 1) for line in _differences(first, other, i)]
    if problems:
        raise SelectionError(
            f"Only sets of the same structure can be stacked, but\n{bullets(problems)}\n"
            "to_lora(model, rank=...) makes products of other adapters, and "
            'combine([one], [1.0], "svd", rank=...) gives products the same rank.'
        )
    return jax.tree.map(lambda *arrays: jnp.stack(arrays), first, *others)


def _differences(first: AdapterSet, other: AdapterSet, index: int) -> list[str]:
    lines: list[str] = []
    for path in dict.fromkeys([*first, *other]):
        if path not in first.adapters or path not in other.adapters:
            without = index if path in first.adapters else 0
            lines.append(f"{show_path(path)}: set {without} has no adapter there")
            continue
        here, there = _described(first[path]), _described(other[path])
        lines += [
            f"{show_path(path)}, {name}: {here.get(name, 'none')} in set 0, "
            f"{there.get(name, 'none')} in set {index}"
            for name in dict.fromkeys([*here, *there])
            if here.get(name) != there.get(name)
        ]
        if here["class"] == there["class"] and first[path].wrapper is not other[path].wrapper:
            lines.append(
                f"{show_path(path)}: {here['class']} in set {index} is another class than in set "
                "0. It was defined twice (a notebook cell that ran again): make both sets with one"
            )
    return lines


def _described(adapter: LooseAdapter) -> dict[str, Any]:
    return {
        "class": f"{adapter.wrapper.__module__}.{adapter.wrapper.__qualname__}",
        "rank": adapter.rank,
        "alpha": adapter.alpha,
        "made for": str(adapter.layer),
        "axes of a stack": adapter.layer.stack_ndim,
        **{name: show_array(array) for name, array in adapter.state.items()},
    }
