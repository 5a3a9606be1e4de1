"""Put codes in the place of the weights of a model, and weights in the place of codes."""

import dataclasses
import functools
import re
from collections.abc import Iterator
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, PyTree

from jno.lora import LoRAWrapper, SelectionError
from jno.lora.coded import is_coded
from jno.lora.extending import bullets, expect_model, nearest, path_str, show_path
from jno_lora_zoo import ConvLayer, ConvTransposeLayer, EmbeddingLayer, LayerKind, LinearLayer

from ._array import QuantizedArray
from ._layers import all_plain, decoding
from ._plan import QuantizationPlan, QuantizationRow
from ._schemes import Scheme, scheme_named

M = TypeVar("M")

_CONVOLUTIONS: tuple[type[LayerKind], ...] = (ConvLayer, ConvTransposeLayer)
_KINDS = (LinearLayer, *_CONVOLUTIONS, EmbeddingLayer)
_NORMS = (eqx.nn.WeightNorm, eqx.nn.SpectralNorm)


def quantize(
    model: M,
    scheme: str = "nf4",
    *,
    target: str | None = None,
    block: int = 64,
    double: bool = True,
) -> M:
    """`model`, with codes in the place of the weights of its layers. Adapters then go on as ever.

    Linear, convolution and embedding layers, look-alikes of them and stacks; the layers inside
    adapters, too. Other layers are left alone: `plan_quantization` lists them. Layer by layer:
    `quantize(make_model())` never holds more than the model, the codes so far and one layer more.

    **Arguments:**

    - `model`: any pytree, or its template (`eqx.filter_eval_shape`).
    - `scheme`: `"nf4"` or `"int4"` (about 4.13 bits for each number), `"int8"` or `"fp8"` (8 bits).
    - `target`: a regex, searched for in the paths of layers (`encoder/layers/0/query`).
    - `block`: for the first two, the number of entries of a row that share a scale.
    - `double`: for the first two, whether scales are quantised as well.

    **Returns:** the model, with a `QuantizedArray` for each weight.

    **Raises:** `SelectionError` for an unknown scheme, if nothing can be quantised, if a weight
    holds NaN or infinities, and if `model` is a `Net` or a set.
    """
    expect_model(model, "quantize")
    chosen, pattern = scheme_named(scheme, block, double), as_pattern(target)
    if is_template(model):
        function = functools.partial(
            quantize, scheme=scheme, target=target, block=block, double=double
        )
        return eqx.filter_eval_shape(function, model)
    found = {keys for keys, _, reason in layers_to_quantize(model, pattern) if reason is None}
    if not found:
        raise SelectionError(nothing_to_do(model, pattern))

    nodes, treedef = jtu.tree_flatten_with_path(
        model, is_leaf=lambda keys, _: keys in found, is_leaf_takes_path=True
    )
    # No name holds an old layer once its codes are there.
    del model
    made: list[Any] = []
    nodes.reverse()
    while nodes:
        keys, node = nodes.pop()
        made.append(_quantized(keys, node, chosen) if keys in found else node)
    return jtu.tree_unflatten(treedef, made)


def dequantize(model: M) -> M:
    """`model`, with the decoded weight in the place of each `QuantizedArray`.

    **Arguments:** `model`, any pytree. All but its quantised weights is returned as it is.

    **Raises:** `SelectionError` if `model` is a `Net` or a set.
    """
    expect_model(model, "dequantize")
    return eqx.filter_eval_shape(all_plain, model) if is_template(model) else all_plain(model)


def plan_quantization(
    model: PyTree,
    scheme: str = "nf4",
    *,
    target: str | None = None,
    block: int = 64,
    double: bool = True,
) -> QuantizationPlan:
    """The layers that `quantize` would change, and why it would leave the others alone.

    **Arguments** and **Raises:** as `quantize`, but a plan may quantise nothing.
    """
    expect_model(model, "plan_quantization")
    made, pattern = scheme_named(scheme, block, double), as_pattern(target)
    if is_template(model):
        return eqx.filter_eval_shape(_plan, model, made, pattern)
    return _plan(model, made, pattern)


def _plan(model: PyTree, scheme: Scheme, pattern: re.Pattern[str] | None) -> QuantizationPlan:
    rows: list[QuantizationRow] = []
    for keys, layer, reason in layers_to_quantize(model, pattern):
        before = after = sum(_nbytes(array) for array in _own_arrays(layer))
        name = None
        if reason is None:
            make = functools.partial(
                QuantizedArray.of, scheme=scheme, stack_ndim=_kind(layer).stack_ndim(layer)
            )
            codes = eqx.filter_eval_shape(make, jnp.asarray(layer.weight))
            name, before, after = scheme.name, _nbytes(layer.weight), codes.nbytes
        rows.append(
            QuantizationRow(path_str(keys), type(layer).__name__, name, reason, before, after)
        )
    return QuantizationPlan(tuple(rows))


