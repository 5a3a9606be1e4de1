"""A file to adapters, and around the layers of a model."""

import os
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from .._compute.precision import count_non_finite
from .._contract.checks import NotAPytree, expect_model
from .._contract.wrapper import LoRAWrapper
from .._errors import CheckpointError, SelectionError, errors_as, reason_of, warn
from .._paths import bullets, show_path
from .._registry.registry import Registry, default_registry
from .._sets.set import AdapterSet, LooseAdapter, built_around, check_shared, misfits
from .._shared_arrays import put_shared, shared_arrays
from .._tree import layers_at, nested_with, replace_layers
from .base_values import known_layers, same_values
from .classes import Classes, Problems, classes_of
from .file import FilePath, MalformedError, errors_of, read_arrays
from .format import EXTENSION, KEY, SHARED, Configuration, Extension

M = TypeVar("M")

Strict: TypeAlias = bool | Literal["values"]


def load_adapters(
    model: M,
    path: FilePath,
    *,
    strict: Strict = True,
    wrappers: Classes = (),
    registry: Registry | None = None,
    prove: bool = False,
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
    - `prove`: whether to call the model on the inputs of the file's proof, and raise if the
        adapters do not compute what they computed there. Needs `jno-lora[proof]`.

    **Returns:** the adapted model (or the `Net`). NaN and infinity only cause a `JnoLoraWarning`,
    and so do different values of a layer unless `strict` is `"values"`.

    **Raises:** `CheckpointError` if the file is damaged, a plugin is missing or older than the
    plugin that wrote it, or something does not fit the model; the message lists every problem. With
    `prove`, also if the file has no proof, or the adapters do not act. `WrapperError` if one of
    `wrappers` is not an adapter class, `SelectionError` if two classes have the same name.
    """
    if isinstance(model, NotAPytree):
        net: Any = model
        settings: Any = {"strict": strict, "wrappers": wrappers, "prove": prove}
        return net.load_adapters(path, registry=registry, **settings)
    expect_model(model, "load_adapters")
    registry = default_registry(registry)
    adapted, _ = load(model, read_for(path), wrappers, registry, strict)
    if prove:
        registry.proofs().check(adapted, path)
    return adapted


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
    classes, unknown = classes_of(contents.configuration, wrappers, default_registry(registry))
    adapters, unsupported = contents.adapters(classes)
    what = "contains adapters that cannot be read here"
    _refuse({**unknown, **unsupported}, contents, what, "No adapter was read.")
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

    @property
    def file(self) -> str:
        """The path for messages."""
        return repr(os.fspath(self.path))

    def arrays(self, path: str) -> dict[str, jax.Array]:
        """The arrays of an adapter (or `SHARED`, `EXTENSION`) by name.

        They are copies, because JAX could not donate memory that it shares with NumPy.
        """
        # `jnp.array` would compile a program for each shape.
        names = self.configuration.tensors[path]
        return {n: jax.device_put(self.tensors[t], may_alias=False) for n, t in names.items()}

    def adapters(self, classes: Mapping[str, type[LoRAWrapper]]) -> tuple[AdapterSet, Problems]:
        """The adapters of these classes by path, and a problem for each array that JAX lacks."""
        dtypes = {name: array.dtype for name, array in self.tensors.items()}
        wide = {name for name, x in dtypes.items() if jax.dtypes.canonicalize_dtype(x) != x}
        lines = (f"{name}: {dtypes[name]}, {_ONLY_WITH_X64}" for name in sorted(wide))
        adapters = {
            path: LooseAdapter(self.arrays(path), classes[path], x.rank, x.alpha, x.layer.form)
            for path, x in self.configuration.adapters.items()
            if path in classes and wide.isdisjoint(self.configuration.tensors[path].values())
        }
        return AdapterSet(adapters, self.arrays(SHARED)), dict.fromkeys(lines)


_ONLY_WITH_X64 = "which JAX supports only with `jax.config.update('jax_enable_x64', True)`"


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
            f"{contents.file} cannot be used: it has only adapters, which "
            "`jno.lora.load_adapters` reads."
        )
    if section is not None and section.distribution != distribution:
        raise CheckpointError(
            f"{contents.file} cannot be used: it holds {section.kind}, whose adapters alone "
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
    originals: Mapping[str, eqx.Module] | None = None,
) -> tuple[M, list[str]]:
    """`model` with all adapters of a file, or all that fit, and the paths of these adapters.

    They replace the model's adapters at these paths.

    - `originals`: layers as they were before adapting, by path.
    """
    if not isinstance(strict, bool) and strict != "values":
        raise SelectionError(f"`strict` must be True, False or 'values', but is {strict!r}.")
    classes, unknown = classes_of(contents.configuration, wrappers, registry)
    adapters, unsupported = contents.adapters(classes)
    with errors_as(f"load {contents.file}", CheckpointError):
        check_shared(model, adapters)
        layers, misfit = _fitting(model, adapters)
    known = known_layers(model, layers, originals)
    has_same_values = same_values(contents.configuration.adapters, known)
    problems = {**unknown, **unsupported, **misfit}
    if strict == "values":
        for path in (path for path in layers if not has_same_values.get(path)):
            problem = _OTHER_VALUES if path in has_same_values else _UNKNOWN_VALUES
            problems[f"{show_path(path)}: {problem}"] = None
    built, failed = _built({**layers, **known}, adapters)
    problems |= failed
    if strict:
        advice = "The model is as it was."
        if contents.configuration.extension is None:  # an extension belongs to all adapters
            advice += " With strict=False, the adapters that fit are loaded."
        _refuse(problems, contents, "does not fit this model", advice)
    with errors_as(f"load {contents.file}", CheckpointError):  # a shared array may be too small
        adapted = put_shared(replace_layers(model, built), shared_arrays(model) | adapters.shared)
    _warn_of_non_finite(contents, built)
    if differing := [show_path(path) for path in built if not has_same_values.get(path, True)]:
        warn(
            f"Adapters of {contents.file} were loaded onto another base, where they compute "
            f"something else. At these paths, {_OTHER_VALUES}:\n{bullets(differing)}\n"
            "Load them onto the model that they were trained on. strict='values' raises here."
        )
    if problems:
        loaded = f"{len(built)} of {len(contents.configuration.adapters)} adapters"
        warn(f"{loaded} of {contents.file} were loaded. Left out:\n{bullets(problems)}")
    return adapted, [*built]


def _fitting(model: PyTree, adapters: AdapterSet) -> tuple[dict[str, eqx.Module], Problems]:
    """By path, the layers of `model` that the adapters fit, and the problems of the others."""
    layers = layers_at(model, adapters)
    lines_by_path = misfits(model, adapters) | nested_with(model, adapters)
    problems = dict.fromkeys(line for lines in lines_by_path.values() for line in lines)
    return {path: layers[path] for path in adapters if path not in lines_by_path}, problems


def _built(
    layers: Mapping[str, eqx.Module], adapters: AdapterSet
) -> tuple[dict[str, LoRAWrapper], Problems]:
    """By path, the adapters around these layers, and the problems of those that fail."""
    built: dict[str, LoRAWrapper] = {}
    problems: Problems = {}
    for path, layer in layers.items():
        try:
            built[path] = built_around(layer, adapters[path])
        except Exception as err:  # a `from_state` may raise anything
            cls = adapters[path].wrapper.__name__
            problems[f"{show_path(path)}: could not restore the {cls}: {reason_of(err)}"] = err
    return built, problems


_OTHER_VALUES = "the layer has other values than the layer that the adapter was made for"
_UNKNOWN_VALUES = (
    "the values of the layer cannot be compared: the file has no hash of them (save it again by "
    "save_adapters(..., base_values=model)), or the layer is in another precision or has no values"
)


def _refuse(problems: Problems, contents: Contents, what: str, advice: str) -> None:
    """**Raises:** `CheckpointError` if there are problems."""
    if problems:
        cause = next(filter(None, problems.values()), None)
        message = f"{contents.file} {what}:\n{bullets(problems)}\n{advice}"
        raise CheckpointError(message) from cause


def _warn_of_non_finite(contents: Contents, loaded: Iterable[str]) -> None:
    names, tensors = contents.configuration.tensors, contents.tensors
    loaded_tensors = [t for at in (*loaded, SHARED, EXTENSION) for t in names[at].values()]
    counts = {t: count_non_finite(tensors[t]) for t in loaded_tensors}
    lines = [f"{t}: {n:,} of {tensors[t].size:,} numbers" for t, n in counts.items() if n]
    if lines:
        warn(f"Arrays of {contents.file} hold NaN or infinity:\n{bullets(lines)}")
