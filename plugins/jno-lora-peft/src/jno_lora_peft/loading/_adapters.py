"""The adapters of a file, for the layers of a model."""

from collections.abc import Mapping

import jax
import numpy as np

from jno.lora import AdapterSet, LoRAWrapper, Registry
from jno.lora.extending import norms_around, show_path
from jno.lora.types import LayerForm, LooseAdapter

from .._errors import MisfitError
from ..files.config import Config
from ..model.layouts import Layout, Shape, layout_of
from ..model.loaded import Source
from ..types import Converted, Module, floating
from ._classes import adapter_class
from ._placement import Placement
from ._stacks import in_order, on_device, stacked


def adapters_of(config: Config, placement: Placement, registry: Registry) -> AdapterSet:
    """The adapters of a file. Shifts of biases go into the arrays of the placement."""
    adapters: dict[str, LooseAdapter] = {}
    shared: dict[str, jax.Array] = {}
    for path, by_index in _converted_by_path(config, placement).items():
        with placement.problems.of(show_path(path)):
            layer, first = placement.layers[path], next(iter(by_index.values()))
            if first.variant is None:
                cls, ndim = None, len(next(iter(by_index)))
            else:
                cls = adapter_class(registry, first.variant, layer, path)
                ndim = cls.stack_ndim(layer)
            stack = layer.weight.shape[:ndim]
            ordered = in_order(by_index, stack)
            _shift_bias(config, placement, path, ordered, stack)
            if cls is not None:
                arrays = on_device(stacked([adapter.state for adapter in ordered], stack))
                # The same arrays for every module of the file.
                shared |= on_device({n: x for n, x in first.shared.items() if n not in shared})
                form = LayerForm.of(layer, ndim)
                adapters[path] = LooseAdapter(arrays, cls, first.rank, first.alpha, form)
    return AdapterSet(adapters, shared)


def _converted_by_path(config: Config, placement: Placement) -> dict[str, dict[Shape, Converted]]:
    """The adapters by the paths of their layers, and by the index in a stack."""
    norms = norms_around(placement.model, placement.layers)
    shared = placement.tensors.shared
    by_path: dict[str, dict[Shape, Converted]] = {}
    for module, tensors in placement.tensors.adapters.items():
        if module not in placement.places:
            continue
        path, index = placement.places[module]
        with placement.problems.of(show_path(module)):
            layout = _checked_layout(config, placement, norms, module)
            m = Module(
                name=module,
                settings=config.settings,
                rank=config.rank(module),
                alpha=config.alpha(module),
                tensors=floating(tensors),
                shared=floating(shared),
                layer=placement.layers[path],
                index=index,
                layout=layout,
            )
            by_path.setdefault(path, {})[index] = config.type.read(m)
    return by_path


def _shift_bias(
    config: Config, placement: Placement, path: str, ordered: list[Converted], stack: Shape
) -> None:
    """Add the shifts of the adapters of a layer, or of a stack, to its bias."""
    shifts = [adapter.bias_shift for adapter in ordered]
    example = next((shift for shift in shifts if shift is not None), None)
    if example is None:
        return
    shifts = [np.zeros_like(example) if shift is None else shift for shift in shifts]
    shift, source = stacked([{"": shift} for shift in shifts], stack)[""], None
    if ordered[0].variant is None and not stack:
        source = Source(config.type.name, {"beft_bias": shift[None]}, {})
    layer = placement.layers[path]
    placement.problems += placement.arrays.shift_bias(path, layer, shift, source)


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
    if isinstance(layer, LoRAWrapper):
        raise MisfitError(
            f"{where} carries a {type(layer).__name__} already. Call merge_lora or unwrap_lora "
            "first"
        )
    if path in norms:
        norm = show_path(norms[path])
        raise MisfitError(
            f"{where} is inside the norm at {norm!r}, which takes its weight apart again"
        )
    if layout is None:
        raise MisfitError(
            f"{where} is a {type(layer).__name__}; PEFT's tensors fit linear layers, "
            "convolutions and embeddings"
        )
    return layout