def layers_to_quantize(
    model: PyTree, pattern: re.Pattern[str] | None, parent: tuple[Any, ...] = ()
) -> Iterator[tuple[Any, Any, str | None]]:
    """The keys of each layer with floating arrays, the layer, and why it is left alone, if so."""
    found: list[tuple[Any, Any, str | None]] = []

    def visit(own_keys: Any, node: Any) -> bool:
        keys = (*parent, *own_keys)
        if not isinstance(node, eqx.Module):
            return False
        if is_coded(node):
            return True
        if isinstance(node, LoRAWrapper):  # what else it holds is its own, and may train
            found.extend(layers_to_quantize(node.base, pattern, (*keys, jtu.GetAttrKey("base"))))
            return True
        kind = _kind(node)
        if kind is not None:
            found.append((keys, node, _reason(keys, node, pattern)))
            return True
        if isinstance(node, _NORMS):
            found.append((keys, node, f"the {type(node).__name__} rewrites the weight inside"))
            return True
        if _own_arrays(node):
            answers = (kind.why_not(node) for kind in _KINDS)
            reason = next((answer for answer in answers if answer is not None), None)
            if any(jnp.iscomplexobj(array) for array in _own_arrays(node)):
                reason = "its numbers are complex, and have no codes"
            what = "it is not a linear, convolution or embedding layer"
            found.append((keys, node, reason or what))
        return False

    jtu.tree_flatten_with_path(model, is_leaf=visit, is_leaf_takes_path=True)
    return iter(found)


def _reason(keys: Any, layer: Any, pattern: re.Pattern[str] | None) -> str | None:
    if is_coded(layer.weight):
        return "its weight is quantised already"
    if layer.weight.size == 0:
        return "its weight is empty"
    if pattern is not None and not pattern.search(path_str(keys)):
        return "the target does not match its path"
    return None


def _quantized(keys: Any, layer: Any, scheme: Scheme) -> Any:
    codes = QuantizedArray.of(jnp.asarray(layer.weight), scheme, _kind(layer).stack_ndim(layer))
    return with_codes(path_str(keys), layer, codes)


def with_codes(path: str, layer: Any, codes: QuantizedArray) -> Any:
    """`layer`, with `codes` in the place of its weight.

    **Raises:** `SelectionError` if they stand for numbers that are not finite.
    """
    weight = jnp.asarray(layer.weight)
    if not isinstance(weight, Tracer) and not _is_finite(codes):
        raise SelectionError(
            f"The weight of the {type(layer).__name__} at {show_path(path)!r} holds NaN, "
            f"infinities, or numbers too near to the largest of {weight.dtype}: its codes do not "
            "stand for finite numbers."
        )
    made = eqx.tree_at(lambda m: m.weight, layer, placed_like(codes, weight))
    return decoding(made) if is_convolution(layer) else made


@jax.jit
def _is_finite(codes: QuantizedArray) -> Bool[Array, ""]:
    return jnp.all(jnp.isfinite(codes.decoded()))


def placed_like(array: Any, weight: Any) -> Any:
    """`array` on the mesh of `weight`, cut along the same axes; codes, where these divide."""
    sharding = None if isinstance(weight, Tracer) else getattr(weight, "sharding", None)
    if not isinstance(sharding, NamedSharding):
        return array
    if not is_coded(array):
        return jax.device_put(array, sharding)
    stack = array.codes.ndim - 2
    spec = (*sharding.spec, *(None,) * (weight.ndim - len(sharding.spec)))

    def place(leaf: Any) -> Any:
        # Codes and scales have the axes of the stack, and mostly those of rows and blocks.
        axes = spec[: leaf.ndim] if leaf.ndim == stack + 2 else spec[:stack]
        pairs = zip(axes, leaf.shape, strict=False)  # the rest is not sharded
        own = [axis if _divides(sharding.mesh, axis, count) else None for axis, count in pairs]
        return jax.device_put(leaf, NamedSharding(sharding.mesh, PartitionSpec(*own)))

    return jax.tree.map(place, array)


def _divides(mesh: Any, axis: Any, count: int) -> bool:
    names = () if axis is None else axis if isinstance(axis, tuple) else (axis,)
    return count % int(np.prod([mesh.shape[name] for name in names], dtype=int)) == 0


def stack_axes(model: PyTree) -> dict[str, int]:
    """The paths of all weights that can be quantised; for each, how many axes are of a stack."""
    return {
        path_str((*keys, jtu.GetAttrKey("weight"))): _kind(layer).stack_ndim(layer)
        for keys, layer, reason in layers_to_quantize(model, None)
        if reason is None
    }


def _kind(node: Any) -> Any:
    return next((kind for kind in _KINDS if kind.applies_to(node)), None)


def is_convolution(layer: Any) -> bool:
    """Whether `layer` hands its weight to JAX's convolution."""
    return _kind(layer) in _CONVOLUTIONS


def _own_arrays(node: Any) -> list[Any]:
    values = (getattr(node, field.name, None) for field in dataclasses.fields(node))
    return [value for value in values if eqx.is_inexact_array(value)]


def _nbytes(array: Any) -> int:
    return array.size * array.dtype.itemsize


def is_template(model: PyTree) -> bool:
    return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(model))


def as_pattern(target: Any) -> re.Pattern[str] | None:
    try:
        return None if target is None else re.compile(target)
    except (re.error, TypeError) as err:
        raise SelectionError(f"`target` must be a regex, but is {target!r}: {err}") from err


def nothing_to_do(model: PyTree, pattern: re.Pattern[str] | None) -> str:
    rows = {path_str(keys): reason for keys, _, reason in layers_to_quantize(model, None)}
    if pattern is not None and not any(map(pattern.search, rows)):
        near = bullets(map(show_path, nearest(pattern.pattern, rows)))
        return f"target {pattern.pattern!r} matches no layer. The nearest paths are:\n{near}"
    matching = {path: why for path, why in rows.items() if not pattern or pattern.search(path)}
    listed = bullets(f"{show_path(path)}: {why}" for path, why in matching.items())
    return f"quantize finds no weight that it could quantise:\n{listed or '  (no layers)'}"
