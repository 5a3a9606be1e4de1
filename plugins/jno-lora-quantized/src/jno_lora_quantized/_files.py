"""Save a whole quantised model to one safetensors file, and load it."""

import dataclasses
import json
import os
import reprlib
from collections.abc import Mapping
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, PyTree

from jno.lora import CheckpointError, SelectionError
from jno.lora.extending import (
    adapted_layers,
    bullets,
    expect_model,
    is_coded,
    path_str,
    read_file,
    show_array,
    values_of,
    write_file,
)

from ._array import QuantizedArray, placed_like
from ._layers import all_plain, decoding
from ._plan import quantizable_layers, stack_ndim
from ._schemes import scheme_named

M = TypeVar("M")
FilePath = str | os.PathLike[str]

_KEY = "jno_lora_quantized"


def save_quantized(model: PyTree, path: FilePath) -> None:
    """Write all arrays of a model, including codes, to one safetensors file.

    If the process is killed meanwhile, either the old or the new file is left complete. The file
    has a checksum of each array, which `load_quantized` verifies.

    **Arguments:**

    - `model`: a model without adapters, such as `unwrap_lora(model)`.
    - `path`: of the file, usually `NAME.safetensors`. Its directory must exist.

    **Raises:** `CheckpointError` if the model has adapters, an array cannot be stored, or the file
    cannot be written; `SelectionError` if `model` is a `Net` or a set.
    """
    expect_model(model, "save_quantized")
    if next(adapted_layers(model), None) is not None:
        raise CheckpointError(
            "save_quantized keeps a base. Save the adapters by save_adapters(model, path), and "
            "the base by save_quantized(unwrap_lora(model), path)."
        )
    tensors: dict[str, np.ndarray] = {}
    descriptions: dict[str, object] = {}
    for name, array in _arrays(model):
        if isinstance(array, QuantizedArray):
            form = {"dtype": str(array.dtype), "stack_ndim": array.codes.ndim - 2}
            scheme = {"scheme": array.scheme.name, **dataclasses.asdict(array.scheme)}
            descriptions[name] = {**form, **scheme}
        for tensor_name, leaf in _tensors(name, array):
            if tensor_name in tensors:
                raise CheckpointError(
                    f"Two arrays have the path {tensor_name!r}: a dict key in it holds a slash. "
                    "Rename it."
                )
            tensors[tensor_name] = values_of(leaf, f"The array {tensor_name!r}")
    write_file(path, tensors, {_KEY: json.dumps({"version": 1, "weights": descriptions})})


def load_quantized(template: M, path: FilePath) -> M:
    """The model that `save_quantized` wrote.

    **Arguments:**

    - `template`: a model of the same classes and shapes, quantised or not. Its values are not used:
        `eqx.filter_eval_shape(make_model)` gives one without memory. If its arrays are on a mesh,
        the loaded arrays are placed on this mesh.
    - `path`: of the file.

    **Returns:** the template with the file's arrays and quantised weights in it.

    **Raises:** `CheckpointError`, which names the file, if it is damaged, of another format, or
    does not fit the template; `SelectionError` if `template` is a `Net` or a set.
    """
    expect_model(template, "load_quantized")
    plain = eqx.filter_eval_shape(all_plain, template)
    stacks = eqx.filter_eval_shape(_stack_ndims, plain)
    tensors, metadata = read_file(path)
    descriptions = _descriptions(path, metadata)
    old_arrays = dict(_arrays(template))
    arrays: dict[str, Array | QuantizedArray] = {}
    problems: list[str] = []
    for name, form in dict(_arrays(plain)).items():
        if name in descriptions:
            form = _coded_form(form, stacks.get(name), descriptions.pop(name))
        misfits = [f"{name}: {form}"] if isinstance(form, str) else _misfits(name, form, tensors)
        if misfits:
            problems += misfits
            continue
        values = [jnp.asarray(tensors.pop(tensor_name)) for tensor_name, _ in _tensors(name, form)]
        array = jtu.tree_unflatten(jtu.tree_structure(form), values)
        arrays[name] = placed_like(array, old_arrays[name])
    problems += [f"{name}: not an array of the model" for name in descriptions]
    problems = problems or [f"{name}: not an array of the model" for name in tensors]
    if problems:
        listed = bullets(problems)
        raise CheckpointError(f"{os.fspath(path)!r} does not fit the template:\n{listed}")
    filled = jtu.tree_map_with_path(lambda keys, leaf: arrays.get(path_str(keys), leaf), plain)
    return decoding(filled)


def _misfits(name: str, form: PyTree, tensors: Mapping[str, np.ndarray]) -> list[str]:
    misfits: list[str] = []
    for tensor_name, leaf in _tensors(name, form):
        tensor = tensors.get(tensor_name)
        if tensor is None or tensor.shape != leaf.shape or tensor.dtype != leaf.dtype:
            shown = "no such array" if tensor is None else show_array(tensor)
            misfits.append(f"{tensor_name}: expected {show_array(leaf)}, the file has {shown}")
    return misfits


def _coded_form(weight: PyTree, ndim: int | None, description: PyTree) -> QuantizedArray | str:
    """The quantised form of a weight from a file's description, or why this is impossible."""
    if ndim is None:
        return "the file has codes, but it is not a weight that `quantize` takes"
    try:
        settings = dict(description)
        dtype, stack = settings.pop("dtype"), settings.pop("stack_ndim")
        scheme = scheme_named(settings.pop("scheme"), **settings)
    except (TypeError, ValueError, KeyError, SelectionError) as err:
        return f"the file describes {reprlib.repr(description)}, which is not a known form ({err})"
    if dtype != str(weight.dtype) or stack != ndim:
        return (
            f"the file has the form {reprlib.repr(description)}, the template "
            f"{show_array(weight)}, in a stack of {ndim} axes"
        )
    return eqx.filter_eval_shape(QuantizedArray.of, weight, scheme, ndim)


def _descriptions(path: FilePath, metadata: Mapping[str, str]) -> dict[str, object]:
    try:
        content = json.loads(metadata.get(_KEY, "null"))
        weights = content["weights"] if content["version"] == 1 else None
    except (ValueError, TypeError, KeyError, RecursionError):
        weights = None
    if not isinstance(weights, dict):
        raise CheckpointError(
            f"{os.fspath(path)!r} cannot be used: it is not a file of save_quantized, or a newer "
            "version wrote it."
        )
    return weights


def _stack_ndims(model: PyTree) -> dict[str, int]:
    """The number of stack axes, by the path of each weight that can be quantised."""
    layers = quantizable_layers(model).items()
    return {f"{path}/weight".lstrip("/"): stack_ndim(layer) for path, layer in layers}


def _arrays(tree: PyTree) -> list[tuple[str, PyTree]]:
    """The arrays of `tree`, with their paths. A quantised weight counts as one array."""
    return [
        (path_str(keys), node)
        for keys, node in jtu.tree_leaves_with_path(tree, is_leaf=is_coded)
        if eqx.is_array(node) or isinstance(node, jax.ShapeDtypeStruct) or is_coded(node)
    ]


def _tensors(name: str, array: PyTree) -> list[tuple[str, Array | jax.ShapeDtypeStruct]]:
    leaves = jtu.tree_leaves_with_path(array)
    return [(f"{name}/{path_str(keys)}" if keys else name, leaf) for keys, leaf in leaves]
