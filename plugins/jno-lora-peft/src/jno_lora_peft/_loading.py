"""The layers that PEFT's modules stand for, and an adapter for each of them."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jno.lora import LoRAWrapper, PeftFormatError, PluginError, Registry
from jno.lora.extending import bullets, layers_at, norms_around, show_path
from jno.lora.types import LayerForm, LooseAdapter
from jno_lora_zoo import IA3, DoRA, LoRA, rsLoRA

from ._arrays import Arrays, Index, show_index
from ._config import Config
from ._held import Held, held
from ._keys import Tensors
from ._layouts import Layout, layout_of
from ._names import Paths, Rename, dotted_path, slice_of
from ._updates import MisfitError

# The names of the methods that hold adapters of PEFT, by variant.
_METHODS = {method.variant: method.__name__ for method in (LoRA, rsLoRA, DoRA, IA3)}


# The place of a module of PEFT here: the path of a layer, and its index in a stack.
_Place = tuple[str, Index]


class Loading:
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
        """Fill `adapters` and `arrays`, or `problems`.

        **Raises:** `PeftFormatError` if the model has no modules, or none of those of the file.
        """
        places = self._places([*{**found.adapters, **found.plain}], Paths(model), rename)
        paths = {path for path, _ in places.values()}
        self._layers = layers_at(model, paths)
        self._norms = norms_around(model, paths)
        for module, arrays in found.plain.items():
            if module in places:
                path, index = places[module]
                self.problems += self.arrays.replace(path, self._layers[path], index, arrays)
        slices: dict[str, dict[Index, Held]] = {}
        for module, parts in found.adapters.items():
            layout = self._layout(module, places[module][0]) if module in places else None
            if layout is None:
                continue
            try:
                adapter = held(self.config, module, parts, found.shared, layout)
            except MisfitError as err:
                self.problems += [f"{show_path(module)}: {line}" for line in err.lines]
                continue
            path, index = places[module]
            slices.setdefault(path, {})[index] = adapter
        for path, adapters in slices.items():
            self._adapt(path, adapters)

    def _places(self, modules: list[str], paths: Paths, rename: Rename) -> dict[str, _Place]:
        if not paths.all:
            raise PeftFormatError("The model holds no Equinox modules to adapt.")
        places: dict[str, _Place] = {}
        missing: dict[str, str] = {}
        taken: dict[_Place, str] = {}
        for module in modules:
            dotted = dotted_path(module, rename)
            index: Index = ()
            path = paths.find(dotted)
            if path is None:
                dotted_layer, index = slice_of(dotted)
                path = paths.find(dotted_layer)
            if path is None:
                missing[module] = dotted
                continue
            places[module] = place = (path, index)
            first = taken.setdefault(place, module)
            if first != module:
                self.problems.append(f"{module}: renamed to the same path as {first!r}")
        if not places:
            raise PeftFormatError(
                paths.none_found(modules) if modules else "The PEFT adapter holds no tensors."
            )
        self.problems += paths.not_found(missing)
        return places

    def _layout(self, module: str, path: str) -> Layout | None:
        """The layout of the layer for `module`; a problem if it cannot carry an adapter."""
        layer = self._layers[path]
        layout = layout_of(layer)
        where = f"the layer at {show_path(path)!r}"
        if not self.config.is_target(module):
            problem = (
                "adapter_config.json does not target it (see target_modules, exclude_modules, "
                "layers_to_transform, modules_to_save), so that PEFT would leave its tensors out"
            )
        elif isinstance(layer, LoRAWrapper):
            problem = (
                f"{where} carries a {type(layer).__name__} already. Call merge_lora or unwrap_lora "
                "first"
            )
        elif path in self._norms:
            norm = show_path(self._norms[path])
            problem = f"{where} is inside the norm at {norm!r}, which takes its weight apart again"
        elif layout is None:
            problem = (
                f"{where} is a {type(layer).__name__}; PEFT's tensors fit linear layers, "
                "convolutions and embeddings"
            )
        else:
            return layout
        self.problems.append(f"{show_path(module)}: {problem}")
        return None

    def _adapt(self, path: str, slices: Mapping[Index, Held]) -> None:
        """Add the adapter of one layer, from one for each layer of its stack."""
        layer = self._layers[path]
        cls = self._adapter_class(next(iter(slices.values())).variant, layer, path)
        if cls is None:
            return
        ndim = cls.stack_ndim(layer)
        stack = layer.weight.shape[:ndim]
        problem = _stack_problem(slices, stack)
        if problem is not None:
            self.problems.append(f"{show_path(path)}: {problem}")
            return
        ordered = [slices[index] for index in np.ndindex(*stack)]
        changes = _stacked([one.bias for one in ordered], stack)
        self.problems += self.arrays.change_bias(path, layer, changes)
        # JAX holds 64-bit numbers in 32 bits, unless told otherwise.
        arrays = {
            name: jnp.asarray(value, jax.dtypes.canonicalize_dtype(value.dtype))
            for name, value in _stacked([one.state for one in ordered], stack).items()
        }
        rank, alpha = ordered[0].rank, ordered[0].alpha
        layer_form = LayerForm.of(layer, ndim)
        self.adapters[path] = LooseAdapter(arrays, cls, rank, alpha, layer_form)

    def _adapter_class(self, variant: str, layer: Any, path: str) -> type[LoRAWrapper] | None:
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
        self.problems.append(
            f"{show_path(path)}: no adapter of the variant {variant!r} fits its "
            f"{type(layer).__name__}{': ' if reasons else ''}{'; '.join(reasons[:1])}"
        )
        return None

    def _classes(self, variant: str) -> Iterator[type[LoRAWrapper]]:
        """The classes of a variant. No more plugins are loaded than somebody asks for.

        **Raises:** `PluginError` that says what to install, if the zoo is missing.
        """
        method = _METHODS[variant]
        yield from (self.registry.zoo_class(f"{method}{kind}") for kind in ("Linear", "Conv"))
        with contextlib.suppress(PluginError):
            yield self.registry.provided("jno-lora-embedding", f"{method}Embedding").cls
        yield from self.registry.resolve(variant)


def _stack_problem(slices: Mapping[Index, Held], stack: Index) -> str | None:
    """The reason why these are not the adapters of all layers of a stack, or of the one layer."""
    wanted = list(np.ndindex(*stack))
    if not stack and list(slices) != wanted:
        return "the model has one layer there, not a stack with an index"
    lines = [f"{show_index(index)}: not in the file" for index in wanted if index not in slices]
    lines += [f"{show_index(index)}: not in the model" for index in slices if index not in wanted]
    if lines:
        return (
            f"the model has a stack of {' x '.join(map(str, stack))} layers there. Each must be in "
            f"the file, and needs an index by `rename`, such as '[{show_index(wanted[0])}]':\n"
            f"{bullets(lines, 4)}"
        )
    scales = sorted({(one.rank, one.alpha) for one in slices.values()})
    if len(scales) > 1:
        shown = ", ".join(f"rank {rank} with alpha {alpha:g}" for rank, alpha in scales)
        return f"the layers of a stack need one rank and alpha, but these have {shown}"
    return None


def _stacked(slices: list[Mapping[str, np.ndarray]], stack: Index) -> dict[str, np.ndarray]:
    """The arrays of the layers of a stack, in its order, as arrays of the stack."""
    return {
        name: np.stack([one[name] for one in slices]).reshape(*stack, *slices[0][name].shape)
        for name in slices[0]
    }
