"""From a file to adapters, and from adapters to a model."""

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

import jax
from jaxtyping import PyTree

from .._compute import count_non_finite
from .._contract import Handle, LoRAWrapper, check_contract, expect_model
from .._errors import CheckpointError, PluginError, SelectionError, failing, reason_of, warn
from .._paths import bullets, show_path
from .._registry import Registry, default_registry
from .._sets import (
    AdapterSet,
    LooseAdapter,
    Member,
    built_around,
    misfits,
    shared_by_others,
    sum_class,
)
from .._shared_arrays import names_shared_in, put_shared, shared_arrays
from .._tree import layers_at, nested_with, replace_layers
from ._base_values import known_layers, same_values
from ._file import Container, FilePath, MalformedError, errors_of, read_container
from ._format import EXTENSION, KEY, SHARED, Configuration, Described, Extension

M = TypeVar("M")

Classes: TypeAlias = type[LoRAWrapper] | Iterable[type[LoRAWrapper]] | None
Strict: TypeAlias = bool | Literal["values"]
# The problems of adapters as lines for a message, each with the exception behind it.
Problems = dict[str, Exception | None]


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
    return load(model, read_for(path), wrappers, default_registry(registry), strict)[0]


def load_extended(
    model: M,
    path: FilePath,
    distribution: str,
    *,
    strict: Strict = True,
    wrappers: Classes = (),
    registry: Registry | None = None,
) -> tuple[M, Extension]:
    """A model with the adapters of a file that `save_extended` wrote, and the extension.

    Treat the extension as a stranger's: it is JSON of the promised kind, and arrays that JAX holds.

    **Arguments:** `distribution`: of the plugin that reads the extension. The rest as for
    `load_adapters`.

    **Returns:** the adapted model, and the extension with JAX's arrays.

    **Raises:** as `load_adapters`; also `CheckpointError` if the file has no extension of this
    distribution.
    """
    expect_model(model, "load_extended")
    contents = read_for(path, distribution)
    adapted, _ = load(model, contents, wrappers, default_registry(registry), strict)
    section = vars(contents.configuration.extension)
    return adapted, Extension(**{**section, "arrays": contents.arrays(EXTENSION)})


def read_adapters(
    path: FilePath, *, wrappers: Classes = (), registry: Registry | None = None
) -> AdapterSet:
    """The adapters of a file, without a model: for `swap_adapters`, or to combine them.

    **Arguments** and **Raises:** as `load_adapters`.
    """
    contents = read_for(path)
    adapters, problems = _adapters_in(contents, wrappers, default_registry(registry))
    _refuse(problems, path, "holds adapters that cannot be read here", "No adapter was read.")
    _warn_of_non_finite(contents, adapters)
    return adapters


def read_metadata(path: FilePath) -> dict[str, Any]:
    """The metadata that a user gave to a file (`save_adapters(..., metadata={"nu": 0.05})`).

    No plugin runs, and no array is read. Files that a plugin extends (`jno-lora-conditional`) have
    metadata, too.

    **Arguments:** `path`: of a file that `save_adapters` wrote.

    **Returns:** a dict of strings, bools, numbers and lists of these; empty for a file without
    metadata.

    **Raises:** `CheckpointError` if the file is damaged.
    """
    return read(path, values=False).configuration.metadata or {}


class Contents(NamedTuple):
    """The parts of a file of adapters."""

    path: FilePath
    configuration: Configuration
    container: Container

    def arrays(self, path: str) -> dict[str, jax.Array]:
        """The arrays of an adapter (or `SHARED`, `EXTENSION`) by name.

        They are copies, because JAX could not donate memory that it shares with NumPy.
        """
        # `jnp.array` would compile a program for each shape.
        names, values = self.configuration.tensors[path], self.container.arrays
        return {n: jax.device_put(values[t], may_alias=False) for n, t in names.items()}


def read(path: FilePath, *, values: bool = True) -> Contents:
    """Read a file, with the values of its arrays or without. No plugin runs.

    **Raises:** `CheckpointError` if the file is damaged.
    """
    with errors_of(path, "read"):
        container = read_container(path, values=values)
        if KEY not in container.metadata:
            raise MalformedError(
                f"it is a safetensors file, but not from jno-lora: its metadata have no {KEY!r}. "
                "`jno.lora.peft.load_peft` reads the directory of a PEFT adapter"
            )
        configuration = Configuration.parse(container.metadata[KEY])
        configuration.check_tensors(container.arrays)
        return Contents(path, configuration, container)


