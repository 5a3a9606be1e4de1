"""From a file to adapters, without a model."""

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from .._compute import count_non_finite
from .._contract import LoRAWrapper, check_contract, takes
from .._errors import CheckpointError, PluginError, SelectionError, warn
from .._paths import bullets, show_path
from .._registry import Registry, default_registry
from .._sets import AdapterSet, AdapterSum, LooseAdapter, problems_of_members, state_of
from ._configuration import KEY, Configuration, Entry
from ._container import Container, FilePath, MalformedError, Tensor, opened
from ._sums import Part, class_of_sum

Classes: TypeAlias = type[LoRAWrapper] | Iterable[type[LoRAWrapper]] | None


def read_adapters(
    path: FilePath, *, wrappers: Classes = (), registry: Registry | None = None
) -> AdapterSet:
    """The adapters of a file, without a model: for `swap_adapters`, or to combine them.

    **Arguments** and **Raises:** as `load_adapters`.
    """
    contents = read(path, accept=refuse_extension)
    adapters, problems = adapters_in(contents, wrappers, default_registry(registry))
    refuse(problems, path, "holds adapters that cannot be read here", "No adapter was read.")
    warn_of_non_finite(path, contents, adapters.adapters)
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
    return read(path, values=False).configuration.metadata


@dataclasses.dataclass(frozen=True)
class Contents:
    """The configuration and the arrays of a file. `values` is empty unless they were read."""

    configuration: Configuration
    tensors: dict[str, Tensor]
    values: dict[str, np.ndarray]
    nbytes: int


def read(
    path: FilePath,
    *,
    values: bool = True,
    accept: Callable[[Configuration], None] = lambda configuration: None,
) -> Contents:
    """Read a file. No plugin runs.

    **Arguments:** `accept`: raises a `MalformedError` for files that are of no use here.

    **Raises:** `CheckpointError` if the file is damaged.
    """
    if os.path.isdir(path):
        raise CheckpointError(
            f"{os.fspath(path)!r} is a directory, but adapters are one file. "
            "`jno.lora.peft.load_peft` reads the directory of a PEFT adapter."
        )
    with opened(path) as file:
        container = Container(path, file)
        text = container.metadata.get(KEY)
        if text is None:
            raise MalformedError(
                f"it is a safetensors file, but not from jno-lora: its metadata have no {KEY!r}. "
                "`jno.lora.peft.load_peft` reads the directory of a PEFT adapter"
            )
        configuration = Configuration.parse(text)
        configuration.check_tensors(container.tensors)
        accept(configuration)
        arrays = container.read_all() if values else {}
        return Contents(configuration, container.tensors, arrays, container.nbytes)


# What installs the distributions of this project that extend files.
_EXTRAS = {"jno-lora-conditional": "jno-lora[conditional]"}


def refuse_extension(configuration: Configuration) -> None:
    """**Raises:** `MalformedError` that says what reads the file, if only a plugin does."""
    if (section := configuration.extension) is None:
        return
    requirement, trust = _EXTRAS.get(section.distribution), ""
    if requirement is None:
        requirement, trust = section.distribution, " and you trust this file"
    raise MalformedError(
        f"it holds {section.kind}, whose adapters alone say too little. {section.reader} of "
        f"{section.distribution} reads it. If that is not installed{trust}:\n"
        f'    pip install "{requirement}"\n'
    )


# The problems of adapters as lines for a message, each with the exception behind it.
Problems = dict[str, Exception | None]


def refuse(problems: Problems, path: FilePath, what: str, advice: str) -> None:
    """**Raises:** `CheckpointError` if there are problems."""
    if problems:
        cause = next(filter(None, problems.values()), None)
        message = f"{os.fspath(path)!r} {what}:\n{bullets(problems)}\n{advice}"
        raise CheckpointError(message) from cause


