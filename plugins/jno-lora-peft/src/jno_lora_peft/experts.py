"""Arrays of fused experts (`target_parameters`): one pair of tensors for all experts of an array.

PEFT names the pair after the module, not the array. The order of the pairs in a module with several
adapted arrays depends on the Torch code, so pairs are matched by their shapes when a file is read,
and written in the caller's order. Here an array is a stack whose last axis runs over the experts.
"""

import collections
import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jno.lora import SelectionError
from jno.lora.extending import show_path
from jno_lora_zoo import plain_layer

from .config import Config
from .errors import MisfitError, Problems
from .files import Tensors
from .layouts import Shape, layout_of
from .names import compiled, indexed
from .types.type import Written

Pair = Mapping[str, np.ndarray]


class Size(NamedTuple):
    """The sizes of an array of experts, and whether the inputs are its last axis."""

    experts: int
    outputs: int
    inputs: int
    inputs_last: bool


_INNER = ".base_layer"
A, B = "lora_A.weight", "lora_B.weight"


def sizes_of(layer: object, index: Shape) -> Size:
    """The size of a layer, or of a stack whose last axis runs over the experts."""
    layout = layout_of(layer)
    if layout is None or layout.kind != "linear":
        raise MisfitError(f"it is a {type(layer).__name__} here, and not an array of matrices")
    shape: Shape = plain_layer(layer).weight.shape[:-2]
    if len(shape) - len(index) not in (0, 1):
        raise MisfitError(f"the model has a stack of {shape} layers there, and the index {index}")
    experts = shape[-1] if len(shape) > len(index) else 0
    # A declared array has a letter for each axis; a layer's weight is `(out, in)`.
    declared: str = getattr(layer, "axes", "oi")
    return Size(experts, *layout.matrix, not declared.replace("s", "").endswith("o"))


def split_experts(
    config: Config, tensors: Tensors, size_of: Callable[[str], Size | None]
) -> tuple[Tensors, set[str]]:
    """The tensors with a module for each expert, `experts.up_proj[3]`, and the new names.

    `size_of` returns the size of the array with a name; `None` if the model has no such array.

    **Raises:** `PeftFormatError` if it is not clear from the file which array a pair is for.
    """
    problems, adapters, new = Problems(), dict(tensors.adapters), dict[str, Pair]()
    for module, names in _adapted_arrays(config, adapters):
        pairs: list[Pair] = []
        while (inner := module + _INNER * len(pairs)) in adapters:
            pairs.append(adapters.pop(inner))
        with problems.of(show_path(module)):
            sizes = {name: size for name in names if (size := size_of(name)) is not None}
            new |= _experts(config, names, pairs[::-1], sizes)
    title = "The adapter of `target_parameters` does not fit the model"
    problems.refuse(title, "Nothing was loaded.")
    adapters |= {name: dict(pair) for name, pair in new.items()}
    return dataclasses.replace(tensors, adapters=adapters), set(new)


def _adapted_arrays(
    config: Config, adapters: Mapping[str, Pair]
) -> Iterator[tuple[str, list[str]]]:
    """The modules with arrays that PEFT adapts, and the names of these arrays in the model."""
    targets: list[str] = config.settings.get("target_parameters") or []
    for module in [name for name in adapters if not name.endswith(_INNER)]:
        if config.settings.get("target_modules") and config.is_target(module):
            continue  # PEFT adapts the whole module
        ends = [target.rpartition(".") for target in targets]
        names = {end for start, _, end in ends if not start or f".{module}".endswith(f".{start}")}
        if names:
            yield module, sorted(f"{module}.{name}" for name in names)


def _experts(
    config: Config, names: Sequence[str], pairs: Sequence[Pair], present: Mapping[str, Size]
) -> dict[str, Pair]:
    """The factors of each expert, by name. **Raises:** `MisfitError`."""
    if str(config.settings.get("init_lora_weights")).lower().startswith(("pissa", "olora")):
        raise MisfitError("PEFT starts PiSSA and OLoRA from a whole weight, and this is an array")
    if len(present) < len(pairs):
        # The loader reports the missing arrays, with the nearest names.
        return dict(zip([name for name in names if name not in present], pairs, strict=False))
    fitting = [_split(config, pairs, present, swapped=swapped) for swapped in (False, True)]
    if all(fitting) and not all(size.inputs_last for size in present.values()):
        raise MisfitError(
            f"{', '.join(present)}: PEFT's `A` reads the last axis of an array, or the axis before "
            "if Torch's module says `is_transposed`, and the shapes fit both. Give `load_peft` "
            'arrays declared as "soi" instead: these arrays, without `is_transposed`; with it, the '
            "arrays with their last two axes swapped"
        )
    if any(fitting):
        return fitting[0] or fitting[1]
    shapes = [{name: tensor.shape for name, tensor in pair.items()} for pair in pairs]
    arrays = {name: (size.experts, size.outputs, size.inputs) for name, size in present.items()}
    raise MisfitError(f"its tensors {shapes} fit no array of (experts, out, in) {arrays}")


