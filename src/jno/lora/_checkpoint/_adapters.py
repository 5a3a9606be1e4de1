"""From adapters to a file, and from a file to adapters and models."""

import functools
import operator
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

import equinox as eqx
import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree

from .._compute import count_non_finite
from .._contract import (
    Composite,
    LoRAWrapper,
    Member,
    NotAPytree,
    check_contract,
    expect_model,
    registered_class,
)
from .._errors import CheckpointError, PluginError, SelectionError, errors_as, reason_of, warn
from .._paths import bullets, show_path, show_place
from .._registry import IN_PROCESS, RegisteredWrapper, Registry, default_registry
from .._sets import (
    AdapterSet,
    LooseAdapter,
    built_around,
    check_fit,
    check_shared,
    extract_adapters,
    misfits,
)
from .._shared_arrays import put_shared, shared_arrays
from .._tree import adapted_layers, layers_at, nested_with, replace_layers
from .._version import __version__
from ._base_values import hashes, known_layers, on_the_host, same_values
from ._file import (
    DTYPES,
    FilePath,
    MalformedError,
    brief,
    errors_of,
    read_arrays,
    serialised,
    write_atomically,
)
from ._format import (
    EXTENSION,
    KEY,
    SHARED,
    Configuration,
    Described,
    Entry,
    Extension,
    Layer,
    Part,
    Section,
)

M = TypeVar("M")

Classes: TypeAlias = type[LoRAWrapper] | Iterable[type[LoRAWrapper]] | None
Strict: TypeAlias = bool | Literal["values"]
ProviderOf: TypeAlias = Callable[[Any], RegisteredWrapper | None]
# The problems of adapters as lines for a message, each with the exception behind it.
Problems = dict[str, Exception | None]


