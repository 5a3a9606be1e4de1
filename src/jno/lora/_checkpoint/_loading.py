"""From a file to adapters around the layers of a model."""

import itertools
import os
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, TypeVar

from jaxtyping import PyTree

from .._contract import Handle, LoRAWrapper, expect_model
from .._errors import CheckpointError, SelectionError, reason_of, warn
from .._paths import bullets, show_path
from .._registry import Registry, default_registry
from .._sets import built_around, misfits, shared_by_others
from .._shared_arrays import names_shared_in, put_shared, shared_arrays, uses_shared
from .._tree import layers_at, nested_with, replace_layers
from ._base_values import known_layers, same_values
from ._container import FilePath
from ._reading import Classes, adapters_in, read, refuse, warn_of_non_finite

M = TypeVar("M")

# The type of `strict=`.
Strict: TypeAlias = bool | Literal["values"]


def load_adapters(
    model: M,
    path: FilePath,
    *,
    strict: Strict = True,
    wrappers: Classes = (),
    registry: Registry | None = None,
) -> M:
    """`model` with the adapters of a file around its layers.

    Initialisers do not run. An adapter of the file replaces the one that its layer carries; layers
    that the file does not name stay as they are. Arrays go onto the mesh of their layers.

    **Arguments:**

    - `model`: the model that the adapters were made for (layers of the same shapes at the same
        paths, in any precision), or a `Net` of it, which is changed and returned.
    - `path`: of a file that `save_adapters` wrote.
    - `strict`: whether all adapters must fit. If not, those that do are loaded, and a
        `JnoLoraWarning` lists the others. `"values"`: the layers must also have the values that the
        adapters were made for, and it must be possible to compare them (see `save_adapters`).
    - `wrappers`: one class or several. All others come from the plugin that the file names.
    - `registry`: where that plugin is looked up, instead of among the installed ones.

    **Returns:** the adapted model (or the `Net`). NaN, infinity and, unless `strict` is "values",
    layers of other values than those that the adapters were made for only cause a `JnoLoraWarning`.

    **Raises:** `CheckpointError` if the file is damaged, a plugin is missing or older than the one
    that wrote it, or something does not fit the model: everything is listed at once. `WrapperError`
    if one of `wrappers` is not an adapter class, `SelectionError` if two have one name.
    """
    if isinstance(model, Handle):
        net: Any = model
        return net.load_adapters(path, strict=strict, wrappers=wrappers, registry=registry)
    expect_model(model, "load_adapters")
    registry = default_registry(registry)
    loaded = load(model, path, wrappers, registry, strict=strict)
    return with_loaded(model, loaded)


def with_loaded(model: M, loaded: Mapping[str, LoRAWrapper]) -> M:
    """`model` with these adapters, by path, in the places of those that it carries there."""
    return put_shared(replace_layers(model, loaded), shared_arrays(model))


def load(
    model: PyTree,
    path: FilePath,
    wrappers: Classes,
    registry: Registry,
    *,
    strict: Strict,
    plain: PyTree | None = None,
    originals: Mapping[str, Any] | None = None,
) -> dict[str, LoRAWrapper]:
    """The adapters of a file around the layers of `model`, by path: all, or those that fit.

    - `plain`: the same model without adapters, whose layers the loaded adapters get.
    - `originals`: layers that were adapted and are known bit for bit, by path.
    """
    if not isinstance(strict, bool) and strict != "values":
        raise SelectionError(f"`strict` must be True, False or 'values', but is {strict!r}.")
    contents = read(path)
    adapters, problems = adapters_in(contents, wrappers, registry)
    try:
        layers = layers_at(model if plain is None else plain, adapters)
        unfit = misfits(model, adapters) | nested_with(model, adapters)
    except SelectionError as err:
        raise CheckpointError(f"{os.fspath(path)!r} cannot be loaded: {err}") from err
    problems |= dict.fromkeys(itertools.chain(*unfit.values()))
    known = known_layers(model, adapters.adapters.keys() - unfit, originals)
    compared = same_values(contents.configuration.entries, known)
    others = [name for name, is_same in compared.items() if not is_same]
    if strict == "values":
        unknown = [it for it in adapters if it not in unfit and it not in compared]
        problems |= dict.fromkeys(f"{show_path(name)}: {_OTHER_VALUES}" for name in others)
        problems |= dict.fromkeys(f"{show_path(name)}: {_UNKNOWN_VALUES}" for name in unknown)
    clash = shared_by_others(model, adapters) & adapters.shared.keys()
    for name in sorted(clash):
        line = f"the model's other adapters share an array {name!r} already, and the file holds one"
        problems[f"{line}: unwrap them first"] = None
    built: dict[str, LoRAWrapper] = {}
    # Nothing is built for a file that is refused anyway.
    fitting = [] if strict and problems else [path for path in adapters if path not in unfit]
    for name in fitting:
        try:
            built[name] = built_around(layers[name], adapters[name])
        except Exception as err:
            cls = adapters[name].wrapper.__name__
            problems[f"{show_path(name)}: could not restore the {cls}: {reason_of(err)}"] = err
    try:
        shared = {name: array for name, array in adapters.shared.items() if name not in clash}
        users = {name for name, it in built.items() if names_shared_in(it) & clash}
        built = put_shared({k: it for k, it in built.items() if k not in users}, shared)
    except SelectionError as err:  # an array is missing, or too small
        problems |= {f"{err}": err}
        built = {name: it for name, it in built.items() if not uses_shared(it)}
    if strict:
        advice = "The model is as it was. With strict=False, the adapters that fit are loaded."
        if strict == "values":
            advice += " Other values are only a warning then, and with strict=True."
        refuse(problems, path, "does not fit this model", advice)
    warn_of_non_finite(path, contents, built)
    others = [show_path(name) for name in others if name in built]
    if others:
        warn(
            f"Adapters of {os.fspath(path)!r} were loaded onto another base, where they compute "
            f"something else. At these paths, {_OTHER_VALUES}:\n{bullets(others)}\n"
            "Load them onto the model that they were trained on. strict='values' raises here."
        )
    if problems:
        warn(
            f"{len(built)} of {len(contents.configuration.entries)} adapters of "
            f"{os.fspath(path)!r} were loaded. The others were left out:\n{bullets(problems)}"
        )
    return built


_OTHER_VALUES = "the layer has other values than the one that the adapter was made for"
_UNKNOWN_VALUES = (
    "the values of the layer cannot be compared: the file has no hash of them (save it again by "
    "save_adapters(..., base_values=model)), or the layer is in another precision or has no values"
)