def _split(
    config: Config, pairs: Sequence[Pair], present: Mapping[str, Size], *, swapped: bool
) -> dict[str, Pair]:
    """The factors of each expert, in the arrays that the shapes tell; empty if they do not fit.

    PEFT applies `A` to the last axis of an array, or to the second-last axis if the module has
    `is_transposed`. In Transformers' layers, this is the axis of the inputs. `swapped` means that
    it may be the axis of the outputs.
    """
    by_shapes: dict[tuple[Shape, Shape], list[str]] = {}
    for name, size in present.items():
        rows = config.rank(name) * (size.experts or 1)
        a, b = (size.outputs, size.inputs) if swapped else (size.inputs, size.outputs)
        by_shapes.setdefault(((rows, a), (b, rows)), []).append(name)
    fitting = [by_shapes.get((p[A].shape, p[B].shape), []) for p in pairs if {*p} == {A, B}]
    if len(fitting) < len(pairs) or not all(fitting):
        return {}
    if max(map(len, fitting)) > 1:
        raise MisfitError(
            f"{', '.join(present)}: several have the same shape, and PEFT tells them apart "
            "by the order in which Torch's module defines them, which is not in the file"
        )
    pair_of = {name: pair for (name,), pair in zip(fitting, pairs, strict=True)}
    if len(pair_of) < len(pairs):
        return {}
    experts: dict[str, Pair] = {}
    for name, pair in pair_of.items():
        # Rows of `A` are grouped by expert, columns of `B` by rank.
        count = present[name].experts
        first = pair[A].reshape(count or 1, -1, pair[A].shape[1])
        second = np.moveaxis(pair[B].reshape(len(pair[B]), -1, count or 1), -1, 0)
        for n, (a, b) in enumerate(zip(first, second, strict=True)):
            factors = {A: b.T, B: a.T} if swapped else {A: a, B: b}
            experts[f"{name}[{n}]" if count else name] = factors
    return experts


class ExpertArrays:
    """The stacks to write as arrays of experts, and the tensors of these arrays.

    PEFT nests the adapters of a module in the order in which Torch's module defines its arrays. The
    regular expressions are in that order, because a model here does not record it.
    """

    def __init__(self, patterns: str | Sequence[str] | None, paths: Collection[str]):
        """`paths` are the paths of all adapters.

        **Raises:** `SelectionError` for an expression that is not valid, or matches no path.
        """
        patterns = [patterns] if isinstance(patterns, str) else patterns or ()
        self._patterns = [compiled(pattern, "target_parameters") for pattern in patterns]
        for x in self._patterns:
            if not any(map(x.search, paths)):
                raise SelectionError(f"target_parameters={x.pattern!r} matches no path of adapters")
        self._arrays: dict[tuple[str, int], tuple[str, Written]] = {}

    def order(self, path: str) -> int | None:
        """The index of the first expression that matches a path."""
        return next((n for n, x in enumerate(self._patterns) if x.search(path)), None)

    def add(self, name: str, order: int, written: Written) -> None:
        """Add an array by PEFT's name. **Raises:** `MisfitError` if it is not in a module."""
        module, _, array = name.rpartition(".")
        if not module:
            raise MisfitError(
                f"PEFT adapts arrays of modules, and {name!r} is outside of all: use `rename`"
            )
        if (module, order) in self._arrays:
            other, _ = self._arrays[module, order]
            raise MisfitError(
                f"{other!r} and {array!r} of one module match the same expression. Give each an "
                "expression, in the order in which Torch's module defines the arrays"
            )
        self._arrays[module, order] = array, written

    @property
    def names(self) -> list[str]:
        return [f"{module}.{array}" for (module, _), (array, _) in self._arrays.items()]

    def tensors(self) -> dict[str, Pair]:
        """The tensors, by PEFT's names of the modules. The first array is wrapped first."""
        tensors, depths = dict[str, Pair](), collections.Counter[str]()
        for module, order in sorted(self._arrays, reverse=True):
            _, written = self._arrays[module, order]
            tensors[module + _INNER * depths[module]] = written.tensors
            depths[module] += 1
        return tensors


def join_experts(layers: Sequence[Written], path: str) -> list[Written]:
    """One adapter per array, with the factors of all experts (the last axis of the stack).

    **Raises:** `MisfitError` if an adapter is more than two factors.
    """
    by_block: dict[Shape, list[Written]] = {}
    for written in layers:
        if tuple(written.tensors) != (A, B):
            raise MisfitError(
                f"PEFT adapts arrays by LoRA alone, and this would be {', '.join(written.tensors)}"
            )
        by_block.setdefault(written.adapter.index[:-1], []).append(written)
    arrays: list[Written] = []
    for index, experts in by_block.items():
        first, second = ([np.asarray(x.tensors[name]) for x in experts] for name in (A, B))
        # Rows of `A` are grouped by expert, columns of `B` by rank.
        tensors = {
            A: np.concatenate(first),
            B: np.stack(second, -1).reshape(len(second[0]), -1),
        }
        adapter = dataclasses.replace(experts[0].adapter, path=indexed(path, index), index=index)
        arrays.append(dataclasses.replace(experts[0], adapter=adapter, tensors=tensors))
    return arrays
