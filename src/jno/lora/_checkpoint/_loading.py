"""From a file to adapters, and around the layers of a model."""

import dataclasses
import os
from collections.abc import Iterable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._compute import count_non_finite
from .._contract import LoRAWrapper, takes
from .._errors import CheckpointError, PluginError, SelectionError
from .._paths import bullets, show_path
from .._registry import Registry
from .._sets import AdapterSet, LooseAdapter, built_around, misfits
from .._tree import layers_at, nested_with, replace_layers
from ._configuration import KEY, Configuration
from ._container import FilePath, Tensor, opened
from ._json import MalformedError
from ._wrappers import Classes, Wrappers

M = TypeVar("M")


@dataclasses.dataclass(frozen=True)
class Contents:
    """The contents of a file: its configuration and arrays, whose `values` are there if read."""

    configuration: Configuration
    tensors: dict[str, Tensor]
    values: dict[str, np.ndarray]
    nbytes: int


@dataclasses.dataclass(frozen=True)
class Loaded:
    """The adapters of a file around their layers, by path, and the warnings to give."""

    adapters: dict[str, LoRAWrapper]
    warnings: tuple[str, ...]

    def put_into(self, model: M) -> M:
        """`model` with these adapters around its layers. Adapters at other paths stay."""
        return replace_layers(model, self.adapters)


def read(path: FilePath, *, values: bool = True) -> Contents:
    """The contents of the file at `path`, with the values of its arrays or without. No plugin runs.

    **Raises:** `CheckpointError` if it is not a file of adapters, or damaged.
    """
    with opened(path) as container:
        text = container.metadata.get(KEY)
        if text is None:
            raise MalformedError(
                f"it is a safetensors file, but not one of jno-lora: its metadata have no {KEY!r}. "
                "(A PEFT adapter is a directory, for `jno.lora.peft`.)"
            )
        configuration = Configuration.parse(text)
        configuration.check_tensors(container.tensors)
        arrays = {name: container.read(name) for name in container.tensors} if values else {}
        return Contents(configuration, container.tensors, arrays, container.nbytes)


class _Problems:
    """The adapters that cannot be loaded, and why, as lines for a message."""

    def __init__(self) -> None:
        self.paths: set[str] = set()
        self.lines: list[str] = []
        self.cause: Exception | None = None

    def add(self, paths: Iterable[str], lines: Iterable[str], cause: Exception | None = None):
        self.paths.update(paths)
        self.lines.extend(lines)
        self.cause = self.cause or cause

    def refuse(self, path: FilePath, what: str, advice: str) -> None:
        """**Raises:** `CheckpointError` if there are any."""
        if self.lines:
            message = f"{os.fspath(path)!r} {what}:\n{bullets(self.lines)}\n{advice}"
            raise CheckpointError(message) from self.cause


def read_set(
    path: FilePath, wrappers: Classes, registry: Registry
) -> tuple[AdapterSet, tuple[str, ...]]:
    """The adapters of a file without a model, and the warnings to give."""
    contents = read(path)
    adapters, problems = _adapters(contents, Wrappers(wrappers, registry))
    problems.refuse(path, "holds adapters that cannot be read here", "No adapter was read.")
    return adapters, _not_finite(path, contents, adapters)


def load(
    model: PyTree,
    path: FilePath,
    *,
    strict: bool,
    wrappers: Classes,
    registry: Registry,
    plain: PyTree | None = None,
) -> Loaded:
    """The adapters of the file at `path` around the layers of `model`: all, or those that fit.

    - `plain`: the same model without adapters; the loaded adapters are built around its layers.
    """
    contents = read(path)
    adapters, problems = _adapters(contents, Wrappers(wrappers, registry))
    try:
        layers = layers_at(model if plain is None else plain, adapters)
        unfit = misfits(model, adapters) | nested_with(model, adapters)
    except SelectionError as err:
        raise CheckpointError(f"{os.fspath(path)!r} cannot be loaded: {err}") from err
    for name, lines in unfit.items():
        problems.add([name], lines)
    built: dict[str, LoRAWrapper] = {}
    if not (strict and problems.lines):  # nothing is built for a file that is refused anyway
        for name in (name for name in adapters if name not in problems.paths):
            try:
                built[name] = built_around(layers[name], adapters[name])
            except Exception as err:
                cls = adapters[name].wrapper.__name__
                line = f"{show_path(name)}: could not restore the {cls}: {err}"
                problems.add([name], [line], err)
    if strict:
        advice = "The model is as it was. With strict=False, the adapters that fit are loaded."
        problems.refuse(path, "does not fit this model", advice)
    warnings = _not_finite(path, contents, built)
    if problems.lines:
        total = len(contents.configuration.entries)
        warnings += (
            f"{len(built)} of {total} adapters of {os.fspath(path)!r} were loaded. The others were "
            f"left out:\n{bullets(problems.lines)}",
        )
    return Loaded(built, warnings)


def _adapters(contents: Contents, wrappers: Wrappers) -> tuple[AdapterSet, _Problems]:
    """The adapters whose classes are found and whose arrays JAX can hold, and the problems."""
    found: dict[str, LooseAdapter] = {}
    problems = _Problems()
    without_class: dict[PluginError, list[str]] = {}
    for entry in contents.configuration.entries:
        cls = wrappers.find(entry)
        if isinstance(cls, PluginError):
            without_class.setdefault(cls, []).append(show_path(entry.path))
            continue
        arrays = {name: contents.values[tensor] for name, tensor in entry.tensors.items()}
        wrong = [
            f"{show_path(entry.path)}/{name}: {problem}"
            for name, array in arrays.items()
            if (problem := _dtype_problem(cls, name, array.dtype))
        ]
        wrong += [
            f"{show_path(entry.path)}: its {name} is null, which is no finite number, and a "
            f"{cls.__name__} has one"
            for name in takes(cls)
            if getattr(entry, name) is None
        ]
        if wrong:
            problems.add([entry.path], wrong)
            continue
        # Copies: JAX might share NumPy's memory, which cannot be donated then.
        state = {name: jnp.array(array) for name, array in arrays.items()}
        found[entry.path] = LooseAdapter(state, cls, entry.rank, entry.alpha, entry.layer)
    for err, paths in without_class.items():
        more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
        problems.add((), [f"{', '.join(paths[:3])}{more}: {err}"], err)
    return AdapterSet(found), problems


def _dtype_problem(cls: type[LoRAWrapper], name: str, dtype: np.dtype) -> str | None:
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        return f"{dtype}, which JAX holds only with `jax.config.update('jax_enable_x64', True)`"
    trains = name.partition("/")[0] in cls.adapter_fields
    if trains and not jnp.issubdtype(dtype, jnp.inexact):
        return f"{dtype}, but it trains, so it must have a floating dtype"
    return None


def _not_finite(path: FilePath, contents: Contents, loaded: Iterable[str]) -> tuple[str, ...]:
    """A warning if arrays of the loaded adapters hold NaN or infinity."""
    wanted = set(loaded)
    entries = (entry for entry in contents.configuration.entries if entry.path in wanted)
    arrays = {tensor: contents.values[tensor] for x in entries for tensor in x.tensors.values()}
    lines = [
        f"{name}: {count:,} of {array.size:,} numbers"
        for name, array in arrays.items()
        if (count := count_non_finite(array))
    ]
    if not lines:
        return ()
    return (f"Arrays of {os.fspath(path)!r} hold NaN or infinity:\n{bullets(lines)}",)


def non_finite(contents: Contents) -> dict[str, int]:
    """How many numbers of each array are NaN or infinite."""
    return {name: count_non_finite(array) for name, array in contents.values.items()}
