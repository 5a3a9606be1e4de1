"""Arrays of fused experts (`target_parameters`): one pair of tensors for all experts of an array.

PEFT calls the pair by the module, and not by the array. A module with several adapted arrays has
its pairs in an order that only Torch knows, so their shapes must tell them apart.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jno.lora.extending import show_path

from .._errors import MisfitError, Problems
from ..files.config import Config
from ..files.tensors import Tensors
from ..model.layouts import Shape, layout_of

Pair = Mapping[str, np.ndarray]


class Size(NamedTuple):
    """The sizes of an array of experts, and whether its last axis are the inputs."""

    experts: int
    outputs: int
    inputs: int
    inputs_last: bool


# The size of the array with that name; `None` if the model has no such array.
Sizes = Callable[[str], Size | None]

_INNER = ".base_layer"
A, B = "lora_A.weight", "lora_B.weight"


def sizes_of(layer: object, index: Shape) -> Size:
    """The size of a layer, or of a stack: its last axis are the experts."""
    layout = layout_of(layer)
    if layout is None or layout.kind != "linear":
        raise MisfitError(f"it is a {type(layer).__name__} here, and not an array of matrices")
    shape: Shape = layer.weight.shape[:-2]  # pyright: ignore[reportAttributeAccessIssue]
    if len(shape) - len(index) not in (0, 1):
        raise MisfitError(f"the model has a stack of {shape} layers there, and the index {index}")
    experts = shape[-1] if len(shape) > len(index) else 0
    # A declared array has a letter for each axis, and a layer's weight is `(out, in)`.
    declared: str = getattr(layer, "axes", "oi")
    return Size(experts, *layout.matrix, not declared.replace("s", "").endswith("o"))


def apart(config: Config, tensors: Tensors, sizes: Sizes) -> tuple[Tensors, set[str]]:
    """The tensors with a module for each expert, `experts.up_proj[3]`, and the new names.

    **Raises:** `PeftFormatError` if the file does not tell which array a pair is for.
    """
    problems, adapters, new = Problems(), dict(tensors.adapters), dict[str, Pair]()
    for module, names in _adapted_arrays(config, adapters):
        pairs: list[Pair] = []
        while (inner := module + _INNER * len(pairs)) in adapters:
            pairs.append(adapters.pop(inner))
        with problems.of(show_path(module)):
            new |= _experts(config, names, pairs[::-1], sizes)
    title = "The adapter of `target_parameters` does not fit the model"
    problems.refuse(title, "Nothing was loaded.")
    adapters |= {name: dict(pair) for name, pair in new.items()}
    return dataclasses.replace(tensors, adapters=adapters), set(new)


def _adapted_arrays(
    config: Config, adapters: Mapping[str, Pair]
) -> Iterator[tuple[str, list[str]]]:
    """The modules whose arrays PEFT adapts, and the names of these arrays in the model."""
    targets: list[str] = config.settings.get("target_parameters") or []
    for module in [name for name in adapters if not name.endswith(_INNER)]:
        if config.settings.get("target_modules") and config.is_target(module):
            continue  # which PEFT adapts whole
        ends = [target.rpartition(".") for target in targets]
        names = {end for start, _, end in ends if not start or f".{module}".endswith(f".{start}")}
        if names:
            yield module, sorted(f"{module}.{name}" for name in names)


def _experts(
    config: Config, names: Sequence[str], pairs: Sequence[Pair], sizes: Sizes
) -> dict[str, Pair]:
    if str(config.settings.get("init_lora_weights")).lower().startswith(("pissa", "olora")):
        raise MisfitError("PEFT starts PiSSA and OLoRA from a whole weight, and this is an array")
    present = {name: size for name in names if (size := sizes(name)) is not None}
    if len(present) < len(pairs):
        # The loader says that the model lacks the arrays, and which are near.
        return dict(zip([name for name in names if name not in present], pairs, strict=False))
    chosen = {s: _chosen(config, pairs, present, swapped=s) for s in (False, True)}
    fitting = {swapped: names for swapped, names in chosen.items() if names}
    is_open = not all(size.inputs_last for size in present.values())
    if len(fitting) == 2 and is_open:
        raise MisfitError(
            f"{', '.join(present)}: PEFT's `A` reads the last axis of an array, or the axis before "
            "if Torch's module says `is_transposed`, and the shapes fit both. Give `load_peft` "
            'arrays declared as "soi" instead: these arrays, without `is_transposed`; with it, the '
            "arrays with their last two axes swapped"
        )
    for swapped, chosen_names in fitting.items():
        items = zip(chosen_names, pairs, strict=True)
        return {k: v for n, p in items for k, v in _split(n, p, present[n].experts, swapped)}
    shapes = [{name: tensor.shape for name, tensor in pair.items()} for pair in pairs]
    raise MisfitError(
        f"its tensors {shapes} fit no array of (experts, out, in) "
        f"{ {name: size[:3] for name, size in present.items()} } at the rank of the file"
    )


def _chosen(
    config: Config, pairs: Sequence[Pair], present: Mapping[str, Size], *, swapped: bool
) -> list[str]:
    """The array of each pair, by the shapes; empty if they do not fit."""
    by_shapes: dict[Any, list[str]] = {}
    for name, size in present.items():
        by_shapes.setdefault(_shapes(config, name, size, swapped), []).append(name)
    fitting = [by_shapes.get((p[A].shape, p[B].shape), []) for p in pairs if {*p} == {A, B}]
    if len(fitting) < len(pairs) or not all(fitting):
        return []
    if max(map(len, fitting)) > 1:
        raise MisfitError(
            f"{', '.join(present)}: several have the same shape, and PEFT tells them apart "
            "by the order in which Torch's module defines them, which is not in the file"
        )
    chosen = [name for (name,) in fitting]
    return chosen if len({*chosen}) == len(pairs) else []


def _shapes(config: Config, name: str, size: Size, swapped: bool) -> tuple[Shape, Shape]:
    """The shapes of the pair for that array; `swapped` if PEFT's `A` reads the outputs.

    PEFT reads the last axis of an array by `A`, or the axis before it if the module says
    `is_transposed`: these are the inputs in the layers of Transformers, and may be the outputs.
    """
    outputs, inputs = size.outputs, size.inputs
    rows = config.rank(name) * (size.experts or 1)
    return ((rows, outputs), (inputs, rows)) if swapped else ((rows, inputs), (outputs, rows))


def _split(name: str, pair: Pair, count: int, swapped: bool) -> Iterator[tuple[str, Pair]]:
    """The factors of each expert: rows of `A` go expert by expert, columns of `B` rank by rank."""
    many = count or 1
    first = pair[A].reshape(many, -1, pair[A].shape[1])
    second = pair[B].reshape(len(pair[B]), -1, many)
    for n in range(many):
        factors = second[:, :, n].T, first[n].T
        a, b = factors if swapped else (first[n], second[:, :, n])
        yield (f"{name}[{n}]" if count else name), {A: a, B: b}
