"""Loading PEFT's files: adapters around the layers of a model."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jno.lora import AdapterSet, LoRAWrapper, PeftFormatError, PluginError, Registry
from jno.lora.extending import (
    bullets,
    default_registry,
    expect_model,
    layers_at,
    norms_around,
    put_around,
    show_path,
    warn,
)
from jno.lora.types import LayerForm, LooseAdapter

from ._arrays import Arrays
from ._config import Config
from ._converted import Converted, convert
from ._files import Directory, Tensors, by_module, not_finite, read
from ._layouts import METHODS, Layout, Shape, layout_of
from ._names import Paths, Place, Rename, dotted_path, show_index
from ._updates import MisfitError

M = TypeVar("M")


def load_peft(
    model: M, directory: Directory, *, rename: Rename = None, registry: Registry | None = None
) -> M:
    """`model` with the adapter that PEFT saved into `directory`.

    LoRA, rsLoRA, DoRA and IA³ that scales outputs become the adapters of those names; VeRA,
    AdaLoRA, LoHa and LoKr become LoRA with the same update, of the rank that this takes, in float32
    at least. The outputs are PEFT's. An adapter without an exact equivalent here is an error.

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

    **Raises:** `PeftFormatError` for files that are damaged, have no exact equivalent here, or do
    not fit the model (everything at once); `SelectionError` for a bad `rename`, a `Net`, two places
    of one path, or an adapter that cannot be built; `PluginError` if a plugin is missing.
    """
    expect_model(model, "load_peft")
    values, tensors = read(directory)
    config = Config.parse(values)
    loading = _Loading(config, default_registry(registry))
    loading.read(by_module(tensors, config.type), model, rename)
    if loading.problems:
        raise PeftFormatError(
            f"The {config.type} adapter does not fit the model:\n{bullets(loading.problems)}\n"
            "Nothing was loaded."
        )
    if lines := not_finite(tensors):
        warn(f"Tensors of {os.fspath(directory)!r} hold NaN or infinity:\n{bullets(lines)}")
    changed = loading.arrays.put_into(model)
    return put_around(changed, AdapterSet(loading.adapters))


class _Loading:
    """The adapters and arrays of a file for one model, by path, and all problems."""

    def __init__(self, config: Config, registry: Registry):
        self.config = config
        self.registry = registry
        self.problems: list[str] = []
        self.adapters: dict[str, LooseAdapter] = {}
        self.arrays = Arrays()
        self._layers: dict[str, Any] = {}
        self._norms: dict[str, str] = {}

    def read(self, found: Tensors, model: PyTree, rename: Rename) -> None:
        """Fill `adapters`, `arrays` and `problems`."""
        places = self._places([*{**found.adapters, **found.plain}], Paths(model), rename)
        paths = {path for path, _ in places.values()}
        self._layers = layers_at(model, paths)
        self._norms = norms_around(model, paths)
        for module, arrays in found.plain.items():
            if module in places:
                path, index = places[module]
                self.problems += self.arrays.replace(path, self._layers[path], index, arrays)
        slices: dict[str, dict[Shape, Converted]] = {}
        for module, parts in found.adapters.items():
            if module not in places:
                continue
            path, index = places[module]
            with self._misfits_of(module):
                layout = self._layout(module, path)
                adapter = convert(self.config, module, parts, found.shared, layout)
                slices.setdefault(path, {})[index] = adapter
        for path, adapters in slices.items():
            with self._misfits_of(path):
                self._adapt(path, adapters)

    @contextlib.contextmanager
    def _misfits_of(self, place: str) -> Iterator[None]:
        try:
            yield
        except MisfitError as err:
            self.problems += [f"{show_path(place)}: {line}" for line in err.args]

    def _places(self, modules: list[str], paths: Paths, rename: Rename) -> dict[str, Place]:
        if not paths.all:
            raise PeftFormatError("The model holds no Equinox modules to adapt.")
        places: dict[str, Place] = {}
        missing: dict[str, str] = {}
        taken: dict[Place, str] = {}
        for module in modules:
            dotted = dotted_path(module, rename)
            place = paths.find(dotted)
            if place is None:
                missing[module] = dotted
                continue
            places[module] = place
            first = taken.setdefault(place, module)
            if first != module:
                self.problems.append(f"{module}: renamed to the same path as {first!r}")
        if not places:
            raise PeftFormatError(
                paths.none_found(modules) if modules else "The PEFT adapter holds no tensors."
            )
        self.problems += paths.not_found(missing)
        return places

    def _layout(self, module: str, path: str) -> Layout:
        layer = self._layers[path]
        layout = layout_of(layer)
        where = f"the layer at {show_path(path)!r}"
        if not self.config.is_target(module):
            raise MisfitError(
                "adapter_config.json does not target it (see target_modules, exclude_modules, "
                "layers_to_transform, modules_to_save), so that PEFT would leave its tensors out"
            )
        if isinstance(layer, LoRAWrapper):
            raise MisfitError(
                f"{where} carries a {type(layer).__name__} already. Call merge_lora or unwrap_lora "
                "first"
            )
        if path in self._norms:
            norm = show_path(self._norms[path])
            raise MisfitError(
                f"{where} is inside the norm at {norm!r}, which takes its weight apart again"
            )
        if layout is None:
            raise MisfitError(
                f"{where} is a {type(layer).__name__}; PEFT's tensors fit linear layers, "
                "convolutions and embeddings"
            )
        return layout

    def _adapt(self, path: str, slices: Mapping[Shape, Converted]) -> None:
        layer = self._layers[path]
        cls = self._adapter_class(next(iter(slices.values())).variant, layer, path)
        ndim = cls.stack_ndim(layer)
        stack = layer.weight.shape[:ndim]
        _check_stack(slices, stack)
        ordered = [slices[index] for index in np.ndindex(*stack)]
        changes = _stacked([one.bias for one in ordered], stack)
        self.problems += self.arrays.change_bias(path, layer, changes)
        # JAX holds 64-bit numbers in 32 bits, unless told otherwise.
        arrays = {
            name: jnp.asarray(value, jax.dtypes.canonicalize_dtype(value.dtype))
            for name, value in _stacked([one.state for one in ordered], stack).items()
        }
        rank, alpha = ordered[0].rank, ordered[0].alpha
        self.adapters[path] = LooseAdapter(arrays, cls, rank, alpha, LayerForm.of(layer, ndim))

    def _adapter_class(self, variant: str, layer: Any, path: str) -> type[LoRAWrapper]:
        reasons: list[str] = []
        for cls in self._classes(variant):
            if cls.applies_to(layer):
                return cls
            reasons += filter(None, [cls.why_not(layer)])
        if not reasons and hasattr(layer, "num_embeddings"):
            raise PluginError(
                f"No adapter for the {type(layer).__name__} at {show_path(path)!r} is installed. "
                "Install them with\n    pip install jno-lora-embedding"
            )
        raise MisfitError(
            f"no adapter of the variant {variant!r} fits its {type(layer).__name__}"
            f"{': ' if reasons else ''}{'; '.join(reasons[:1])}"
        )

    def _classes(self, variant: str) -> Iterator[type[LoRAWrapper]]:
        """The classes of a variant. No more plugins are loaded than somebody asks for."""
        method = METHODS[variant].__name__
        yield from (self.registry.zoo_class(f"{method}{kind}") for kind in ("Linear", "Conv"))
        with contextlib.suppress(PluginError):
            yield self.registry.provided("jno-lora-embedding", f"{method}Embedding").cls
        yield from self.registry.resolve(variant)


def _check_stack(slices: Mapping[Shape, Converted], stack: Shape) -> None:
    """**Raises:** `MisfitError` unless each layer of the stack has an adapter, all of one scale."""
    wanted = list(np.ndindex(*stack))
    if not stack and list(slices) != wanted:
        raise MisfitError("the model has one layer there, not a stack with an index")
    lines = [f"{show_index(index)}: not in the file" for index in wanted if index not in slices]
    lines += [f"{show_index(index)}: not in the model" for index in slices if index not in wanted]
    if lines:
        raise MisfitError(
            f"the model has a stack of {' x '.join(map(str, stack))} layers there. Each must be in "
            f"the file, and needs an index by `rename`, such as '[{show_index(wanted[0])}]':\n"
            f"{bullets(lines, 4)}"
        )
    scales = sorted({(one.rank, one.alpha) for one in slices.values()})
    if len(scales) > 1:
        shown = ", ".join(f"rank {rank} with alpha {alpha:g}" for rank, alpha in scales)
        raise MisfitError(f"the layers of a stack need one rank and alpha, but these have {shown}")


def _stacked(slices: list[Mapping[str, np.ndarray]], stack: Shape) -> dict[str, np.ndarray]:
    """The arrays of the layers of a stack, in its order, as arrays of the stack."""
    return {
        name: np.stack([one[name] for one in slices]).reshape(*stack, *slices[0][name].shape)
        for name in slices[0]
    }
