"""Adapters to a file."""

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import equinox as eqx
import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree

from .._contract.checks import NotAPytree, expect_model
from .._contract.matrix_adapter import Composite, Member, registered_class
from .._contract.wrapper import LoRAWrapper
from .._errors import CheckpointError, errors_as
from .._paths import show_place
from .._registry.plugins import IN_PROCESS, RegisteredWrapper
from .._registry.registry import Registry, default_registry
from .._sets.set import AdapterSet, LooseAdapter, check_fit, extract_adapters
from .._tree import adapted_layers
from .._version import __version__
from .base_values import hashes, known_layers, on_the_host
from .file import DTYPES, FilePath, MalformedError, brief, serialised, write_atomically
from .format import EXTENSION, KEY, SHARED, Configuration, Entry, Extension, Layer, Part, Section

ProviderOf: TypeAlias = Callable[[type[LoRAWrapper]], RegisteredWrapper | None]


def save_adapters(
    model: PyTree | NotAPytree | AdapterSet,
    path: FilePath,
    *,
    registry: Registry | None = None,
    base_values: bool | PyTree = True,
    metadata: Mapping[str, Any] | None = None,
    proof: Any = None,
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
    - `proof`: inputs of the model with a leading axis of examples; a tuple if it takes several;
        or `Inputs` of the plugin. The file then keeps what the model computes on them, so that
        `load_adapters(..., prove=True)` and `prove` of the plugin find out whether loaded adapters
        act. Needs `jno-lora[proof]`.

    **Raises:** `CheckpointError` if there are no adapters, an array or a value of the metadata
    cannot be stored (typed PRNG keys, dtypes that safetensors lacks, tracers; NaN, nested dicts),
    or the file cannot be written. `SelectionError` if the model given as `base_values` lacks a
    layer of the set.
    """
    if isinstance(model, NotAPytree):
        net: Any = model
        settings: Any = {"base_values": base_values, "metadata": metadata, "proof": proof}
        net.save_adapters(path, registry=registry, **settings)
        return
    if not isinstance(model, AdapterSet):
        expect_model(model, "save_adapters")
        _refuse_half(model)
    registry = default_registry(registry)
    add_proof = registry.recorded(model, proof)
    save(model, path, registry, base_values, metadata)
    add_proof(path)


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
    originals: Mapping[str, eqx.Module] | None = None,
) -> None:
    """Write the adapters of `model` into one file, atomically.

    - `originals`: layers as they were before adapting, by path.
    """
    adapters = model if isinstance(model, AdapterSet) else extract_adapters(model)
    layers: Mapping[str, eqx.Module] = {}
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
    else:
        _write_by_the_first_process(path, content)


def _write_by_the_first_process(path: FilePath, content: bytes) -> None:
    """Every process calls this, and all raise if the first process fails."""
    from jax.experimental import multihost_utils  # here, because only many processes need it

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
    layers: Mapping[str, eqx.Module],
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
        about = extension.distribution, extension.kind, extension.reader
        section = Section(*about, dict(extension.content), tuple(extension.arrays))
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
    described = {"wrapper": cls.__name__, "distribution": distribution, "version": version}
    described |= {"variant": cls.variant, "rank": rank, "alpha": alpha}
    if issubclass(composite := adapter.wrapper, Composite):
        described["members"] = {
            m.name: Part(**_described(m, provider_of), trains=m.trains) for m in composite.members
        }
        described["trains_weights"] = "weights" in composite.adapter_fields
    return described


def _as_json(value: object, what: str) -> Any:
    """A user's metadata as JSON. Numbers and 1-d arrays of NumPy and JAX are converted."""
    if isinstance(value, list | tuple):
        return [_as_json(inner, what) for inner in value]
    value = values_of(value, what) if isinstance(value, jax.Array) else value
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def values_of(array: object, what: str) -> np.ndarray:
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
