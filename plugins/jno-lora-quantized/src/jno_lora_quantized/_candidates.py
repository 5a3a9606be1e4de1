"""The layers of a model with floating arrays, and which of them can be quantised."""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import PyTree

from jno.lora import LoRAWrapper, SelectionError
from jno.lora.coded import is_coded
from jno.lora.extending import bullets, path_str, show_path
from jno_lora_zoo import LAYER_KINDS

_KINDS = tuple(kind for kind in LAYER_KINDS if kind.weight_axes is not None)
_EVERY_PATH = re.compile("")
_NORMS = (eqx.nn.WeightNorm, eqx.nn.SpectralNorm)

Keys = tuple[Any, ...]


def layers_to_quantize(
    model: PyTree, pattern: re.Pattern[str] = _EVERY_PATH, keys: Keys = ()
) -> Iterator[tuple[Keys, Any, str | None]]:
    """The keys of each layer with floating arrays, the layer, and the reason to leave it alone."""
    while isinstance(model, LoRAWrapper):  # its other layers belong to the adapter, and may train
        model, keys = model.base, (*keys, jtu.GetAttrKey("base"))
    if is_coded(model):
        return
    if isinstance(model, eqx.Module):
        is_layer = weight_kind(model) is not None or isinstance(model, _NORMS)
        if is_layer or floating_arrays(model):
            yield keys, model, _reason(keys, model, pattern)
        if is_layer:
            return

    def is_inside(node: Any) -> bool:
        return node is not model and isinstance(node, eqx.Module)

    for more, node in jtu.tree_leaves_with_path(model, is_leaf=is_inside):
        if is_inside(node):
            yield from layers_to_quantize(node, pattern, (*keys, *more))


def _reason(keys: Keys, layer: Any, pattern: re.Pattern[str]) -> str | None:
    """Why a layer is left alone; `None` if it is quantised."""
    if isinstance(layer, _NORMS):
        return f"the {type(layer).__name__} rewrites the weight inside"
    if weight_kind(layer) is None:
        if any(map(jnp.iscomplexobj, floating_arrays(layer))):
            return "its numbers are complex, and have no codes"
        reasons = filter(None, (kind.why_not(layer) for kind in _KINDS))
        return next(reasons, "it is not a linear, convolution or embedding layer")
    if is_coded(layer.weight):
        return "its weight is quantised already"
    if layer.weight.size == 0:
        return "its weight is empty"
    if not pattern.search(path_str(keys)):
        return "the target does not match its path"
    return None


def weight_kind(layer: Any) -> Any:
    """The kind of a layer whose weight can be quantised; `None` for other nodes."""
    return next((kind for kind in _KINDS if kind.applies_to(layer)), None)


def quantizable_layers(model: PyTree) -> dict[str, Any]:
    layers = layers_to_quantize(model)
    return {path_str(keys): layer for keys, layer, reason in layers if reason is None}


def floating_arrays(node: Any) -> list[Any]:
    values = (getattr(node, field.name, None) for field in dataclasses.fields(node))
    return [value for value in values if eqx.is_inexact_array(value)]


def is_template(model: PyTree) -> bool:
    return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(model))


def as_pattern(target: Any) -> re.Pattern[str]:
    """The regex of a target, or of all paths. **Raises:** `SelectionError` if it is not a regex."""
    try:
        return _EVERY_PATH if target is None else re.compile(target)
    except (re.error, TypeError) as err:
        raise SelectionError(f"`target` must be a regex, but is {target!r}: {err}") from err


def nothing_to_do(model: PyTree, pattern: re.Pattern[str]) -> str:
    """The message for a model in which no layer is quantised."""
    layers = layers_to_quantize(model, pattern)
    listed = bullets(f"{show_path(path_str(keys))}: {reason}" for keys, _, reason in layers)
    return f"quantize finds no weight that it could quantise:\n{listed or '  (no layers)'}"
