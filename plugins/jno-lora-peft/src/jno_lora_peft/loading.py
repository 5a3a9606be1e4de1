"""Load PEFT's files as adapters around the layers of a model."""

import contextlib
import functools
import os
import re
from collections.abc import Iterator, Mapping
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jno.lora import (
    AdapterSet,
    LayerForm,
    LooseAdapter,
    LoRAWrapper,
    PeftFormatError,
    Registry,
    SelectionError,
)
from jno.lora.extending import (
    bullets,
    default_registry,
    expect_model,
    map_adapters,
    modules_by_path,
    norms_around,
    put_around,
    show_path,
    warn,
)
from jno_lora_zoo import plain_layer

from .arrays import NewArrays, Place, Source
from .bases import warn_of_another_base
from .config import Config
from .errors import MisfitError, Problems
from .files import Directory, by_module, not_finite, read
from .hub import locate, tell_commit
from .layouts import NO_LAYER, Layout, Shape, layout_of
from .names import Rename, show_index
from .placement import Placement
from .ties import INNER, SHARED, Ties, Untied, is_table, with_untied
from .types.type import METHODS, ROUTED, Converted, Module, floating

M = TypeVar("M")


def load_peft(
    model: M,
    directory: Directory,
    *,
    revision: str | None = None,
    rename: Rename = None,
    tied: bool | None = None,
    registry: Registry | None = None,
    prove: bool = False,
) -> M:
    """`model` with the adapter that PEFT saved into `directory`.

    If the zoo has a method for the type, the adapters become this method's, in at least float32.
    Other types that update the weight become LoRA with the same update and a sufficient rank. The
    page "PEFT's types" lists them. The outputs equal PEFT's. An adapter without an exact
    equivalent here is an error.

    Arrays of fused experts (`target_parameters`) are declared arrays here (`jno_lora_arrays`), or
    stacks whose last axis runs over the experts.

    Trained biases, the modules of `modules_to_save` and trained rows of embeddings replace arrays
    of the model, in the dtype of the model. So does a bias that PEFT's adapter changes
    (`lora_bias`, BEFT), which `unwrap_lora` does not restore.

    In PEFT, an adapter on an embedding acts on lookups, but not on a tied output head, unless the
    file sets `ensure_weight_tying`. If a head may read the table, the embedding becomes an `Untied`
    around the adapter, and the head reads the plain table.

    **Arguments:**

    - `model`: any pytree, adapted or not. Its layers are found by PEFT's names, with slashes for
        dots.
    - `directory`: a directory with `adapter_config.json` and `adapter_model.safetensors`; or, if
        there is no such directory, `"organisation/name"`, a Hugging Face Hub repository with these
        two files. `huggingface_hub` (`jno-lora[hub]`) downloads the files once, and uses its cache,
        its token and its offline mode.
    - `revision`: a branch, a tag or a commit of the repository; by default its main branch. Both
        files are from the same commit, which is printed to standard error unless `revision` is this
        commit.
    - `rename`: from PEFT's names of modules to the paths of layers here: a table of regular
        expressions and replacements, each used in turn on the slash-joined name, such as
        `{"^model/": ""}`, or a function of the dotted name. A path that ends in `[3]` is layer 3
        of a stack; all layers of a stack must be there.
    - `tied`: whether an output head reads the table of the model's embedding. By default,
        `load_peft` looks at `eqx.nn.Shared`, at a head with its own weight, and at a
        `tie_word_embeddings` of the model or of its `config`. If these leave it open, a head is
        assumed to read it.
    - `registry`: where to look up adapter classes instead of the installed plugins. Plugins other
        than the zoo are loaded only for layers that the zoo does not adapt.
    - `prove`: whether to call the model on the inputs of the proof in the directory (see
        `save_peft`), and raise a `CheckpointError` if the adapters do not compute what they
        computed there. Needs `jno-lora[proof]`.

    **Returns:** the model with the adapters around its layers. Existing adapters stay. As in PEFT,
    the model is ready for inference: LoRA has the file's dropout, switched off. To train the
    adapters further, call `Net(model).train_adapters()`, and for the dropout
    `eqx.nn.inference_mode(model, value=False)`. Dropout that an adapter lacks (DoRA), tensors with
    NaN or infinity, and another base (of a file of `save_peft`) cause a `JnoLoraWarning`.

    **Raises:** `PeftFormatError` for files that are damaged, have no exact equivalent here, do not
    fit the model, or (without `rename`) lack tensors of a layer that the configuration names
    (everything at once), or a repository that cannot be read; `SelectionError`
    for a bad `rename`, a `Net`, two places with the same path, an adapter that cannot be built, or
    a `revision` with a directory; `PluginError` if a plugin is missing; `MissingLibraryError` for a
    repository without `huggingface_hub`.
    """
    expect_model(model, "load_peft")
    plain_layers = modules_by_path(model)
    folder, commit = locate(directory, revision, Config.parse)
    settings, tensors = read(folder)
    if commit is not None:
        tell_commit(directory, commit, revision)
    config = Config.parse(settings)
    sorted_tensors = by_module(tensors, config.type.tensors, config.type.shared)
    try:
        placement = Placement(model, config, sorted_tensors, rename, Ties(model, tied))
        model, places = _with_arrays(model, placement)
        model, adapters = _with_adapters(model, places, placement, default_registry(registry))
    except re.error as err:
        raise PeftFormatError(
            f"{err.pattern!r}, of adapter_config.json or in a replacement of `rename`, is not a "
            f"valid regular expression: {err}"
        ) from err
    title = f"The {config.type.name} adapter does not fit the model"
    placement.problems.refuse(title, "Nothing was loaded.")
    brought = placement.tensors.base  # arrays of adapted layers that the file brings itself
    paths = {n: p for n, (p, i) in placement.places.items() if not i and n not in brought}
    weights = {name: getattr(plain_layers[path], "weight", None) for name, path in paths.items()}
    warn_of_another_base(folder, weights)
    if lines := not_finite(tensors):
        warn(f"Tensors of {os.fspath(directory)!r} hold NaN or infinity:\n{bullets(lines)}")
    adapted = _with_dropout(put_around(model, adapters), adapters, config)
    if prove:
        names = {f"{p}[{show_index(i)}]" if i else p: name for name, (p, i) in places.items()}
        default_registry(registry).proofs().check(adapted, folder, names)
    return adapted


