"""From a file to adapters, alone or around the layers of a model."""

import dataclasses
import itertools
import os
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._compute import count_non_finite
from .._contract import Handle, LoRAWrapper, check_contract, takes
from .._errors import CheckpointError, PluginError, SelectionError, reason_of, warn
from .._paths import bullets, show_path
from .._registry import Registry, default_registry
from .._sets import AdapterSet, LooseAdapter, built_around, misfits, shared_by_others
from .._shared_arrays import names_shared_in, put_shared, shared_arrays, uses_shared
from .._tree import layers_at, nested_with, replace_layers
from ._base_values import known_layers, same_values
from ._configuration import KEY, Configuration, Entry
from ._container import Container, FilePath, MalformedError, Tensor, opened

M = TypeVar("M")

# The type of `strict=`.
Strict: TypeAlias = bool | Literal["values"]
# The type of `wrappers=`.
Classes: TypeAlias = type[LoRAWrapper] | Iterable[type[LoRAWrapper]] | None


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
    registry = default_registry(registry)
    loaded = load(model, path, wrappers, registry, strict=strict)
    return with_loaded(model, loaded)


def with_loaded(model: M, loaded: Mapping[str, LoRAWrapper]) -> M:
    """`model` with these adapters, by path, in the places of those that it carries there."""
    return put_shared(replace_layers(model, loaded), shared_arrays(model))


def read_adapters(
    path: FilePath, *, wrappers: Classes = (), registry: Registry | None = None
) -> AdapterSet:
    """The adapters of a file, without a model: for `swap_adapters`, or to combine them.

    **Arguments** and **Raises:** as `load_adapters`.
    """
    contents = read(path)
    adapters, problems = _adapters(contents, wrappers, default_registry(registry))
    _refuse(problems, path, "holds adapters that cannot be read here", "No adapter was read.")
    _warn_of_non_finite(path, contents, adapters.adapters)
    return adapters


@dataclasses.dataclass(frozen=True)
class Contents:
    """The configuration and the arrays of a file. `values` is empty unless they were read."""

    configuration: Configuration
    tensors: dict[str, Tensor]
    values: dict[str, np.ndarray]
    nbytes: int


def read(path: FilePath, *, values: bool = True) -> Contents:
    """The contents of a file. No plugin runs. **Raises:** `CheckpointError` if it is damaged."""
    with opened(path) as file:
        container = Container(path, file)
        text = container.metadata.get(KEY)
        if text is None:
            raise MalformedError(
                f"it is a safetensors file, but not one of jno-lora: its metadata have no {KEY!r}. "
                "(A PEFT adapter is a directory, for `jno.lora.peft`.)"
            )
        configuration = Configuration.parse(text)
        configuration.check_tensors(container.tensors)
        arrays = container.read_all() if values else {}
        return Contents(configuration, container.tensors, arrays, container.nbytes)


# Why adapters cannot be loaded: lines for a message, with the errors behind them.
_Problems = dict[str, Exception | None]


def _refuse(problems: _Problems, path: FilePath, what: str, advice: str) -> None:
    """**Raises:** `CheckpointError` if there are problems."""
    if problems:
        cause = next(filter(None, problems.values()), None)
        message = f"{os.fspath(path)!r} {what}:\n{bullets(problems)}\n{advice}"
        raise CheckpointError(message) from cause


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
    adapters, problems = _adapters(contents, wrappers, registry)
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
        _refuse(problems, path, "does not fit this model", advice)
    _warn_of_non_finite(path, contents, built)
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


def _adapters(
    contents: Contents, wrappers: Classes, registry: Registry
) -> tuple[AdapterSet, _Problems]:
    """The adapters whose classes are found and whose arrays JAX can hold, and the problems."""
    entries, given = contents.configuration.entries, _classes_by_name(wrappers)
    of_class: dict[Any, list[Entry]] = {}
    for entry in entries:
        key = (entry.distribution, entry.version, entry.wrapper)
        of_class.setdefault(key, []).append(entry)
    problems: _Problems = {}
    classes: dict[str, type[LoRAWrapper]] = {}
    for alike in of_class.values():
        try:
            classes |= dict.fromkeys([x.path for x in alike], _class_of(alike[0], given, registry))
        except PluginError as err:
            paths = ", ".join(show_path(entry.path) for entry in alike[:3])
            more = f" and {len(alike) - 3} more" if len(alike) > 3 else ""
            problems[f"{paths}{more}: {err}"] = err
    found: dict[str, LooseAdapter] = {}
    for entry in (entry for entry in entries if entry.path in classes):
        cls = classes[entry.path]
        arrays = {name: contents.values[tensor] for name, tensor in entry.tensors.items()}
        wrong = _problems_of(entry, cls, arrays)
        problems |= dict.fromkeys(wrong)
        if not wrong:
            # Copies: JAX might share NumPy's memory, which cannot be donated then.
            state = {name: jnp.array(array) for name, array in arrays.items()}
            found[entry.path] = LooseAdapter(state, cls, entry.rank, entry.alpha, entry.layer)
    shared = {
        name: contents.values[it] for name, it in contents.configuration.shared_tensors.items()
    }
    problems |= {it: None for name, array in shared.items() if (it := _too_wide(name, array))}
    return AdapterSet(found, {name: jnp.array(x) for name, x in shared.items()}), problems