def adapters_in(
    contents: Contents, wrappers: Classes, registry: Registry
) -> tuple[AdapterSet, Problems]:
    """The adapters whose classes are found and whose arrays JAX can hold, and the problems."""
    configuration = contents.configuration
    classes, problems = _classes_of(configuration, _classes_by_name(wrappers), registry)
    adapters: dict[str, LooseAdapter] = {}
    for entry in configuration.entries:
        if entry.path not in classes:
            continue
        cls = classes[entry.path]
        arrays = {name: contents.values[tensor] for name, tensor in entry.tensors.items()}
        lines = _problems_of(entry, cls, arrays)
        problems |= dict.fromkeys(lines)
        if not lines:
            state = {name: copied(array) for name, array in arrays.items()}
            adapters[entry.path] = LooseAdapter(state, cls, entry.rank, entry.alpha, entry.layer)
    shared: dict[str, Any] = {}
    for name, tensor in configuration.shared_tensors.items():
        shared[name] = copied(contents.values[tensor])
    tensors = configuration.shared_tensors | configuration.extension_tensors
    lines = (_dtype_problem(name, contents.values[tensor]) for name, tensor in tensors.items())
    return AdapterSet(adapters, shared), problems | dict.fromkeys(filter(None, lines))


def copied(array: np.ndarray) -> jax.Array:
    """`array` for JAX, which might share NumPy's memory, and could not donate the memory then.

    `jnp.array` would compile a program for each shape.
    """
    return jax.device_put(array, may_alias=False)


def _classes_of(
    configuration: Configuration, given: Mapping[str, type[LoRAWrapper]], registry: Registry
) -> tuple[dict[str, type[LoRAWrapper]], Problems]:
    section = configuration.extension
    advice = _PASS_IT if section is None else f"Pass it: {section.reader}(..., wrappers=[{{}}])"
    class_of = functools.partial(_class_of, given=given, registry=registry, advice=advice)
    by_class: dict[Any, list[Entry]] = {}
    for entry in configuration.entries:
        sums = entry.members, entry.trains_weights
        name = entry.distribution, entry.version, entry.wrapper, *sums
        by_class.setdefault(name, []).append(entry)
    classes: dict[str, type[LoRAWrapper]] = {}
    problems: Problems = {}
    for (*_, members, trains), alike in by_class.items():
        try:
            cls = class_of_sum(members, trains, class_of) if members else class_of(alike[0])
            classes |= dict.fromkeys([x.path for x in alike], cls)
        except PluginError as err:
            paths = ", ".join(show_path(entry.path) for entry in alike[:3])
            more = f" and {len(alike) - 3} more" if len(alike) > 3 else ""
            problems[f"{paths}{more}: {err}"] = err
    return classes, problems


def _dtype_problem(where: str, array: np.ndarray) -> str:
    """A line for an array of a dtype that JAX does not hold; else empty."""
    if jax.dtypes.canonicalize_dtype(array.dtype) == array.dtype:
        return ""
    advice = "which JAX holds only with `jax.config.update('jax_enable_x64', True)`"
    return f"{where}: {array.dtype}, {advice}"


def _problems_of(entry: Entry, cls: type[LoRAWrapper], arrays: dict[str, np.ndarray]) -> list[str]:
    if not issubclass(cls, AdapterSum):
        return _problems_in(entry.path, entry, cls, arrays)
    weights = {name: array for name, array in arrays.items() if "/" not in name}
    lines = _dtype_problems(entry.path, cls, weights)
    lines += problems_of_members(entry.path, {m.name: m.wrapper for m in cls.members})
    for part, member in zip(entry.members, cls.members, strict=True):
        place = f"{entry.path}/{part.name}"
        lines += _problems_in(place, part, member.wrapper, state_of(part.name, arrays))
    return lines


def _problems_in(
    path: str, entry: Entry | Part, cls: type[LoRAWrapper], arrays: Mapping[str, Any]
) -> list[str]:
    return _dtype_problems(path, cls, arrays) + [
        f"{show_path(path)}: its {name} is null, but a {cls.__name__} needs a finite number"
        for name in takes(cls)
        if getattr(entry, name) is None
    ]