def _with_dropout(model: M, adapters: AdapterSet, config: Config) -> M:
    """`model` with the file's dropout, switched off, in its adapters. PEFT skips embeddings."""
    dropouts = {name: p for name, p in config.settings.items() if name.endswith("dropout") and p}
    if not dropouts:
        return model
    p = dropouts.get("lora_dropout") if config.type.name == "LORA" else None
    lacking: dict[str, None] = {}

    def add(path: str, adapter: LoRAWrapper) -> LoRAWrapper:
        layout = layout_of(adapter.base) if path in adapters.adapters else None
        if layout is None or layout.kind == "embedding":
            return adapter
        if p is None or "dropout" not in vars(adapter):
            lacking[type(adapter).__name__] = None
            return adapter
        dropout = eqx.nn.Dropout(p, inference=True)
        return eqx.tree_at(lambda x: x.dropout, adapter, dropout, is_leaf=lambda x: x is None)

    model = map_adapters(add, model)
    if lacking:
        settings = ", ".join(f"{name}={value}" for name, value in dropouts.items())
        warn(
            f"adapter_config.json sets {settings}, which acts only in training. "
            f"{', '.join(lacking)} has no dropout. Closest is an `eqx.nn.Dropout` before the layer."
        )
    return model


def _with_arrays(model: M, placement: Placement) -> tuple[M, dict[str, Place]]:
    """`model` with the arrays of a file, and where the file's modules are in the model."""
    config, tensors, problems = placement.config, placement.tensors, placement.problems
    # A head keeps the table that PEFT changes only for lookups, or gets the saved table.
    model = with_untied(model, {*_tables_to_untie(model, placement), *placement.tables})
    layers = modules_by_path(model)
    untied = [path for path, layer in layers.items() if isinstance(layer, Untied)]
    inside = {path: f"{path}/{INNER}".removeprefix("/") for path in untied}
    places = {name: (inside.get(path, path), i) for name, (path, i) in placement.places.items()}
    arrays = NewArrays(model, problems)
    for module, place in places.items():
        if module in tensors.base:
            arrays.replace(place, tensors.base[module])
        if module in tensors.rows:
            arrays.replace_rows(place, config.rows(module), tensors.rows[module]["weight"])
    # A head that reads the table of an adapted embedding also gets the new arrays.
    model = arrays.put_into(model, everywhere=True)
    arrays = NewArrays(model, problems)
    for path, table in placement.tables.items():
        arrays.replace((path, ()), {"table": table})
    for module, place in places.items():
        if module in tensors.plain:
            arrays.replace(place, tensors.plain[module])
    return arrays.put_into(model), places


