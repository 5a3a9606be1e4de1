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
from .._sets import (
    AdapterSet,
    LooseAdapter,
    built_around,
    layers_at,
    misfits_by_path,
    nested_with,
    put_in,
)
from ._configuration import KEY, Configuration
from ._container import Container, FilePath, Tensor, opened
from ._json import MalformedError
from ._wrappers import Classes, Wrappers

M = TypeVar("M")


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a file holds: its configuration, the form of its arrays, and their values if read."""

    configuration: Configuration
    tensors: dict[str, Tensor]
    values: dict[str, np.ndarray]
    nbytes: int


@dataclasses.dataclass(frozen=True)
class Loaded:
    """The adapters of a file around their layers, by path, and what to warn of."""

    adapters: dict[str, LoRAWrapper]
    warnings: tuple[str, ...]

    def put_into(self, model: M) -> M:
        """`model` with them in the places of its layers. What stands elsewhere stays."""
        return put_in(model, self.adapters, drop_others=False)


def read(path: FilePath, *, values: bool = True) -> Contents:
    """The contents of the file at `path`, with the values of its arrays or without. No plugin runs.

    **Raises:** `CheckpointError` if it is no file of adapters, or damaged.
    """
    with opened(path) as container:
        configuration = _configuration(container)
        configuration.check_tensors(container.tensors)
        arrays = {name: container.read(name) for name in container.tensors} if values else {}
        return Contents(configuration, container.tensors, arrays, container.nbytes)


class _Problems:
    """Which adapters cannot be loaded, and why, as lines for a message."""

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
            listed = bullets(self.lines)
            raise CheckpointError(
                f"{os.fspath(path)!r} {what}:\n{listed}\n{advice}"
            ) from self.cause


def read_set(
    path: FilePath, wrappers: Classes, registry: Registry
) -> tuple[AdapterSet, tuple[str, ...]]:
    """The adapters of a file without a model, and what to warn of."""
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

    - `plain`: the same model without adapters, for what stands in the place of adapted layers.
    """
    contents = read(path)
    adapters, problems = _adapters(contents, Wrappers(wrappers, registry))
    try:
        layers = layers_at(model, adapters)
        plain_layers = layers if plain is None else layers_at(plain, adapters)
    except SelectionError as err:
        raise CheckpointError(f"{os.fspath(path)!r} cannot be loaded: {err}") from err
    misfits = misfits_by_path(model, adapters, layers) | nested_with(model, adapters)
    for name, lines in misfits.items():
        problems.add([name], lines)
    built: dict[str, LoRAWrapper] = {}
    if not (strict and problems.lines):  # else nothing need be built
        for name in adapters:
            if name not in problems.paths:
                try:
                    built[name] = built_around(plain_layers[name], adapters[name])
                except Exception as err:
                    cls = adapters[name].wrapper.__name__
                    problems.add([name], [f"{show_path(name)}: no {cls} can be made: {err}"], err)
    if strict:
        advice = "The model is as it was. With strict=False, what fits is loaded."
        problems.refuse(path, "does not fit this model", advice)
    warnings = _not_finite(path, contents, built)
    if problems.lines:
        total = len(contents.configuration.entries)
        warnings += (
            f"{len(built)} of {total} adapters of {os.fspath(path)!r} were loaded. The others were "
            f"left out:\n{bullets(problems.lines)}",
        )
    return Loaded(built, warnings)


def _configuration(container: Container) -> Configuration:
    text = container.metadata.get(KEY)
    if text is None:
        raise MalformedError(
            f"it is a safetensors file, but not one of jno-lora: its metadata have no {KEY!r}. "
            "(A PEFT adapter is a directory, for `jno.lora.peft`.)"
        )
    return Configuration.parse(text)


def _adapters(contents: Contents, wrappers: Wrappers) -> tuple[AdapterSet, _Problems]:
    """The adapters whose classes can be found and whose arrays can be held, and the problems."""
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
        # Copies: NumPy's memory might be shared, and could then not be donated.
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
        return f"{dtype}, but it trains, so that it must be of a floating dtype"
    return None


def _not_finite(path: FilePath, contents: Contents, loaded: Iterable[str]) -> tuple[str, ...]:
    """A warning if arrays of the loaded adapters hold NaN or infinity."""
    counts = non_finite(contents)
    wanted = set(loaded)
    lines = [
        f"{tensor}: {counts[tensor]:,} of {contents.values[tensor].size:,} numbers"
        for entry in contents.configuration.entries
        for tensor in entry.tensors.values()
        if entry.path in wanted and counts[tensor]
    ]
    if not lines:
        return ()
    return (f"Arrays of {os.fspath(path)!r} hold NaN or infinity:\n{bullets(lines)}",)


def non_finite(contents: Contents) -> dict[str, int]:
    """How many numbers of each array are NaN or infinite."""
    return {name: count_non_finite(array) for name, array in contents.values.items()}