def _dtype_problems(path: str, cls: type[LoRAWrapper], arrays: Mapping[str, Any]) -> list[str]:
    problems: list[str] = []
    for name, array in arrays.items():
        where, dtype = f"{show_path(path)}/{name}", array.dtype
        trains = name.partition("/")[0] in (*cls.adapter_fields, *cls.optional_fields)
        if problem := _dtype_problem(where, array):
            problems.append(problem)
        elif trains and not jnp.issubdtype(dtype, jnp.inexact):
            problems.append(f"{where}: {dtype}, but it trains, so it must have a floating dtype")
    return problems


def warn_of_non_finite(path: FilePath, contents: Contents, loaded: Collection[str]) -> None:
    configuration = contents.configuration
    entries = (entry for entry in configuration.entries if entry.path in loaded)
    tensors = [name for entry in entries for name in entry.tensors.values()]
    shared_tensors = configuration.shared_tensors | configuration.extension_tensors
    lines = [
        f"{name}: {count:,} of {contents.values[name].size:,} numbers"
        for name in (*tensors, *shared_tensors.values())
        if (count := count_non_finite(contents.values[name]))
    ]
    if lines:
        warn(f"Arrays of {os.fspath(path)!r} hold NaN or infinity:\n{bullets(lines)}")


def _classes_by_name(given: Classes) -> dict[str, type[LoRAWrapper]]:
    if isinstance(given, str) or not isinstance(given, type | Iterable | None):
        raise SelectionError(
            f"`wrappers` must be adapter classes, but is {given!r}. Classes from plugins are "
            "found without `wrappers`."
        )
    classes: dict[str, type[LoRAWrapper]] = {}
    for cls in [given] if isinstance(given, type) else given or ():
        check_contract(cls)
        if classes.setdefault(cls.__name__, cls) is not cls:
            raise SelectionError(
                f"`wrappers` has two classes of the name {cls.__name__!r}. Load the adapters of "
                "each class in a separate call, with strict=False."
            )
    return classes


_PASS_IT = (
    "Pass it: load_adapters(..., wrappers=[{}]). read_adapters takes the same argument, and so "
    "does jno_lora_zoo.load_grown, which reads the layers that jno_lora_zoo.grow made"
)


def _class_of(
    entry: Entry | Part, given: Mapping[str, type[LoRAWrapper]], registry: Registry, advice: str
) -> type[LoRAWrapper]:
    """The class of an entry. **Raises:** `PluginError` that says what to install or to pass."""
    if entry.wrapper in given:
        return given[entry.wrapper]
    # Package indexes and bounds do not know local versions, such as "1.0+cpu" (PEP 440).
    public = entry.version.partition("+")[0]
    requirement = f"{entry.distribution}>={public}" if public else entry.distribution
    install = f'If you trust this file:\n    pip install -U "{requirement}"\n'
    try:
        provided = registry.provided(entry.distribution, entry.wrapper)
    except PluginError as err:
        advice = advice.format(entry.wrapper)
        if entry.distribution is None:
            problem = f"{entry.wrapper} is a class that no plugin provides. {advice}"
        else:
            problem = f"{err}. {install if registry.discover else advice}"
        raise PluginError(problem) from err
    if provided.version and _major_minor(provided.version) < _major_minor(entry.version):
        raise PluginError(
            f"it was saved with {entry.wrapper} of {entry.distribution} {entry.version}, which is "
            f"newer than the installed {provided.version}. {install}"
        )
    return provided.cls


def _major_minor(version: str) -> tuple[int, int]:
    """`(1, 2)` for a version such as `1.2.3`. Versions that do not parse sort first."""
    match = re.match(r"(\d{1,9})(?:\.(\d{1,9}))?", version)
    return (0, 0) if match is None else (int(match[1]), int(match[2] or 0))