def _tables_to_untie(model: PyTree, placement: Placement) -> set[str]:
    """The paths of embeddings that a head may read and that PEFT changes only for lookups."""
    paths: set[str] = set()
    layers, problems = modules_by_path(model), placement.problems
    for module, (path, _) in placement.places.items():
        is_adapted = module in placement.tensors.adapters
        changes = is_adapted or "weight" in placement.tensors.plain.get(module, {})
        if not changes or module in placement.untargeted or placement.ties.of(path) is False:
            continue
        if is_adapted and placement.config.ties_adapter_of(module):
            if placement.config.settings.get("use_dora"):
                problems.append(
                    f"{show_path(module)}: PEFT would tie a head to it with magnitudes of its own. "
                    "If no head reads its table, say tied=False"
                )
        elif is_table(layers[path]):
            paths.add(path)
        elif not isinstance(layers[path], LoRAWrapper):
            problems.append(f"{show_path(module)}: {SHARED}")
    return paths


def _with_adapters(
    model: M, places: Mapping[str, Place], placement: Placement, registry: Registry
) -> tuple[M, AdapterSet]:
    """`model` with the biases that PEFT's adapters change, and the adapters of a file."""
    config, problems = placement.config, placement.problems
    layers = modules_by_path(model)
    biases, norms = NewArrays(model, problems), norms_around(model, layers)
    by_path: dict[str, dict[Shape, Converted]] = {}
    shared = functools.cache(lambda: floating(placement.tensors.shared))
    for module, tensors in placement.tensors.adapters.items():
        if module not in places:
            continue
        path, index = places[module]
        with problems.of(show_path(module)):
            if module not in placement.untargeted and not config.is_target(module):
                raise MisfitError("adapter_config.json does not target it, so PEFT would ignore it")
            layer, rank, alpha = layers[path], config.rank(module), config.alpha(module)
            layout, arrays = checked_layout(layer, path, norms), floating(tensors)
            layout.check_kind(config.type.layers)
            plain = plain_layer(layer)
            m = Module(module, config.settings, rank, alpha, arrays, shared(), plain, index, layout)
            converted = config.type.read(m)
            if converted.bias_shift is not None:
                is_all = converted.variant is None and not index
                source = Source({"peft_type": config.type.name}, tensors) if is_all else None
                biases.shift_bias((path, index), converted.bias_shift, source)
            if converted.variant is not None:
                by_path.setdefault(path, {})[index] = converted
    adapters = build_adapters(by_path, layers, registry, problems)
    return biases.put_into(model), adapters


