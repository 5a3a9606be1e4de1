"""The adapters of a file, for the layers of a model."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jno.lora import AdapterSet, LoRAWrapper, PluginError, Registry, SelectionError
from jno.lora.extending import bullets, norms_around, show_path
from jno.lora.types import LayerForm, LooseAdapter

from .._errors import MisfitError, Problems
from .._names import show_index
from ..files.config import Config
from ..model.arrays import Source
from ..model.layouts import Layout, Shape, layout_of
from ..types import METHODS, ROUTED, Converted, Module, floating
from ._placement import Placement


def adapters_of(config: Config, placement: Placement, registry: Registry) -> AdapterSet:
    """The adapters of a file. Shifts of biases go into the arrays of the placement."""

    def shift(path: str, ordered: list[Converted], stack: Shape) -> None:
        _shift_bias(config, placement, path, ordered, stack)

    by_path = _converted_by_path(config, placement)
    return collected(by_path, placement.layers, registry, placement.problems, shift)


def collected(
    by_path: Mapping[str, Mapping[Shape, Converted]],
    layers: Mapping[str, Any],
    registry: Registry,
    problems: Problems,
    shift: Callable[[str, list[Converted], Shape], None] | None = None,
) -> AdapterSet:
    """Adapters by path, from the adapters of single layers by their indices in a stack.

    `shift` gets the path, the adapters and the shape of each stack before they are joined.
    """
    adapters: dict[str, LooseAdapter] = {}
    shared: dict[str, jax.Array] = {}
    for path, by_index in by_path.items():
        with problems.of(show_path(path)):
            layer, first = layers[path], next(iter(by_index.values()))
            if first.variant is None:
                cls, ndim = None, len(next(iter(by_index)))
            else:
                cls = _adapter_class(registry, first.variant, layer, path)
                ndim = cls.stack_ndim(layer)
            stack = layer.weight.shape[:ndim]
            ordered = _in_order(by_index, stack)
            if shift is not None:
                shift(path, ordered, stack)
            if cls is not None:
                state = _stacked([adapter.state for adapter in ordered], stack)
                arrays = {name: jnp.asarray(array) for name, array in state.items()}
                # The same arrays for every module of the file.
                shared |= {n: jnp.asarray(x) for n, x in first.shared.items() if n not in shared}
                form = LayerForm.of(layer, ndim)
                adapters[path] = LooseAdapter(arrays, cls, first.rank, first.alpha, form)
    return AdapterSet(adapters, shared)


def _converted_by_path(config: Config, placement: Placement) -> dict[str, dict[Shape, Converted]]:
    norms = norms_around(placement.model, placement.layers)
    by_path: dict[str, dict[Shape, Converted]] = {}
    shared_arrays = functools.cache(lambda: floating(placement.tensors.shared))
    for module, tensors in placement.tensors.adapters.items():
        if module not in placement.places:
            continue
        path, index = placement.places[module]
        with placement.problems.of(show_path(module)):
            layout = _checked_layout(config, placement, norms, module)
            layer, rank, alpha = placement.layers[path], config.rank(module), config.alpha(module)
            arrays, shared = floating(tensors), shared_arrays()
            m = Module(module, config.settings, rank, alpha, arrays, shared, layer, index, layout)
            by_path.setdefault(path, {})[index] = config.type.read(m)
    return by_path


def _shift_bias(
    config: Config, placement: Placement, path: str, ordered: list[Converted], stack: Shape
) -> None:
    shifts = [adapter.bias_shift for adapter in ordered]
    example = next((shift for shift in shifts if shift is not None), None)
    if example is None:
        return
    shifts = [np.zeros_like(example) if shift is None else shift for shift in shifts]
    shift, source = _stacked([{"": shift} for shift in shifts], stack)[""], None
    if ordered[0].variant is None and not stack:
        source = Source(config.type.name, {"beft_bias": shift[None]}, {})
    placement.problems += placement.arrays.shift_bias(path, placement.layers[path], shift, source)


def _checked_layout(
    config: Config, placement: Placement, norms: Mapping[str, str], module: str
) -> Layout:
    """The layer of a module for PEFT. **Raises:** `MisfitError` if it cannot be adapted."""
    path, _ = placement.places[module]
    layer = placement.layers[path]
    layout = layout_of(layer)
    where = f"the layer at {show_path(path)!r}"
    if module not in placement.heads and not config.is_target(module):
        raise MisfitError(
            "adapter_config.json does not target it (see target_modules, exclude_modules, "
            "layers_to_transform, modules_to_save), so that PEFT would leave its tensors out"
        )
    check_free(layer, path, norms)
    if layout is None:
        raise MisfitError(
            f"{where} is a {type(layer).__name__}; PEFT's tensors fit linear layers, "
            "convolutions and embeddings"
        )
    return layout


def check_free(layer: Any, path: str, norms: Mapping[str, str]) -> None:
    """**Raises:** `MisfitError` if the layer has an adapter, or a norm that computes its weight."""
    if isinstance(layer, LoRAWrapper):
        raise MisfitError(
            f"the layer at {show_path(path)!r} carries a {type(layer).__name__} already. Call "
            "merge_lora or unwrap_lora first"
        )
    if path in norms:
        norm = show_path(norms[path])
        raise MisfitError(
            f"the layer at {show_path(path)!r} is inside the norm at {norm!r}, which takes its "
            "weight apart again"
        )


def _adapter_class(registry: Registry, variant: str, layer: Any, path: str) -> type[LoRAWrapper]:
    """The class that fits. **Raises:** `MisfitError`; `PluginError` if a plugin is missing."""
    reasons: list[str] = []
    for cls in _classes(registry, variant):
        if cls.applies_to(layer):
            return cls
        reasons += filter(None, [cls.why_not(layer)])
    raise MisfitError(
        f"no adapter of the variant {variant!r} fits its {type(layer).__name__}"
        f"{': ' if reasons else ''}{'; '.join(reasons[:1])}"
    )


def _classes(registry: Registry, variant: str) -> Iterator[type[LoRAWrapper]]:
    """The classes of a variant. A plugin is loaded only when the classes before do not fit."""
    if variant in ROUTED:
        yield registry.provided("jno-lora-routed", ROUTED[variant]).cls
        return
    method = METHODS[variant].__name__
    yield from (registry.zoo_class(f"{method}{kind}") for kind in ("Linear", "Conv"))
    with contextlib.suppress(PluginError):  # a registry may hold no such class
        yield registry.zoo_class(f"{method}Embedding")
    yield from registry.resolve(variant)
    with contextlib.suppress(SelectionError):
        yield from registry.resolve(f"{variant}-embedding")


def _in_order(adapters: Mapping[Shape, Converted], stack: Shape) -> list[Converted]:
    """The adapters of a stack, in its order. **Raises:** `MisfitError` if they are not a stack."""
    indices = list(np.ndindex(*stack))
    if not stack and list(adapters) != indices:
        raise MisfitError("the model has one layer there, not a stack with an index")
    lines = [f"{show_index(i)}: not in the file" for i in indices if i not in adapters]
    lines += [f"{show_index(i)}: not in the model" for i in adapters if i not in indices]
    if lines:
        raise MisfitError(
            f"the model has a stack of {' x '.join(map(str, stack))} layers there. Each must be in "
            f"the file, and needs an index by `rename`, such as '[{show_index(indices[0])}]':\n"
            f"{bullets(lines, 4)}"
        )
    scales = sorted({(adapter.rank, adapter.alpha) for adapter in adapters.values()})
    if len(scales) > 1:
        shown = ", ".join(f"rank {rank} with alpha {alpha:g}" for rank, alpha in scales)
        raise MisfitError(f"the layers of a stack need one rank and alpha, but these have {shown}")
    return [adapters[index] for index in indices]


def _stacked(layers: Sequence[Mapping[str, np.ndarray]], stack: Shape) -> dict[str, np.ndarray]:
    return {
        name: np.stack([arrays[name] for arrays in layers]).reshape((*stack, *first.shape))
        for name, first in layers[0].items()
    }
