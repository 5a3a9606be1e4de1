"""Checks of the arguments of functions of sets."""

from collections.abc import Iterable, Sequence

import numpy as np

from jno.lora import AdapterSet, SelectionError
from jno.lora.extending import adds_up, bullets, show_path


def listed_sets(sets: object, verb: str) -> list[AdapterSet]:
    """**Raises:** `SelectionError` if `sets` is empty, or not a list of sets."""
    items = list(sets) if isinstance(sets, Iterable) else [sets]
    listed = [item for item in items if isinstance(item, AdapterSet)]
    misfits = [type(item).__name__ for item in items if not isinstance(item, AdapterSet)]
    if misfits or not listed:
        raise SelectionError(
            f"Only AdapterSets can be {verb}, in a list, but this is a list of "
            f"{misfits[0] if misfits else 'nothing'}. For a single set, give a list: [adapters]. "
            "extract_adapters(model) takes a set from a model."
        )
    return listed


def paths_of(sets: Iterable[AdapterSet]) -> list[str]:
    """The paths of all adapters in `sets`, each once."""
    return list(dict.fromkeys(path for adapters in sets for path in adapters))


def check_products(sets: Sequence[AdapterSet], done: str, sums: bool = False) -> None:
    """**Raises:** `SelectionError` that lists every adapter that is not a product.

    - `sums`: whether adapters with a `sum_of` will do as well.
    """
    lines: list[str] = []
    for index, adapters in enumerate(sets):
        place = f" in set {index}" if len(sets) > 1 else ""
        for path, adapter in adapters.adapters.items():
            if not (adapter.is_product or (sums and adds_up(adapter.wrapper))):
                arrays = ", ".join(adapter.state)
                name = adapter.wrapper.__name__
                lines.append(f"{show_path(path)}: a {name}{place}, with the arrays {arrays}")
    if lines:
        raise SelectionError(
            "Only adapters whose update is a low-rank product (LoRA, rsLoRA, LoRA-FA) can be "
            f"{done}. These adapters are different:\n{bullets(lines)}\n"
            "Convert them first, if they consist only of their update: "
            "extract_adapters(to_lora(model, rank=...)[0])."
        )


def check_fraction(name: str, fraction: object) -> None:
    """**Raises:** `SelectionError` unless `fraction` is a Python number in `(0, 1]`."""
    if not (isinstance(fraction, float | int | np.number) and 0 < fraction <= 1):
        raise SelectionError(f"`{name}` must be a Python number in (0, 1], but is {fraction!r}.")
