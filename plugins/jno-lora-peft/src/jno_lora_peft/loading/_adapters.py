"""The adapters of a file, for the layers of a model."""

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jno.lora import AdapterSet, LoRAWrapper, PluginError, Registry, SelectionError
from jno.lora.extending import bullets, norms_around, show_path
from jno.lora.types import LayerForm, LooseAdapter

from .._errors import MisfitError, Problems
from .._names import show_index
from ..model.arrays import NewArrays, Source
from ..model.layouts import NO_LAYER, Layout, Shape, layout_of
from ..types import METHODS, ROUTED, Converted, Module, check_layer, floating
from ._arrays import layers_at_places
from ._placement import Place, Placement

M = TypeVar("M")


def with_adapters(
    model: M, places: Mapping[str, Place], placement: Placement, registry: Registry
) -> tuple[M, AdapterSet]:
    """`model` with the biases that adapters of PEFT add to, and the adapters of a file."""
    config, layers, biases = placement.config, layers_at_places(model, places), NewArrays()
    norms = norms_around(model, layers)
    by_path: dict[str, dict[Shape, Converted]] = {}
    shared = functools.cache(lambda: floating(placement.tensors.shared))
    for module, tensors in placement.tensors.adapters.items():
        if module not in places:
            continue
        path, index = places[module]
        with placement.problems.of(show_path(module)):
            layer, rank, alpha = layers[path], config.rank(module), config.alpha(module)
            layout = _checked_layout(placement, module, layer, path, norms)
            arrays = floating(tensors)
            m = Module(module, config.settings, rank, alpha, arrays, shared(), layer, index, layout)
            check_layer(layout, config.type.layers)
            converted = config.type.read(m)
            if converted.bias_shift is not None:
                is_all = converted.variant is None and not index
                source = Source(config.type.name, tensors, {}) if is_all else None
                biases.shift_bias(path, layer, index, converted.bias_shift, source)
            if converted.variant is not None:
                by_path.setdefault(path, {})[index] = converted
    adapters = collected(by_path, layers, registry, placement.problems)
    return biases.put_into(model), adapters


def collected(
    by_path: Mapping[str, Mapping[Shape, Converted]],
    layers: Mapping[str, Any],
    registry: Registry,
    problems: Problems,
) -> AdapterSet:
    """Adapters by path, from the adapters of single layers by their indices in a stack."""
    adapters: dict[str, LooseAdapter] = {}
    shared: dict[str, jax.Array] = {}
    for path, by_index in by_path.items():
        with problems.of(show_path(path)):
            layer, first = layers[path], next(iter(by_index.values()))
            cls = _adapter_class(registry, str(first.variant), layer, path)
            ndim = cls.stack_ndim(layer)
            stack = layer.weight.shape[:ndim]
            states = [adapter.state for adapter in _in_order(by_index, stack)]
            arrays = {
                name: jnp.asarray(
                    np.stack([x[name] for x in states]).reshape((*stack, *array.shape))
                )
                for name, array in states[0].items()
            }
            # The same arrays for every module of the file.
            shared |= {n: jnp.asarray(x) for n, x in first.shared.items() if n not in shared}
            form = LayerForm.of(layer, ndim)
            adapters[path] = LooseAdapter(arrays, cls, first.rank, first.alpha, form)
    return AdapterSet(adapters, shared)


def _checked_layout(
    placement: Placement, module: str, layer: Any, path: str, norms: Mapping[str, str]
) -> Layout:
    """The layer of a module for PEFT. **Raises:** `MisfitError` if it cannot be adapted."""
    if module not in placement.untargeted and not placement.config.is_target(module):
        raise MisfitError(
            "adapter_config.json does not target it (see target_modules, exclude_modules, "
            "layers_to_transform, modules_to_save), so that PEFT would leave its tensors out"
        )
    check_free(layer, path, norms)
    layout = layout_of(layer)
    if layout is None:
        raise MisfitError(NO_LAYER.format(type(layer).__name__))
    return layout


def check_free(layer: Any, path: str, norms: Mapping[str, str]) -> None:
    """**Raises:** `MisfitError` if the layer has an adapter, or a norm that computes its weight."""
    if isinstance(layer, LoRAWrapper):
        name = type(layer).__name__
        raise MisfitError(f"its layer carries a {name} already. Call merge_lora or unwrap_lora")
    if path in norms:
        norm = show_path(norms[path])
        raise MisfitError(f"its layer is inside the norm at {norm!r}, which computes the weight")


def _adapter_class(registry: Registry, variant: str, layer: Any, path: str) -> type[LoRAWrapper]:
    """The class that fits. **Raises:** `MisfitError`; `PluginError` if a plugin is missing."""
    reasons: list[str] = []
    for cls in _classes(registry, variant):
        if cls.applies_to(layer):
            return cls
        reasons += filter(None, [cls.why_not(layer)])
    reason = f": {reasons[0]}" if reasons else ""
    raise MisfitError(f"no adapter {variant!r} fits its {type(layer).__name__}{reason}")


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
