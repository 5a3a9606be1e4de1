"""Adapters to a file and back: of a model, of a `Net`, or as a set."""

from typing import Any, TypeVar

from jaxtyping import PyTree

from .._contract import Handle
from .._errors import warn
from .._registry import Registry, default_registry
from .._sets import AdapterSet, extract_adapters
from ._container import FilePath
from ._loading import load, read_set
from ._saving import save
from ._wrappers import Classes

M = TypeVar("M")


def save_adapters(
    model: PyTree | Handle | AdapterSet, path: FilePath, *, registry: Registry | None = None
) -> None:
    """Write the adapters of a model, and nothing else of it, into one safetensors file.

    The file holds the arrays of each adapter's `state()` by their paths, and JSON in its metadata
    that says how to build the adapters again. There is the old file or the new one, whole, whatever
    happens while it is written. Sharded arrays are gathered one by one. If an array lies on devices
    of several processes, every process must make this call, and the first writes.

    **Arguments:**

    - `model`: an adapted model, a `Net`, or the `AdapterSet` of `extract_adapters`.
    - `path`: of the file, by custom `NAME.safetensors`. Its directory must exist.
    - `registry`: where the plugins of the adapters' classes are looked up, instead of among the
        installed ones.

    **Raises:** `CheckpointError` if there are no adapters, if an array cannot be stored (typed PRNG
    keys, dtypes that safetensors lacks, tracers), or if the file cannot be written. A file that was
    there before is whole then.
    """
    if isinstance(model, Handle):
        net: Any = model
        net.save_adapters(path, registry=registry)
        return
    adapters = model if isinstance(model, AdapterSet) else extract_adapters(model)
    save(adapters, path, default_registry(registry))


def load_adapters(
    model: M,
    path: FilePath,
    *,
    strict: bool = True,
    wrappers: Classes = (),
    registry: Registry | None = None,
) -> M:
    """`model` with the adapters of a file around its layers.

    The initialisers do not run: no decomposition, no random numbers. An adapter of the file
    replaces the one that its layer carries; layers that the file does not name stay as they are.
    Arrays go onto the mesh of their layers.

    **Arguments:**

    - `model`: the model that the adapters were made for (its layers of the same shapes and dtypes
        at the same paths), or a `Net` of it, which is changed and returned.
    - `path`: of a file that `save_adapters` wrote.
    - `strict`: whether all adapters must fit. If not, those that do are loaded, and a
        `JnoLoraWarning` lists the others.
    - `wrappers`: one class or several for the adapters of their names, instead of those that
        plugins provide. All others come from the plugin that the file names.
    - `registry`: where that plugin is looked up, instead of among the installed ones.

    **Returns:** the adapted model (or the `Net`). Arrays that hold NaN or infinity are loaded, with
    a `JnoLoraWarning`.

    **Raises:** `CheckpointError` if the file is damaged, if a plugin is missing or older than the
    one that wrote it (naming the plugin and how to install it), or if something does not fit the
    model: everything is listed at once, and nothing was changed. `WrapperError` if one of
    `wrappers` is not an adapter class, `SelectionError` if two have one name.
    """
    if isinstance(model, Handle):
        net: Any = model
        return net.load_adapters(path, strict=strict, wrappers=wrappers, registry=registry)
    registry = default_registry(registry)
    loaded = load(model, path, strict=strict, wrappers=wrappers, registry=registry)
    for message in loaded.warnings:
        warn(message)
    return loaded.put_into(model)


def read_adapters(
    path: FilePath,
    *,
    wrappers: Classes = (),
    registry: Registry | None = None,
) -> AdapterSet:
    """The adapters of a file, without a model: for `swap_adapters`, or to combine them.

    **Arguments:** those of `load_adapters`.

    **Raises:** `CheckpointError` if the file is damaged, or a plugin cannot be used; for `wrappers`
    as `load_adapters`.
    """
    adapters, messages = read_set(path, wrappers, default_registry(registry))
    for message in messages:
        warn(message)
    return adapters
