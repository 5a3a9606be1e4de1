"""Loading PEFT's files: adapters around the layers of a model."""

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import PyTree

from jno.lora import AdapterSet, LoRAWrapper, PeftFormatError, Registry
from jno.lora.extending import (
    bullets,
    default_registry,
    expect_model,
    norms_around,
    put_around,
    show_path,
    warn,
)
from jno.lora.types import LayerForm, LooseAdapter

from ._arrays import Arrays
from ._classes import adapter_class
from ._config import Config
from ._files import Directory, Tensors, by_module, not_finite, read
from ._heads import check_head, heads_of_tables, tied_heads
from ._layouts import Layout, Shape, layout_of
from ._loaded import Source
from ._module import Converted, Module
from ._names import Paths, Place, Rename, dotted_path
from ._stacks import check_stack, on_device, stacked
from ._ties import Ties, modules_at
from ._types import TYPES
from ._untied import Untied, inner_path, is_table, untied
from ._updates import MisfitError, floating

M = TypeVar("M")


def load_peft(
    model: M,
    directory: Directory,
    *,
    rename: Rename = None,
    tied: bool | None = None,
    registry: Registry | None = None,
) -> M:
    """`model` with the adapter that PEFT saved into `directory`.

    A type that the zoo has a method for becomes that method's adapters, in float32 at least; other
    types whose law is one of the weight become LoRA with the same update, of the rank that this
    takes. The page "Coming from PEFT" lists them. The outputs are PEFT's. An adapter without an
    exact equivalent here is an error.

    Trained biases, the modules of `modules_to_save` and trained rows of embeddings take the place
    of the model's own arrays, in the dtype of the model. So does a bias that PEFT changes by its
    adapter (`lora_bias`, BEFT): `unwrap_lora` does not bring the former one back.

    An adapter of PEFT on an embedding acts on lookups, and not on an output head that is tied to
    the embedding, unless the file says `ensure_weight_tying`. If a head may read the table, the
    embedding becomes an `Untied` that holds the adapter, and the head reads the plain table.

    **Arguments:**

    - `model`: any pytree, adapted or not. Its layers are found by PEFT's names for them, with
        slashes for dots.
    - `directory`: with `adapter_config.json` and `adapter_model.safetensors`.
    - `rename`: from PEFT's names of modules to the paths of layers here: a table of regular
        expressions and replacements, each used in turn on the slash-joined name, such as
        `{"^model/": ""}`, or a function of the dotted name. A path that ends in `[3]` is that layer
        of a stack; all layers of a stack must be there.
    - `tied`: whether an output head reads the table of the model's embedding. By default this is
        found out: by `eqx.nn.Shared`, by a head with a weight of its own, and by a
        `tie_word_embeddings` of the model or of its `config`. If nothing tells, a head may.
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
    loading = _Loading(config, default_registry(registry), Ties(model, tied))
    kind = TYPES[config.type]
    plain = loading.read(by_module(tensors, kind.parts, kind.shared), model, rename)
    if loading.problems:
        raise PeftFormatError(
            f"The {config.type} adapter does not fit the model:\n{bullets(loading.problems)}\n"
            "Nothing was loaded."
        )
    if lines := not_finite(tensors):
        warn(f"Tensors of {os.fspath(directory)!r} hold NaN or infinity:\n{bullets(lines)}")
    changed = loading.arrays.put_into(plain)
    return put_around(changed, AdapterSet(loading.adapters, loading.shared))


class _Loading:
    """The adapters and arrays of a file for one model, by path, and all problems."""

    def __init__(self, config: Config, registry: Registry, ties: Ties):
        self.config = config
        self.registry = registry
        self.problems: list[str] = []
        self.adapters: dict[str, LooseAdapter] = {}
        self.shared: dict[str, jax.Array] = {}
        self.arrays = Arrays()
        self._ties = ties
        # Heads that have the tensors of an embedding, which PEFT adapts without targeting them.
        self._heads: set[str] = set()
        self._layers: dict[str, Any] = {}
        self._norms: dict[str, str] = {}

    def read(self, found: Tensors, model: M, rename: Rename) -> M:
        """Fill `adapters`, `arrays` and `problems`, and return the model that they fit."""
        paths = Paths(model)
        found = self._without_tied_heads(found, paths, rename)
        heads = heads_of_tables(
            self.config, found, self._ties, lambda m: paths.find(dotted_path(m, rename)) is None
        )
        found = found.without(heads)
        places = self._places(found.modules, paths, rename)
        places = self._into_untied(places, model)
        # Arrays that lie in adapters: the embedding's table, which its head reads too, and biases.
        base = Arrays()
        self._replace(base, found.base, places)
        for module, named in found.rows.items():
            if module in places:
                path, index = places[module]
                rows, layer = self.config.rows(module), self._layers[path]
                self.problems += base.replace_rows(path, layer, index, rows, named["weight"])
        model = base.put_into(model, everywhere=True)
        tables = dict(heads.values())
        model = untied(model, {*self._tables_to_untie(found, places), *tables})
        for path, layer in modules_at(model, tables).items():
            self.problems += self.arrays.replace(path, layer, (), {"table": tables[path]})
        places = self._into_untied(places, model)
        self._norms = norms_around(model, self._layers)
        self._replace(self.arrays, found.plain, places)
        slices: dict[str, dict[Shape, Converted]] = {}
        for module, parts in found.adapters.items():
            if module not in places:
                continue
            path, index = places[module]
            with self._misfits_of(module):
                layout, layer = self._layout(module, path), self._layers[path]
                rank, alpha = self.config.rank(module), self.config.alpha(module)
                of = functools.partial(Module, module, self.config.values, rank, alpha)
                one = of(floating(parts), floating(found.shared), layer, index, layout)
                slices.setdefault(path, {})[index] = TYPES[self.config.type].read(one)
        for path, adapters in slices.items():
            with self._misfits_of(path):
                self._adapt(path, adapters)
        return model

    def _replace(
        self,
        arrays: Arrays,
        tensors: Mapping[str, Mapping[str, np.ndarray]],
        places: Mapping[str, Place],
    ) -> None:
        for module, named in tensors.items():
            if module in places:
                path, index = places[module]
                self.problems += arrays.replace(path, self._layers[path], index, named)

    def _without_tied_heads(self, found: Tensors, paths: Paths, rename: Rename) -> Tensors:
        """The tensors without those of heads that read the table of their embedding."""
        served: set[str] = set()
        for head in tied_heads(self.config, found):
            self._heads |= {*head}
            own = paths.find(dotted_path(head.module, rename))
            embedding = paths.find(dotted_path(head.embedding, rename))
            is_tied = embedding is not None and self._ties.of(embedding[0])
            if own is None or is_tied:
                served.add(head.module)
                with self._misfits_of(head.module):
                    check_head(self.config, head, found)
                    if embedding is not None and self._ties.is_untied(embedding[0]):
                        raise MisfitError(
                            "the file ties it to its embedding, which is untied in the model. Load "
                            "into the model as it was before"
                        )
        return found.without(served)

    def _tables_to_untie(self, found: Tensors, places: Mapping[str, Place]) -> set[str]:
        """The paths of embeddings that a head may read, and that PEFT changes for lookups only."""
        paths: set[str] = set()
        for module, (path, _) in places.items():
            changes = module in found.adapters or "weight" in found.plain.get(module, {})
            if not changes or module in self._heads or self._ties.of(path) is False:
                continue
            if module in found.adapters and self.config.ties_adapter_of(module):
                if self.config.variant == "dora":
                    self.problems.append(
                        f"{show_path(module)}: PEFT would tie a head to it with magnitudes of its "
                        "own. If no head reads its table, say tied=False"
                    )
            elif is_table(self._layers[path]):
                paths.add(path)
            elif not isinstance(self._layers[path], LoRAWrapper):
                self.problems.append(
                    f"{show_path(module)}: other layers read its weight through eqx.nn.Shared, and "
                    "PEFT changes this layer alone. Let the other layer hold the weight"
                )
        return paths

    def _into_untied(self, places: Mapping[str, Place], model: PyTree) -> dict[str, Place]:
        """The places, where that of an `Untied` is the embedding in it; their layers are kept."""
        layers = modules_at(model, {path for path, _ in places.values()})
        inner = {path: inner_path(path) for path, one in layers.items() if isinstance(one, Untied)}
        places = {m: (inner.get(path, path), index) for m, (path, index) in places.items()}
        self._layers = modules_at(model, {path for path, _ in places.values()})
        return places

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
        if module not in self._heads and not self.config.is_target(module):
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
        variant = next(iter(slices.values())).variant
        cls = None if variant is None else adapter_class(self.registry, variant, layer, path)
        ndim = len(next(iter(slices))) if cls is None else cls.stack_ndim(layer)
        stack = layer.weight.shape[:ndim]
        check_stack(slices, stack)
        ordered = [slices[index] for index in np.ndindex(*stack)]
        changes = stacked([one.bias for one in ordered], stack)
        source = None
        if cls is None and not stack:
            source = Source(self.config.type, {"beft_bias": changes["shift"][None]}, {})
        self.problems += self.arrays.change_bias(path, layer, changes, source)
        if cls is None:
            return
        arrays = on_device(stacked([one.state for one in ordered], stack))
        # The same for every module of the file.
        new = {n: x for n, x in ordered[0].shared.items() if n not in self.shared}
        self.shared |= on_device(new)
        rank, alpha = ordered[0].rank, ordered[0].alpha
        self.adapters[path] = LooseAdapter(arrays, cls, rank, alpha, LayerForm.of(layer, ndim))
