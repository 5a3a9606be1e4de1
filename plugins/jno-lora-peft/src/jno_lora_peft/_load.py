"""From PEFT's files to adapters around the layers of a model."""

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from .._contract import LoRAWrapper, expect_model, is_wrapper
from .._errors import JnoLoraWarning, PeftFormatError, PluginError
from .._paths import bullets, show_path
from .._registry import Registry, default_registry
from .._sets import AdapterSet, LayerForm, LooseAdapter, put_around
from ._arrays import Arrays, Index
from ._config import Config
from ._files import Directory, not_finite, read
from ._held import Held, held
from ._keys import Tensors, by_module
from ._layouts import Layout, layout_of
from ._names import Layers, Rename, both_sides, dotted_path, not_found, slice_of
from ._stacks import stack_problem, stacked
from ._updates import MisfitError

M = TypeVar("M")

# The methods that hold what PEFT has, by their variant.
_METHODS = {"lora": "LoRA", "rslora": "rsLoRA", "dora": "DoRA", "ia3": "IA3"}


def load_peft(
    model: M, directory: Directory, *, rename: Rename = None, registry: Registry | None = None
) -> M:
    """`model` with the adapter that PEFT saved into `directory`.

    LoRA, rsLoRA and DoRA become the adapters of those names; IA³ that scales outputs becomes IA³;
    VeRA, AdaLoRA, LoHa and LoKr become LoRA with the same update, of whatever rank that takes. The
    outputs are PEFT's. What has no exact form here is an error. The adapters are float32 at least.

    Trained biases and the modules of `modules_to_save` take the place of the model's own arrays, in
    the dtype of the model. So does a bias that PEFT changes by its adapter (`lora_bias`, IA³ on a
    layer with a bias): `unwrap_lora` does not bring the former one back.

    **Arguments:**

    - `model`: any pytree, adapted or not. Its layers are found by PEFT's names for them, with
        slashes for dots.
    - `directory`: with `adapter_config.json` and `adapter_model.safetensors`.
    - `rename`: from PEFT's names of modules to the paths of layers here: a table of regular
        expressions and replacements, each used in turn on the slash-joined name, such as
        `{"^model/": ""}`, or a function of the dotted name. A path that ends in `[3]` is that layer
        of a stack; all layers of a stack must be there.
    - `registry`: where adapter classes are looked up, instead of among the installed plugins. Other
        plugins than the zoo are loaded only for layers that its adapters are not for.

    **Returns:** the model, with the adapters around its layers. Those it carried stay. Tensors that
    hold NaN or infinity are loaded, with a `JnoLoraWarning`.

    **Raises:** `PeftFormatError` for files that are damaged or hold what has no exact form here,
    and one that lists everything that does not fit the model; `SelectionError` for a bad `rename`,
    a `Net`, two places of one path, or an adapter that cannot be built; `PluginError` if a plugin
    is missing.
    """
    expect_model(model, "load_peft")
    values, tensors = read(directory)
    config = Config.parse(values)
    found = by_module(tensors, config.type)
    loading = _Loading(config, default_registry(registry))
    loading.read(found, Layers(model), rename)
    if loading.problems:
        raise PeftFormatError(
            f"The {config.type} adapter does not fit the model:\n{bullets(loading.problems)}\n"
            "Nothing was loaded."
        )
    if lines := not_finite(tensors):
        warnings.warn(
            f"Tensors of {os.fspath(directory)!r} hold NaN or infinity:\n{bullets(lines)}",
            JnoLoraWarning,
            stacklevel=2,
        )
    changed = loading.arrays.put_into(model)
    return put_around(changed, AdapterSet(loading.adapters), drop_others=False)


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a module of PEFT is here: a layer, or one slice of a stack."""

    path: str
    layer: Any
    index: Index


class _Loading:
    """What is read from a file for one model: adapters and arrays by path, and all problems."""

    def __init__(self, config: Config, registry: Registry):
        self.config = config
        self.registry = registry
        self.problems: list[str] = []
        self.adapters: dict[str, LooseAdapter] = {}
        self.arrays = Arrays()
        self._layers: dict[str, Any] = {}

    def read(self, found: Tensors, layers: Layers, rename: Rename) -> None:
        """Fill `adapters` and `arrays`, or `problems`.

        **Raises:** `PeftFormatError` if the model has no modules, or none of those of the file.
        """
        if not layers.paths:
            raise PeftFormatError("The model holds no Equinox modules to adapt.")
        modules = list(dict.fromkeys([*found.adapters, *found.plain]))
        places = self._places(modules, layers, rename)
        for module, arrays in found.plain.items():
            if module in places:
                place = places[module]
                self.problems += self.arrays.replace(place.path, place.layer, place.index, arrays)
        slices: dict[str, dict[Index, Held]] = {}
        for module, parts in found.adapters.items():
            place = places.get(module)
            layout = None if place is None else self._layout(module, place, layers)
            if place is None or layout is None:
                continue
            try:
                adapter = held(self.config, module, parts, found.shared, layout)
            except MisfitError as err:
                self.problems += [f"{show_path(module)}: {line}" for line in err.lines]
                continue
            slices.setdefault(place.path, {})[place.index] = adapter
        for path, adapters in slices.items():
            self._adapt(path, adapters)

    def _places(self, modules: list[str], layers: Layers, rename: Rename) -> dict[str, _Place]:
        places: dict[str, _Place] = {}
        missing: dict[str, str] = {}
        taken: dict[tuple[str, Index], str] = {}
        for module in modules:
            dotted = dotted_path(module, rename)
            index: Index = ()
            layer = layers.find(dotted)
            if layer is None:
                dotted_layer, index = slice_of(dotted)
                layer = layers.find(dotted_layer)
            if layer is None:
                missing[module] = dotted
                continue
            first = taken.setdefault((layer[0], index), module)
            if first != module:
                self.problems.append(f"{module}: renamed to the same path as {first!r}")
            places[module] = _Place(*layer, index)
            self._layers[layer[0]] = layer[1]
        if not places:
            raise PeftFormatError(
                both_sides(modules, layers) if modules else "The PEFT adapter holds no tensors."
            )
        self.problems += not_found(missing, layers)
        return places

    def _layout(self, module: str, place: _Place, layers: Layers) -> Layout | None:
        """The layout of the layer for `module`; a problem if it cannot carry an adapter."""
        layer, where = place.layer, f"{show_path(module)}: the layer at {show_path(place.path)!r}"
        layout = layout_of(layer)
        norm = layers.in_norm.get(place.path)
        if not self.config.is_target(module):
            self.problems.append(
                f"{show_path(module)}: adapter_config.json does not target it (see target_modules, "
                "exclude_modules, layers_to_transform, modules_to_save), so that PEFT would leave "
                "its tensors out"
            )
        elif is_wrapper(layer):
            self.problems.append(
                f"{where} carries a {type(layer).__name__} already. Call merge_lora or unwrap_lora "
                "first"
            )
        elif norm is not None:
            self.problems.append(
                f"{where} is inside the norm at {norm!r}, which takes its weight apart again"
            )
        elif layout is None:
            self.problems.append(
                f"{where} is a {type(layer).__name__}; PEFT's tensors fit linear layers, "
                "convolutions and embeddings"
            )
        else:
            return layout
        return None

    def _adapt(self, path: str, slices: Mapping[Index, Held]) -> None:
        """Add the adapter of one layer, from one for each layer of its stack."""
        layer = self._layers[path]
        variant = next(iter(slices.values())).variant
        cls = self._adapter_class(variant, layer, path)
        if cls is None:
            return
        ndim = cls.stack_ndim(layer)
        stack = layer.weight.shape[:ndim]
        problem = stack_problem(slices, stack)
        if problem is not None:
            self.problems.append(f"{show_path(path)}: {problem}")
            return
        ordered = [slices[index] for index in np.ndindex(*stack)]
        self.problems += self.arrays.change_bias(
            path, layer, stacked([one.bias for one in ordered], stack)
        )
        state = stacked([one.state for one in ordered], stack)
        # What JAX cannot hold in 64 bits, it holds in 32.
        arrays = {
            name: jnp.asarray(value, jax.dtypes.canonicalize_dtype(value.dtype))
            for name, value in state.items()
        }
        form = LayerForm.of(layer, ndim)
        rank, alpha = ordered[0].rank, ordered[0].alpha
        self.adapters[path] = LooseAdapter(arrays, cls, rank, alpha, form)

    def _adapter_class(self, variant: str, layer: Any, path: str) -> type[LoRAWrapper] | None:
        asked: list[type[LoRAWrapper]] = []
        for cls in self._classes(variant):
            if cls.applies_to(layer):
                return cls
            asked.append(cls)
        reasons = [reason for cls in asked if (reason := cls.why_not(layer)) is not None]
        if not reasons and hasattr(layer, "num_embeddings"):
            raise PluginError(
                f"No adapter for the {type(layer).__name__} at {show_path(path)!r} is installed. "
                "Install them with\n    pip install jno-lora-embedding"
            )
        self.problems.append(
            f"{show_path(path)}: no adapter of the variant {variant!r} fits its "
            f"{type(layer).__name__}{': ' if reasons else ''}{'; '.join(reasons[:1])}"
        )
        return None

    def _classes(self, variant: str) -> Iterator[type[LoRAWrapper]]:
        """The classes of a variant. What is not asked for is not loaded.

        **Raises:** `PluginError` that says what to install, if the zoo is missing.
        """
        method = _METHODS[variant]
        yield from (self.registry.zoo_class(f"{method}{kind}") for kind in ("Linear", "Conv"))
        with contextlib.suppress(PluginError):
            yield self.registry.provided("jno-lora-embedding", f"{method}Embedding").cls
        yield from self.registry.resolve(variant)