def read_for(path: FilePath, distribution: str | None = None) -> Contents:
    """Read a file with the extension of this plugin, or without an extension for `None`."""
    contents = read(path)
    section = contents.configuration.extension
    if section is None and distribution is not None:
        raise CheckpointError(
            f"{os.fspath(path)!r} cannot be used: it holds adapters alone, which "
            "`jno.lora.load_adapters` reads."
        )
    if section is not None and section.distribution != distribution:
        raise CheckpointError(
            f"{os.fspath(path)!r} cannot be used: it holds {section.kind}, whose adapters alone "
            f"say too little. {section.reader} of {section.distribution} reads it. If that is not "
            f'installed and you trust this file:\n    pip install "{section.distribution}"\n'
        )
    return contents


def load(
    model: M,
    contents: Contents,
    wrappers: Classes,
    registry: Registry,
    strict: Strict,
    *,
    plain: PyTree | None = None,
    originals: Mapping[str, Any] | None = None,
) -> tuple[M, list[str]]:
    """`model` with the adapters of a file: all, or those that fit; and their paths.

    They replace the adapters that the model carries there.

    - `plain`: the same model without adapters, whose layers the loaded adapters get.
    - `originals`: layers as they were before adapting, by path.
    """
    if not isinstance(strict, bool) and strict != "values":
        raise SelectionError(f"`strict` must be True, False or 'values', but is {strict!r}.")
    file, configuration = repr(os.fspath(contents.path)), contents.configuration
    adapters, problems = _adapters_in(contents, wrappers, registry)
    with failing(f"load {file}", CheckpointError):
        layers = layers_at(model if plain is None else plain, adapters)
        misfit_lines = misfits(model, adapters) | nested_with(model, adapters)
    problems |= dict.fromkeys(line for lines in misfit_lines.values() for line in lines)
    fitting = [path for path in adapters if path not in misfit_lines]
    comparable = known_layers(model, fitting, originals)
    has_same_values = same_values(configuration.adapters, comparable)
    if strict == "values":
        for path in fitting:
            if not has_same_values.get(path):
                problem = _OTHER_VALUES if path in has_same_values else _UNKNOWN_VALUES
                problems[f"{show_path(path)}: {problem}"] = None
    clashes = shared_by_others(model, adapters) & adapters.shared.keys()
    loaded: dict[str, LoRAWrapper] = {}
    for path in fitting:
        try:
            adapter = built_around(layers[path], adapters[path])
        except Exception as err:  # a `from_state` may raise anything
            cls = adapters[path].wrapper.__name__
            problems[f"{show_path(path)}: could not restore the {cls}: {reason_of(err)}"] = err
            continue
        if names := sorted(names_shared_in(adapter) & clashes):
            problem = f"the model's other adapters share an array {names[0]!r} already"
            problems[f"{show_path(path)}: {problem}: unwrap them first"] = None
        else:
            loaded[path] = adapter
    if strict:
        advice = "The model is as it was."
        if configuration.extension is None:  # an extension belongs to all adapters
            advice += " With strict=False, the adapters that fit are loaded."
        _refuse(problems, contents.path, "does not fit this model", advice)
    with failing(f"load {file}", CheckpointError):  # a shared array may be too small
        shared = {name: array for name, array in adapters.shared.items() if name not in clashes}
        adapted = put_shared(replace_layers(model, loaded), shared_arrays(model) | shared)
    _warn_of_non_finite(contents, loaded)
    if differing := [show_path(path) for path in loaded if not has_same_values.get(path, True)]:
        warn(
            f"Adapters of {file} were loaded onto another base, where they compute something else. "
            f"At these paths, {_OTHER_VALUES}:\n{bullets(differing)}\n"
            "Load them onto the model that they were trained on. strict='values' raises here."
        )
    if problems:
        warn(
            f"{len(loaded)} of {len(configuration.adapters)} adapters of {file} were loaded. Left "
            f"out:\n{bullets(problems)}"
        )
    return adapted, [*loaded]


_OTHER_VALUES = "the layer has other values than the layer that the adapter was made for"
_UNKNOWN_VALUES = (
    "the values of the layer cannot be compared: the file has no hash of them (save it again by "
    "save_adapters(..., base_values=model)), or the layer is in another precision or has no values"
)


def _refuse(problems: Problems, path: FilePath, what: str, advice: str) -> None:
    """**Raises:** `CheckpointError` if there are problems."""
    if problems:
        cause = next(filter(None, problems.values()), None)
        message = f"{os.fspath(path)!r} {what}:\n{bullets(problems)}\n{advice}"
        raise CheckpointError(message) from cause