def checked_layout(layer: eqx.Module, path: str, norms: Mapping[str, str]) -> Layout:
    """The layer's layout. **Raises:** `MisfitError` if the layer cannot be adapted."""
    name = type(layer).__name__
    if isinstance(layer, LoRAWrapper):
        raise MisfitError(f"its layer carries a {name} already. Call merge_lora or unwrap_lora")
    if path in norms:
        norm = show_path(norms[path])
        raise MisfitError(f"its layer is inside the norm at {norm!r}, which computes the weight")
    layout = layout_of(layer)
    if layout is None:
        raise MisfitError(NO_LAYER.format(name))
    return layout


def build_adapters(
    by_path: Mapping[str, Mapping[Shape, Converted]],
    layers: Mapping[str, eqx.Module],
    registry: Registry,
    problems: Problems,
) -> AdapterSet:
    """Adapters by path, joined from the adapters of single layers by their stack indices."""
    adapters: dict[str, LooseAdapter] = {}
    shared: dict[str, jax.Array] = {}
    for path, by_index in by_path.items():
        with problems.of(show_path(path)):
            layer, first = layers[path], next(iter(by_index.values()))
            cls = _adapter_class(registry, str(first.variant), layer)
            ndim = cls.stack_ndim(layer)
            stack = plain_layer(layer).weight.shape[:ndim]
            states = [adapter.state for adapter in _in_order(by_index, stack)]
            arrays = {
                name: jnp.asarray(
                    np.stack([x[name] for x in states]).reshape((*stack, *array.shape))
                )
                for name, array in states[0].items()
            }
            # The same arrays serve every module of the file.
            shared |= {n: jnp.asarray(x) for n, x in first.shared.items() if n not in shared}
            form = LayerForm.of(layer, ndim)
            adapters[path] = LooseAdapter(arrays, cls, first.rank, first.alpha, form)
    return AdapterSet(adapters, shared)


def _adapter_class(registry: Registry, variant: str, layer: eqx.Module) -> type[LoRAWrapper]:
    """The class that fits. **Raises:** `MisfitError`; `PluginError` if a plugin is missing."""
    reasons: list[str] = []
    for cls in _classes(registry, variant):
        if cls.applies_to(layer):
            return cls
        reasons += filter(None, [cls.why_not(layer)])
    reason = f": {reasons[0]}" if reasons else ""
    raise MisfitError(f"no adapter {variant!r} fits its {type(layer).__name__}{reason}")


def _classes(registry: Registry, variant: str) -> Iterator[type[LoRAWrapper]]:
    """The classes of a variant. A plugin is loaded only when no earlier class fits."""
    if variant in ROUTED:
        yield from registry.resolve(f"jno-lora-routed:{ROUTED[variant]}")
        return
    method = METHODS[variant].__name__
    of_zoo = [f"jno-lora-zoo:{method}{kind}" for kind in ("Linear", "Conv", "Embedding")]
    for name in (*of_zoo, variant, f"{variant}-embedding"):
        with contextlib.suppress(SelectionError):  # a registry may lack the name
            yield from registry.resolve(name)


def _in_order(adapters: Mapping[Shape, Converted], stack: Shape) -> list[Converted]:
    """The adapters of a stack, in order. **Raises:** `MisfitError` if they do not form a stack."""
    indices = list(np.ndindex(*stack))
    if not stack and list(adapters) != indices:
        raise MisfitError("the model has one layer there, not a stack with an index")
    lines = [f"{show_index(i)}: not in the file" for i in indices if i not in adapters]
    lines += [f"{show_index(i)}: not in the model" for i in adapters if i not in indices]
    if lines:
        raise MisfitError(
            f"the model has a stack of {' x '.join(map(str, stack))} layers there. Each must be in "
            f"the file, and needs an index, such as '[0]', by `rename`:\n{bullets(lines, 4)}"
        )
    scales = sorted({(adapter.rank, adapter.alpha) for adapter in adapters.values()})
    if len(scales) > 1:
        shown = ", ".join(f"rank {rank} with alpha {alpha:g}" for rank, alpha in scales)
        raise MisfitError(f"the layers of a stack need one rank and alpha, but these have {shown}")
    return [adapters[index] for index in indices]
