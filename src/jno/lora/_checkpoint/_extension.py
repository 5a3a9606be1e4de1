"""Files of adapters that a plugin extends by arrays and JSON of its kind."""

from collections.abc import Mapping
from typing import Any, TypeVar

from jaxtyping import PyTree

from .._contract import expect_model
from .._registry import Registry, default_registry
from .._sets import extract_adapters
from ._configuration import Configuration, Extension
from ._container import FilePath, MalformedError
from ._loading import Strict, load, with_loaded
from ._reading import Classes, copied, read, refuse_extension
from ._saving import layers_to_hash, save

M = TypeVar("M")


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

    `load_adapters` and `read_adapters` refuse the file, and say what to install. `read_metadata`
    and `jno-lora inspect` read it without the plugin.

    **Arguments:** `model`: an adapted model. `extension`: what the plugin keeps. The rest as for
    `save_adapters`.

    **Raises:** as `save_adapters`; also `CheckpointError` if the extension cannot be stored.
    """
    expect_model(model, "save_extended")
    adapters = extract_adapters(model)
    layers = layers_to_hash(base_values, model, adapters)
    save(adapters, path, default_registry(registry), layers, metadata, extension)


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

    def accept(configuration: Configuration) -> None:
        if configuration.extension is None:
            raise MalformedError("it holds adapters alone, which `jno.lora.load_adapters` reads")
        if configuration.extension.distribution != distribution:
            refuse_extension(configuration)

    contents = read(path, accept=accept)
    loaded = load(
        model, path, wrappers, default_registry(registry), strict=strict, contents=contents
    )
    section = contents.configuration.extension
    assert section is not None  # as accepted
    tensors = contents.configuration.extension_tensors
    arrays = {name: copied(contents.values[tensor]) for name, tensor in tensors.items()}
    texts = section.distribution, section.kind, section.reader
    return with_loaded(model, loaded), Extension(*texts, section.content, arrays)
