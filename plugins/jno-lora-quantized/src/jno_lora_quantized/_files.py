"""A whole quantised model in one safetensors file."""

import dataclasses
import functools
import json
import os
import reprlib
from collections.abc import Mapping
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from jno.lora import CheckpointError, SelectionError
from jno.lora.coded import is_coded
from jno.lora.extending import (
    adapted_layers,
    bullets,
    expect_model,
    path_str,
    read_file,
    show_array,
    values_of,
    write_together,
)

from ._array import QuantizedArray
from ._layers import all_plain, decoding
from ._quantize import is_convolution, placed_like, stack_axes
from ._schemes import scheme_named

M = TypeVar("M")
FilePath = str | os.PathLike[str]

_KEY = "jno_lora_quantized"


def save_quantized(model: PyTree, path: FilePath) -> None:
    """Write all arrays of a model into one safetensors file: codes as they are, the rest as well.

    Whatever happens meanwhile, there is the old file or the new one, whole.

    **Arguments:**

    - `model`: a model without adapters. (`save_adapters` keeps those of `unwrap_lora(model)`.)
    - `path`: of the file, by custom `NAME.safetensors`. Its directory must exist.

    **Raises:** `CheckpointError` if the model has adapters, an array cannot be stored, or the file
    cannot be written; `SelectionError` if `model` is a `Net` or a set.
    """
    expect_model(model, "save_quantized")
    if next(adapted_layers(model), None) is not None:
        raise CheckpointError(
            "save_quantized keeps a base. Save the adapters by save_adapters(model, path), and "
            "the base by save_quantized(unwrap_lora(model), path)."
        )
    import safetensors.numpy  # here, because only those who save and load need it

    tensors: dict[str, np.ndarray] = {}
    coded: dict[str, Any] = {}
    for name, node in _arrays(model):
        if isinstance(node, QuantizedArray):
            stack_ndim = node.codes.ndim - 2
            form = {"dtype": str(node.dtype), "stack_ndim": stack_ndim}
            coded[name] = {**form, "scheme": node.scheme.name, **dataclasses.asdict(node.scheme)}
        for own, leaf in _leaves(name, node):
            if own in tensors:
                raise CheckpointError(
                    f"Two arrays have the path {own!r}: a dict key in it holds a slash. Rename it."
                )
            tensors[own] = values_of(leaf, f"The array {own!r}")
    metadata = {_KEY: json.dumps({"version": 1, "weights": coded})}
    write_together({path: safetensors.numpy.save(tensors, metadata=metadata)})


def load_quantized(template: M, path: FilePath) -> M:
    """The model that `save_quantized` wrote.

    **Arguments:**

    - `template`: a model of the same classes and shapes, quantised or not. Its values are not
        used: `eqx.filter_eval_shape(make_model)` gives one without memory. Arrays go onto the mesh
        of the template's, if these lie on one.
    - `path`: of the file.

    **Returns:** the template with the file's arrays and quantised weights in it.

    **Raises:** `CheckpointError`, which names the file, if it is damaged, of another format, or
    does not fit the template; `SelectionError` if `template` is a `Net` or a set.
    """
    expect_model(template, "load_quantized")
    plain = eqx.filter_eval_shape(all_plain, template)
    stacks = eqx.filter_eval_shape(stack_axes, plain)
    tensors, metadata = read_file(path)
    coded = _described(path, metadata)
    expected, old_ones = dict(_arrays(plain)), dict(_arrays(template))
    made: dict[str, Any] = {}
    problems: list[str] = []
    for name, old in expected.items():
        new = _coded_form(old, stacks.get(name), coded[name]) if name in coded else old
        if isinstance(new, str):
            problems.append(f"{name}: {new}")
            continue
        leaves = dict(_leaves(name, new))
        wrong = [
            f"{own}: expected {show_array(leaf)}, the file has "
            + (show_array(tensors[own]) if own in tensors else "no such array")
            for own, leaf in leaves.items()
            if own not in tensors or not _is_alike(tensors[own], leaf)
        ]
        problems += wrong
        if not wrong:
            values = [jnp.asarray(tensors.pop(own)) for own in leaves]
            array = jtu.tree_unflatten(jtu.tree_structure(new), values)
            made[name] = placed_like(array, old_ones[name])
    problems += [f"{name}: not an array of the model" for name in coded if name not in expected]
    if not problems:
        problems += [f"{name}: not an array of the model" for name in tensors]
    if problems:
        raise CheckpointError(
            f"{os.fspath(path)!r} does not fit the template:\n{bullets(problems)}"
        )
    return _filled(plain, made)


def _filled(plain: Any, made: dict[str, Any]) -> Any:
    """The template, with these arrays in the places of its shapes."""
    filled = jtu.tree_map_with_path(lambda keys, leaf: made.get(path_str(keys), leaf), plain)

    def is_layer(node: Any) -> bool:
        return isinstance(node, eqx.Module) and is_convolution(node) and is_coded(node.weight)

    return jax.tree.map(
        lambda node: decoding(node) if is_layer(node) else node, filled, is_leaf=is_layer
    )


def _coded_form(weight: Any, stack_ndim: int | None, described: Any) -> QuantizedArray | str:
    """The quantised form of a weight by a file's description, or what is wrong with it.

    - `stack_ndim`: the number of axes of its stack; `None` if it is not a weight to quantise.
    """
    if stack_ndim is None:
        return "the file has codes, but it is not a weight that `quantize` takes"
    try:
        rest = dict(described)
        dtype, stack, name = (rest.pop(it) for it in ("dtype", "stack_ndim", "scheme"))
        scheme = scheme_named(name, **rest)
    except (TypeError, ValueError, KeyError, SelectionError) as err:
        return f"the file describes {reprlib.repr(described)}, which is not a known form ({err})"
    if dtype != str(weight.dtype) or stack != stack_ndim:
        return (
            f"the file has the form {reprlib.repr(described)}, the template {show_array(weight)}, "
            f"in a stack of {stack_ndim} axes"
        )
    make = functools.partial(QuantizedArray.of, scheme=scheme, stack_ndim=stack_ndim)
    return eqx.filter_eval_shape(make, weight)


def _described(path: FilePath, metadata: Mapping[str, str]) -> dict[str, Any]:
    """The descriptions of the quantised weights in a file with these metadata."""
    try:
        found = json.loads(metadata.get(_KEY, "null"))
        weights = found["weights"] if found["version"] == 1 else None
    except (ValueError, TypeError, KeyError, RecursionError):
        weights = None
    if not isinstance(weights, dict):
        raise CheckpointError(
            f"{os.fspath(path)!r} cannot be used: it is not a file of save_quantized, or a newer "
            "version wrote it."
        )
    return weights


def _arrays(tree: PyTree) -> list[tuple[str, Any]]:
    """The arrays of `tree`, quantised ones as one, with their paths."""
    return [
        (path_str(keys), node)
        for keys, node in jtu.tree_leaves_with_path(tree, is_leaf=is_coded)
        if eqx.is_array(node) or isinstance(node, jax.ShapeDtypeStruct) or is_coded(node)
    ]


def _leaves(name: str, node: Any) -> list[tuple[str, Any]]:
    """The arrays that a file keeps for one array of a model."""
    found = jtu.tree_leaves_with_path(node)
    return [(f"{name}/{path_str(keys)}" if keys else name, leaf) for keys, leaf in found]


def _is_alike(one: Any, other: Any) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype
