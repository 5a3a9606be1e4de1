"""From a file to adapters around the layers of a model."""

import itertools
import os
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeAlias, TypeVar

from jaxtyping import PyTree

from .._contract import Handle, LoRAWrapper, expect_model
from .._errors import CheckpointError, SelectionError, reason_of, warn
from .._paths import bullets, show_path
from .._registry import Registry, default_registry
from .._sets import AdapterSet, built_around, misfits, shared_by_others
from .._shared_arrays import names_shared_in, put_shared, shared_arrays
from .._tree import layers_at, nested_with, replace_layers
from ._base_values import known_layers, same_values
from ._container import FilePath
from ._reading import (
    Classes,
    Contents,
    Problems,
    adapters_in,
    read,
    refuse,
    refuse_extension,
    warn_of_non_finite,
)

M = TypeVar("M")

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
    - `strict`: whether all adapters must fit. With `False`, those that fit are loaded, and a
        `JnoLoraWarning` lists the rest. With `"values"`, the layers must also have the values that
        the adapters were made for, and be comparable (see `save_adapters`).
    - `wrappers`: one class or several. Other classes come from the plugin that the file names.
    - `registry`: where that plugin is looked up, instead of among the installed plugins.

    **Returns:** the adapted model (or the `Net`). NaN and infinity only cause a `JnoLoraWarning`.
    So do other values of a layer, unless `strict` is `"values"`.

    **Raises:** `CheckpointError` if the file is damaged, a plugin is missing or older than the one
    that wrote it, or something does not fit the model: everything is listed at once. `WrapperError`
    if one of `wrappers` is not an adapter class, `SelectionError` if two have one name.
    """
    if isinstance(model, Handle):
        net: Any = model
        return net.load_adapters(path, strict=strict, wrappers=wrappers, registry=registry)
    expect_model(model, "load_adapters")
    loaded = load(model, path, wrappers, default_registry(registry), strict=strict)
    return with_loaded(model, loaded)


def with_loaded(model: M, loaded: Mapping[str, LoRAWrapper]) -> M:
    """`model` with these adapters, by path. They replace the adapters that it carries there."""
    return put_shared(replace_layers(model, loaded), shared_arrays(model))


def load(
    model: PyTree,
    file: FilePath,
    wrappers: Classes,
    registry: Registry,
    *,
    strict: Strict,
    plain: PyTree | None = None,
    originals: Mapping[str, Any] | None = None,
    contents: Contents | None = None,
) -> dict[str, LoRAWrapper]:
    """The adapters of a file around the layers of `model`, by path: all, or those that fit.

    - `plain`: the same model without adapters, whose layers the loaded adapters get.
    - `originals`: layers as they were before adapting, by path.
    - `contents`: of the file, if it has been read.
    """
    if not isinstance(strict, bool) and strict != "values":
        raise SelectionError(f"`strict` must be True, False or 'values', but is {strict!r}.")
    contents = read(file, accept=refuse_extension) if contents is None else contents
    adapters, problems = adapters_in(contents, wrappers, registry)
    try:
        layers = layers_at(model if plain is None else plain, adapters)
        misfit_lines = misfits(model, adapters) | nested_with(model, adapters)
    except SelectionError as err:
        raise CheckpointError(f"{os.fspath(file)!r} cannot be loaded: {err}") from err
    problems |= dict.fromkeys(itertools.chain(*misfit_lines.values()))
    fitting = [path for path in adapters if path not in misfit_lines]
    comparable = known_layers(model, fitting, originals)
    has_same_values = same_values(contents.configuration.entries, comparable)
    if strict == "values":
        problems |= _problems_of_values(fitting, has_same_values)
    clashes = shared_by_others(model, adapters) & adapters.shared.keys()
    problems |= dict.fromkeys(map(_CLASH.format, sorted(clashes)))
    # A file that is refused anyway builds nothing.
    loaded, failures = _build(adapters, [] if strict and problems else fitting, layers, clashes)
    problems |= failures
    if strict:
        advice = "The model is as it was."
        if contents.configuration.extension is None:  # an extension belongs to all adapters
            advice += " With strict=False, the adapters that fit are loaded."
        if strict == "values":
            advice += " With strict=True, other values are only a warning."
        refuse(problems, file, "does not fit this model", advice)
    warn_of_non_finite(file, contents, loaded)
    if differing := [show_path(path) for path in loaded if not has_same_values.get(path, True)]:
        warn(_OTHER_BASE.format(os.fspath(file), bullets(differing)))
    if problems:
        warn(
            f"{len(loaded)} of {len(contents.configuration.entries)} adapters of "
            f"{os.fspath(file)!r} were loaded. Left out:\n{bullets(problems)}"
        )
    return loaded


_OTHER_VALUES = "the layer has other values than the layer that the adapter was made for"
_OTHER_BASE = (
    "Adapters of {!r} were loaded onto another base, where they compute something else. At these "
    f"paths, {_OTHER_VALUES}:\n{{}}\n"
    "Load them onto the model that they were trained on. strict='values' raises here."
)
_UNKNOWN_VALUES = (
    "the values of the layer cannot be compared: the file has no hash of them (save it again by "
    "save_adapters(..., base_values=model)), or the layer is in another precision or has no values"
)
_CLASH = (
    "the model's other adapters share an array {!r} already, and the file holds one: unwrap "
    "them first"
)


def _problems_of_values(paths: Iterable[str], has_same_values: Mapping[str, bool]) -> Problems:
    differing = [path for path, is_same in has_same_values.items() if not is_same]
    unknown = [path for path in paths if path not in has_same_values]
    lines = [f"{show_path(path)}: {_OTHER_VALUES}" for path in differing]
    return dict.fromkeys(lines + [f"{show_path(path)}: {_UNKNOWN_VALUES}" for path in unknown])


def _build(
    adapters: AdapterSet, paths: Iterable[str], layers: Mapping[str, Any], clashes: set[str]
) -> tuple[dict[str, LoRAWrapper], Problems]:
    """The adapters that can be built, and get the arrays that they share; and the problems."""
    built: dict[str, LoRAWrapper] = {}
    problems: Problems = {}
    for path in paths:
        try:
            built[path] = built_around(layers[path], adapters[path])
        except Exception as err:  # a `from_state` may raise anything
            cls = adapters[path].wrapper.__name__
            problems[f"{show_path(path)}: could not restore the {cls}: {reason_of(err)}"] = err
    usable = {name: array for name, array in adapters.shared.items() if name not in clashes}
    served = {path: node for path, node in built.items() if not names_shared_in(node) & clashes}
    try:
        return put_shared(served, usable), problems
    except SelectionError as err:  # an array is missing, or too small
        unshared = {path: node for path, node in built.items() if not names_shared_in(node)}
        return unshared, problems | {f"{err}": err}