def _too_wide(where: str, array: np.ndarray) -> str:
    """The problem with an array of a dtype that JAX does not hold; else empty."""
    if jax.dtypes.canonicalize_dtype(array.dtype) == array.dtype:
        return ""
    x64 = "`jax.config.update('jax_enable_x64', True)`"
    return f"{where}: {array.dtype}, which JAX holds only with {x64}"


def _problems_of(entry: Entry, cls: type[LoRAWrapper], arrays: dict[str, np.ndarray]) -> list[str]:
    problems: list[str] = []
    for name, array in arrays.items():
        where, dtype = f"{show_path(entry.path)}/{name}", array.dtype
        trains = name.partition("/")[0] in (*cls.adapter_fields, *cls.optional_fields)
        if problem := _too_wide(where, array):
            problems.append(problem)
        elif trains and not jnp.issubdtype(dtype, jnp.inexact):
            problems.append(f"{where}: {dtype}, but it trains, so it must have a floating dtype")
    return problems + [
        f"{show_path(entry.path)}: its {name} is null, but a {cls.__name__} needs a finite number"
        for name in takes(cls)
        if getattr(entry, name) is None
    ]


def _warn_of_non_finite(path: FilePath, contents: Contents, loaded: Collection[str]) -> None:
    configuration = contents.configuration
    own = [it.tensors.values() for it in configuration.entries if it.path in loaded]
    lines = [
        f"{name}: {count:,} of {contents.values[name].size:,} numbers"
        for name in itertools.chain(*own, configuration.shared_tensors.values())
        if (count := count_non_finite(contents.values[name]))
    ]
    if lines:
        warn(f"Arrays of {os.fspath(path)!r} hold NaN or infinity:\n{bullets(lines)}")


def _classes_by_name(given: Classes) -> dict[str, type[LoRAWrapper]]:
    if isinstance(given, str) or not isinstance(given, type | Iterable | None):
        raise SelectionError(
            f"`wrappers` must be adapter classes, but is {given!r}. What plugins provide is found "
            "without it."
        )
    found: dict[str, type[LoRAWrapper]] = {}
    for cls in [given] if isinstance(given, type) else given or ():
        check_contract(cls)
        if found.setdefault(cls.__name__, cls) is not cls:
            raise SelectionError(
                f"`wrappers` has two classes of the name {cls.__name__!r}. Load the adapters of "
                "each in a call of its own, with strict=False."
            )
    return found


def _class_of(
    entry: Entry, given: Mapping[str, type[LoRAWrapper]], registry: Registry
) -> type[LoRAWrapper]:
    """The class of an adapter. **Raises:** `PluginError` that says what to install or to pass."""
    if entry.wrapper in given:
        return given[entry.wrapper]
    try:
        provided = registry.provided(entry.distribution, entry.wrapper)
    except PluginError as err:
        advice = f"Pass it: load_adapters(..., wrappers=[{entry.wrapper}])"
        if entry.distribution is None:
            problem = f"{entry.wrapper} is a class that no plugin provides. {advice}"
        else:
            problem = f"{err}. {_how_to_install(entry) if registry.discover else advice}"
        raise PluginError(problem) from err
    if provided.version and _major_minor(provided.version) < _major_minor(entry.version):
        raise PluginError(
            f"it was saved with {entry.wrapper} of {entry.distribution} {entry.version}, which is "
            f"newer than the installed {provided.version}. {_how_to_install(entry)}"
        )
    return provided.cls


def _how_to_install(entry: Entry) -> str:
    # Package indexes and bounds do not know local versions, such as "1.0+cpu" (PEP 440).
    public = entry.version.partition("+")[0]
    bound = f">={public}" if public else ""
    return f'If you trust this file:\n    pip install -U "{entry.distribution}{bound}"\n'


def _major_minor(version: str) -> tuple[int, int]:
    """`(1, 2)` for a version such as `1.2.3`. Versions that do not parse sort first."""
    found = re.match(r"(\d{1,9})(?:\.(\d{1,9}))?", version)
    return (0, 0) if found is None else (int(found[1]), int(found[2] or 0))