def save_adapters(
    model: PyTree | NotAPytree | AdapterSet,
    path: FilePath,
    *,
    registry: Registry | None = None,
    base_values: bool | PyTree = True,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write only the adapters of a model into one safetensors file.

    The file contains the arrays of each adapter's `state()`, and JSON from which the adapters are
    rebuilt. An old file is replaced atomically. Sharded arrays are gathered one by one. If an array
    lies on devices of several processes, every process must make this call, and the first process
    writes.

    **Arguments:**

    - `model`: an adapted model, a `Net`, or the `AdapterSet` of `extract_adapters`.
    - `path`: the file, by convention `NAME.safetensors`. Its directory must exist.
    - `registry`: where to look up the plugins of the classes, instead of among the installed
        plugins.
    - `base_values`: whether to store a hash of the values of each adapted layer, so that
        `load_adapters` notices a different base. A set has no layers, so pass the model that it is
        for. A layer that its adapter changed (PiSSA) gets a hash only from a `Net`.
    - `metadata`: a flat dict of strings, bools, finite numbers and lists of these, such as
        `{"nu": 0.05}`. `read_metadata(path)` returns it, and `jno-lora inspect` shows it.

    **Raises:** `CheckpointError` if there are no adapters, an array or a value of the metadata
    cannot be stored (typed PRNG keys, dtypes that safetensors lacks, tracers; NaN, nested dicts),
    or the file cannot be written. `SelectionError`
    if the model given as `base_values` lacks a layer of the set.
    """
    if isinstance(model, NotAPytree):
        net: Any = model
        net.save_adapters(path, registry=registry, base_values=base_values, metadata=metadata)
        return
    if not isinstance(model, AdapterSet):
        expect_model(model, "save_adapters")
        _refuse_half(model)
    save(model, path, default_registry(registry), base_values, metadata)


def save_extended(
    model: PyTree,
    path: FilePath,
    extension: Extension,
    *,
    registry: Registry | None = None,
    base_values: bool | PyTree = True,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write the adapters of a model and an extension of a plugin into one safetensors file.

    `load_adapters` and `read_adapters` raise an error that names the package to install.
    `read_metadata` and `jno-lora inspect` read the file without the plugin.

    **Arguments:** `model`: an adapted model. `extension`: the plugin's data. The other arguments
    are as for `save_adapters`.

    **Raises:** as `save_adapters`; also `CheckpointError` if the extension cannot be stored.
    """
    expect_model(model, "save_extended")
    save(model, path, default_registry(registry), base_values, metadata, extension)


def _refuse_half(model: PyTree) -> None:
    """**Raises:** `CheckpointError` if `model` is one half that `net.partition()` returns."""
    for path, adapter in adapted_layers(model):
        fields = [getattr(adapter, name) for name in type(adapter).adapter_fields]
        # A sum may train nothing.
        if (fields and not jax.tree.leaves(fields)) or not jax.tree.leaves(adapter.base):
            raise CheckpointError(
                f"{show_place(type(adapter), path)} lacks the arrays of its layer, or all that "
                "train: this is one half of a model, as net.partition() splits it. Call "
                "net.update(trainable) and save the net, or save eqx.combine(trainable, frozen)."
            )


def save(
    model: PyTree | AdapterSet,
    path: FilePath,
    registry: Registry,
    base_values: bool | PyTree,
    metadata: Mapping[str, Any] | None,
    extension: Extension | None = None,
    originals: Mapping[str, Any] | None = None,
) -> None:
    """Write the adapters of `model` into one file, atomically.

    - `originals`: layers as they were before adapting, by path.
    """
    adapters = model if isinstance(model, AdapterSet) else extract_adapters(model)
    layers: Mapping[str, Any] = {}
    if not isinstance(base_values, bool):
        expect_model(base_values, "`base_values` of save_adapters")
        check_fit(base_values, adapters, "The adapters to save")
        layers = known_layers(base_values, adapters)
    elif base_values and adapters is not model:
        layers = known_layers(model, adapters, originals)
    content = _content(adapters, registry, layers, metadata or {}, extension)
    arrays = jax.tree.leaves((adapters, dict(extension.arrays) if extension else {}))
    if all(array.is_fully_addressable for array in arrays if isinstance(array, jax.Array)):
        write_atomically(path, content)
        return
    from jax.experimental import multihost_utils  # here, because only many processes need it

    # Every process gets here, and all raise if the first process fails.
    error = None
    if jax.process_index() == 0:
        try:
            write_atomically(path, content)
        except CheckpointError as err:
            error = err
    if multihost_utils.broadcast_one_to_all(np.asarray(error is not None)):
        raise error or CheckpointError("The first process could not write the file; see its error.")


def _content(
    adapters: AdapterSet,
    registry: Registry,
    layers: Mapping[str, Any],
    metadata: Mapping[str, Any],
    extension: Extension | None,
) -> bytes:
    """The bytes of a file, with the hashes of `layers`."""
    if not len(adapters):
        raise CheckpointError(
            "There are no adapters to save. Save before merging; a plain model is saved with "
            "`eqx.tree_serialise_leaves`."
        )
    loose = adapters.adapters
    # Cached, because searching for a class that no plugin provides is slow.
    provider_of = functools.cache(registry.provider)
    base_values = hashes(layers, {path: adapter.layer for path, adapter in loose.items()})
    section = None
    if extension is not None:
        names, content = tuple(extension.arrays), dict(extension.content)
        section = Section(**{**vars(extension), "arrays": names, "content": content})
    configuration = Configuration(
        {"jno-lora": __version__, "jax": jax.__version__, "equinox": eqx.__version__},
        tuple(adapters.shared) or None,
        {key: _as_json(value, f"metadata/{key}") for key, value in metadata.items()} or None,
        section,
        adapters={p: _entry(x, provider_of, base_values.get(p)) for p, x in loose.items()},
    )
    owners = {path: adapter.state for path, adapter in loose.items()} | {
        SHARED: adapters.shared,
        EXTENSION: {} if extension is None else extension.arrays,
    }
    tensors = {
        tensor: values_of(arrays[name], f"the array {tensor!r}")
        for path, arrays in owners.items()
        for name, tensor in configuration.tensors[path].items()
    }
    try:
        text = configuration.dump()
        configuration.check_tensors(tensors)
    except MalformedError as err:
        raise CheckpointError(f"The adapters cannot be saved: in the file, {err}.") from err
    return serialised(tensors, {KEY: text})


def _entry(adapter: LooseAdapter, provider_of: ProviderOf, base_values: str | None) -> Entry:
    return Entry(
        **_described(adapter, provider_of),
        base_values=base_values,
        arrays=tuple(adapter.state),
        layer=Layer.of(adapter.layer),
    )


def _described(adapter: LooseAdapter | Member, provider_of: ProviderOf) -> dict[str, Any]:
    """The fields of `Described`."""
    cls, rank, alpha = registered_class(adapter.wrapper), adapter.rank, adapter.alpha
    provider, distribution, version = provider_of(cls), None, ""
    if provider is not None and provider.distribution != IN_PROCESS:
        distribution, version = provider.distribution, provider.version
    # A NumPy number becomes a Python number, which JSON can store.
    rank = rank and operator.index(rank)
    alpha = alpha if isinstance(alpha, int | None) else float(alpha)
    described = Described(cls.__name__, distribution, version, cls.variant, rank, alpha)
    if not issubclass(adapter.wrapper, Composite):
        return vars(described)
    parts = {
        m.name: Part(**_described(m, provider_of), trains=m.trains) for m in adapter.wrapper.members
    }
    trains_weights = "weights" in adapter.wrapper.adapter_fields
    return {**vars(described), "members": parts, "trains_weights": trains_weights}


def _as_json(value: Any, what: str) -> Any:
    """A user's metadata as JSON. Numbers and 1-d arrays of NumPy and JAX are converted."""
    if isinstance(value, list | tuple):
        return [_as_json(inner, what) for inner in value]
    value = values_of(value, what) if isinstance(value, jax.Array) else value
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def values_of(array: Any, what: str) -> np.ndarray:
    """The values of an array. **Raises:** `CheckpointError` if a file cannot store them."""
    if not isinstance(array, jax.Array | np.ndarray) or isinstance(array, Tracer):
        raise CheckpointError(f"{what} is not an array with values, but {brief(array)}.")
    if array.dtype not in DTYPES.values():
        raise CheckpointError(
            f"{what} has the dtype {array.dtype}, which safetensors files lack. (Keep a PRNG key "
            "as integers: `jax.random.key_data`.)"
        )
    # A compiled step may have deleted it (`donate`).
    with errors_as(f"store {what}", CheckpointError):
        values = on_the_host(array) if isinstance(array, jax.Array) else array
        return np.ascontiguousarray(values).reshape(array.shape)


def load_adapters(
    model: M,
    path: FilePath,
    *,
    strict: Strict = True,
    wrappers: Classes = (),
    registry: Registry | None = None,
) -> M:
    """`model` with the adapters of a file around its layers.

    Initialisers do not run. An adapter of the file replaces the existing adapter of its layer;
    layers that are not in the file stay as they are. Arrays are placed on the mesh of their layers.

    **Arguments:**

    - `model`: the model that the adapters were made for (layers of the same shapes at the same
        paths, in any precision), or a `Net` of it, which is changed and returned.
    - `path`: a file that `save_adapters` wrote.
    - `strict`: whether all adapters must fit. With `False`, the adapters that fit are loaded,
        unless the name of a shared array is taken, and a `JnoLoraWarning` lists the rest. With
        `"values"`, the layers must also be comparable, and have the values that the adapters were
        made for (see `save_adapters`).
    - `wrappers`: one class or several. Other classes come from the plugin that the file names.
    - `registry`: where to look up that plugin, instead of among the installed plugins.

    **Returns:** the adapted model (or the `Net`). NaN and infinity only cause a `JnoLoraWarning`,
    and so do different values of a layer unless `strict` is `"values"`.

    **Raises:** `CheckpointError` if the file is damaged, a plugin is missing or older than the
    plugin that wrote it, or something does not fit the model; the message lists every problem.
    `WrapperError` if one of `wrappers` is not an adapter class, `SelectionError` if two classes
    have the same name.
    """
    if isinstance(model, NotAPytree):
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

    Do not trust the extension: it is only checked to be JSON of the documented kind, and arrays
    that JAX can represent.

    **Arguments:** `distribution`: the distribution of the plugin that reads the extension. The
    other arguments are as for `load_adapters`.

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
    _refuse(problems, path, "contains adapters that cannot be read here", "No adapter was read.")
    _warn_of_non_finite(contents, adapters)
    return adapters


def read_metadata(path: FilePath) -> dict[str, Any]:
    """The metadata that a user stored in a file (`save_adapters(..., metadata={"nu": 0.05})`).

    No plugin runs, and no array is read. Files that a plugin extends have
    metadata too.

    **Arguments:** `path`: a file that `save_adapters` wrote.

    **Returns:** a dict of strings, bools, numbers and lists of these; empty for a file without
    metadata.

    **Raises:** `CheckpointError` if the file is damaged.
    """
    return read(path, values=False).configuration.metadata or {}


class Contents(NamedTuple):
    """The parts of a file of adapters.

    - `tensors`: its arrays, by the names that `Configuration.tensors` gives them.
    """

    path: FilePath
    configuration: Configuration
    tensors: dict[str, np.ndarray]

    def arrays(self, path: str) -> dict[str, jax.Array]:
        """The arrays of an adapter (or `SHARED`, `EXTENSION`) by name.

        They are copies, because JAX could not donate memory that it shares with NumPy.
        """
        # `jnp.array` would compile a program for each shape.
        names = self.configuration.tensors[path]
        return {n: jax.device_put(self.tensors[t], may_alias=False) for n, t in names.items()}


def read(path: FilePath, *, values: bool = True) -> Contents:
    """Read a file, with the values of its arrays or without. No plugin runs.

    **Raises:** `CheckpointError` if the file is damaged.
    """
    with errors_of(path, "read"):
        is_folder = os.path.isdir(path)
        tensors, metadata = ({}, {}) if is_folder else read_arrays(path, values=values)
        if KEY not in metadata:
            kind = "directory" if is_folder else f"safetensors file without {KEY!r} in its metadata"
            raise MalformedError(
                f"it is a {kind}, and not a file of jno-lora. `load_peft(model, directory)` reads "
                "the directory of a PEFT adapter, and `extract_adapters` takes its adapters"
            )
        configuration = Configuration.parse(metadata[KEY])
        configuration.check_tensors(tensors)
        return Contents(path, configuration, tensors)


def read_for(path: FilePath, distribution: str | None = None) -> Contents:
    """Read a file with the extension of this plugin, or without an extension for `None`."""
    contents = read(path)
    section = contents.configuration.extension
    if section is None and distribution is not None:
        raise CheckpointError(
            f"{os.fspath(path)!r} cannot be used: it has only adapters, which "
            "`jno.lora.load_adapters` reads."
        )
    if section is not None and section.distribution != distribution:
        raise CheckpointError(
            f"{os.fspath(path)!r} cannot be used: it holds {section.kind}, whose adapters alone "
            f"are incomplete. {section.reader} of {section.distribution} reads it. If that is not "
            f'installed and you trust this file:\n    pip install "{section.distribution}"\n'
        )
    return contents


def load(
    model: M,
    contents: Contents,
    wrappers: Classes,
    registry: Registry,
    strict: Strict,
    originals: Mapping[str, Any] | None = None,
) -> tuple[M, list[str]]:
    """`model` with all adapters of a file, or all that fit, and the paths of these adapters.

    They replace the model's adapters at these paths.

    - `originals`: layers as they were before adapting, by path.
    """
    if not isinstance(strict, bool) and strict != "values":
        raise SelectionError(f"`strict` must be True, False or 'values', but is {strict!r}.")
    file, configuration = repr(os.fspath(contents.path)), contents.configuration
    adapters, problems = _adapters_in(contents, wrappers, registry)
    with errors_as(f"load {file}", CheckpointError):
        check_shared(model, adapters)
        layers = layers_at(model, adapters)
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
    loaded: dict[str, LoRAWrapper] = {}
    for path in fitting:
        try:
            loaded[path] = built_around(comparable.get(path, layers[path]), adapters[path])
        except Exception as err:  # a `from_state` may raise anything
            cls = adapters[path].wrapper.__name__
            problems[f"{show_path(path)}: could not restore the {cls}: {reason_of(err)}"] = err
    if strict:
        advice = "The model is as it was."
        if configuration.extension is None:  # an extension belongs to all adapters
            advice += " With strict=False, the adapters that fit are loaded."
        _refuse(problems, contents.path, "does not fit this model", advice)
    with errors_as(f"load {file}", CheckpointError):  # a shared array may be too small
        adapted = put_shared(replace_layers(model, loaded), shared_arrays(model) | adapters.shared)
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
    """The adapters whose classes are found and whose arrays JAX supports, and the problems."""
    configuration = contents.configuration
    classes, problems = _classes_of(configuration, _classes_by_name(wrappers), registry)
    dtypes = {name: array.dtype for name, array in contents.tensors.items()}
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


_ONLY_WITH_X64 = "which JAX supports only with `jax.config.update('jax_enable_x64', True)`"


def _warn_of_non_finite(contents: Contents, loaded: Iterable[str]) -> None:
    names, tensors = contents.configuration.tensors, contents.tensors
    loaded_tensors = [t for at in (*loaded, SHARED, EXTENSION) for t in names[at].values()]
    counts = {t: count_non_finite(tensors[t]) for t in loaded_tensors}
    lines = [f"{t}: {n:,} of {tensors[t].size:,} numbers" for t, n in counts.items() if n]
    if lines:
        warn(f"Arrays of {os.fspath(contents.path)!r} hold NaN or infinity:\n{bullets(lines)}")


def _classes_by_name(given: Classes) -> dict[str, type[LoRAWrapper]]:
    listed = [given] if isinstance(given, type) else list(given or ())
    for cls in listed:
        check_contract(cls)
    classes = {cls.__name__: cls for cls in listed}
    if len(classes) < len({*listed}):
        raise SelectionError(
            f"Two classes of `wrappers` have the same name: {', '.join(map(repr, listed))}. Load "
            "the adapters of each class in a separate call, with strict=False."
        )
    return classes


def _classes_of(
    configuration: Configuration, given: Mapping[str, type[LoRAWrapper]], registry: Registry
) -> tuple[dict[str, type[LoRAWrapper]], Problems]:
    """The class of each adapter by path, and a problem for each class that is not found."""
    section = configuration.extension
    reader = "load_adapters" if section is None else section.reader
    paths_by_class: dict[str, list[str]] = {}
    for path, x in configuration.adapters.items():
        name = repr((x.wrapper, x.distribution, x.version, x.members, x.trains_weights))
        paths_by_class.setdefault(name, []).append(path)
    classes: dict[str, type[LoRAWrapper]] = {}
    problems: Problems = {}
    for paths in paths_by_class.values():
        try:
            cls = _class_of(configuration.adapters[paths[0]], given, registry, reader)
            classes |= dict.fromkeys(paths, cls)
        except ImportError as err:  # such as `PluginError` and `MissingLibraryError`
            more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
            problems[f"{', '.join(map(show_path, paths[:3]))}{more}: {err}"] = err
    return classes, problems


def _class_of(
    entry: Described, given: Mapping[str, type[LoRAWrapper]], registry: Registry, reader: str
) -> type[LoRAWrapper]:
    """The class of an entry, with its members if it is a composite. Raises as `_provided`."""
    cls: Any = given.get(entry.wrapper) or _provided(entry, registry, reader)
    if issubclass(cls, Composite) is (entry.members is None):
        raise PluginError(f"the file and the installed {entry.wrapper} differ in having members")
    if entry.members is None:
        return cls
    members = [
        Member(name, _class_of(x, given, registry, reader), x.rank, x.alpha, x.trains)
        for name, x in entry.members.items()
    ]
    return cls.of_members(tuple(members), bool(entry.trains_weights))


def _provided(entry: Described, registry: Registry, reader: str) -> type[LoRAWrapper]:
    """The class that the plugin of an entry provides.

    **Raises:** `PluginError` or `MissingLibraryError`, with advice on what to install or pass.

    - `reader`: the function that reads the file, for the message.
    """
    name, distribution, version = entry.wrapper, entry.distribution, entry.version
    # Package indexes and bounds do not support local versions, such as "1.0+cpu" (PEP 440).
    requirement = f"{distribution}>={version.partition('+')[0]}".removesuffix(">=")
    advice = f'If you trust this file:\n    pip install -U "{requirement}"\n'
    if distribution is None or not registry.discover:
        advice = f"Pass it: {reader}(..., wrappers=[{name}]), or call its package's own loader"
    try:
        provided = registry.provided(distribution, name)
    except PluginError as err:
        problem = err if distribution else f"{name} is a class that no plugin provides"
        raise PluginError(f"{problem}. {advice}") from err
    if provided.version and _major_minor(provided.version) < _major_minor(version):
        raise PluginError(
            f"it was saved with {name} of {distribution} {version}, which is newer than the "
            f"installed {provided.version}. {advice}"
        )
    return provided.cls


def _major_minor(version: str) -> list[int]:
    return [*map(int, re.findall(r"\d+", version)), 0, 0][:2]