def _adapters_in(
    contents: Contents, wrappers: Classes, registry: Registry
) -> tuple[AdapterSet, Problems]:
    """The adapters whose classes are found and whose arrays JAX can hold, and the problems."""
    configuration = contents.configuration
    classes, problems = _classes_of(configuration, _classes_by_name(wrappers), registry)
    dtypes = {name: array.dtype for name, array in contents.container.arrays.items()}
    wide = {name for name in dtypes if jax.dtypes.canonicalize_dtype(dtypes[name]) != dtypes[name]}
    problems |= {f"{name}: {dtypes[name]}, {_ONLY_WITH_X64}": None for name in sorted(wide)}
    adapters = {
        path: LooseAdapter(
            contents.arrays(path), classes[path], entry.rank, entry.alpha, entry.layer.form
        )
        for path, entry in configuration.adapters.items()
        if path in classes and wide.isdisjoint(configuration.tensors[path].values())
    }
    return AdapterSet(adapters, contents.arrays(SHARED)), problems


_ONLY_WITH_X64 = "which JAX holds only with `jax.config.update('jax_enable_x64', True)`"


def _warn_of_non_finite(contents: Contents, loaded: Iterable[str]) -> None:
    tensors, values = contents.configuration.tensors, contents.container.arrays
    names = [name for at in (*loaded, SHARED, EXTENSION) for name in tensors[at].values()]
    counts = {name: count_non_finite(values[name]) for name in names}
    lines = [f"{name}: {n:,} of {values[name].size:,} numbers" for name, n in counts.items() if n]
    if lines:
        warn(f"Arrays of {os.fspath(contents.path)!r} hold NaN or infinity:\n{bullets(lines)}")


def _classes_by_name(given: Classes) -> dict[str, type[LoRAWrapper]]:
    classes: dict[str, type[LoRAWrapper]] = {}
    if isinstance(given, str | LoRAWrapper):
        raise SelectionError(f"`wrappers` must be adapter classes, but is {given!r}.")
    for cls in [given] if isinstance(given, type) else given or ():
        check_contract(cls)
        if classes.setdefault(cls.__name__, cls) is not cls:
            raise SelectionError(
                f"`wrappers` has two classes of the name {cls.__name__!r}. Load the adapters of "
                "each class in a separate call, with strict=False."
            )
    return classes


def _classes_of(
    configuration: Configuration, given: Mapping[str, type[LoRAWrapper]], registry: Registry
) -> tuple[dict[str, type[LoRAWrapper]], Problems]:
    """The class of each adapter by path, and a problem for each class that is not found."""
    section = configuration.extension
    advice = "Pass it: load_adapters(..., wrappers=[{}]), or call its package's own loader"
    if section is not None:
        advice = f"Pass it: {section.reader}(..., wrappers=[{{}}])"

    def class_of(entry: Described) -> type[LoRAWrapper]:
        return given.get(entry.wrapper) or _provided(entry, registry, advice)

    paths_by_class: dict[str, list[str]] = {}
    for path, x in configuration.adapters.items():
        name = repr((x.wrapper, x.distribution, x.version, x.members, x.trains_weights))
        paths_by_class.setdefault(name, []).append(path)
    classes: dict[str, type[LoRAWrapper]] = {}
    problems: Problems = {}
    for paths in paths_by_class.values():
        entry = configuration.adapters[paths[0]]
        try:
            if entry.members:
                parts = entry.members.items()
                members = [Member(n, class_of(x), x.rank, x.alpha, x.trains) for n, x in parts]
                cls = sum_class(tuple(members), bool(entry.trains_weights))
            else:
                cls = class_of(entry)
            classes |= dict.fromkeys(paths, cls)
        except PluginError as err:
            more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
            problems[f"{', '.join(map(show_path, paths[:3]))}{more}: {err}"] = err
    return classes, problems


def _provided(described: Described, registry: Registry, advice: str) -> type[LoRAWrapper]:
    """The class of an entry. **Raises:** `PluginError` that says what to install or to pass."""
    name, distribution, version = described.wrapper, described.distribution, described.version
    # Package indexes and bounds do not know local versions, such as "1.0+cpu" (PEP 440).
    requirement = f"{distribution}>={version.partition('+')[0]}".removesuffix(">=")
    install = f'If you trust this file:\n    pip install -U "{requirement}"\n'
    try:
        provided = registry.provided(distribution, name)
    except PluginError as err:
        advice = advice.format(name)
        if distribution is None:
            raise PluginError(f"{name} is a class that no plugin provides. {advice}") from err
        raise PluginError(f"{err}. {install if registry.discover else advice}") from err
    if provided.version and _major_minor(provided.version) < _major_minor(version):
        raise PluginError(
            f"it was saved with {name} of {distribution} {version}, which is newer than the "
            f"installed {provided.version}. {install}"
        )
    return provided.cls


def _major_minor(version: str) -> list[int]:
    return [*map(int, re.findall(r"\d+", version)), 0, 0][:2]
