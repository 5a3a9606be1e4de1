"""Replace the weights of a model by codes, and codes by weights."""

from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax.core import Tracer
from jaxtyping import Array, Bool, PyTree

from jno.lora import SelectionError
from jno.lora.extending import bullets, expect_model, path_str, show_path

from ._array import QuantizedArray, placed_like
from ._layers import all_plain, decoding
from ._plan import as_pattern, is_template, layers_to_quantize, stack_ndim
from ._schemes import scheme_named

M = TypeVar("M")


def quantize(
    model: M,
    scheme: str = "nf4",
    *,
    target: str | None = None,
    block: int = 64,
    double: bool = True,
) -> M:
    """`model`, with its layers' weights replaced by codes. Adapters work as before.

    It quantises linear, convolution and embedding layers, their look-alikes and stacks, also inside
    adapters. `plan_quantization` lists the layers that it leaves alone. It works layer by layer, so
    `quantize(make_model())` never needs more memory than the model, the codes so far and one more
    layer.

    **Arguments:**

    - `model`: any pytree, or its template (`eqx.filter_eval_shape`).
    - `scheme`: `"nf4"` or `"int4"` (about 4.13 bits for each number), `"int8"` or `"fp8"` (8 bits).
    - `target`: a regex, searched for in the paths of layers (`encoder/layers/0/query`).
    - `block`: for `"nf4"` and `"int4"`, the number of entries of a row that share a scale.
    - `double`: for `"nf4"` and `"int4"`, whether to quantise the scales as well.

    **Returns:** the model, with a `QuantizedArray` for each weight.

    **Raises:** `SelectionError` for an unknown scheme, if nothing can be quantised, if a weight
    holds NaN or infinities, and if `model` is a `Net` or a set.
    """
    expect_model(model, "quantize")
    coding, pattern = scheme_named(scheme, block, double), as_pattern(target)
    if is_template(model):
        settings = {"scheme": scheme, "target": target, "block": block, "double": double}
        return eqx.filter_eval_shape(quantize, model, **settings)
    reasons = {keys: reason for keys, _, reason in layers_to_quantize(model, pattern)}
    chosen = {keys for keys, reason in reasons.items() if reason is None}
    if not chosen:
        lines = [f"{show_path(path_str(keys))}: {reason}" for keys, reason in reasons.items()]
        raise SelectionError(
            f"quantize finds no weight that it could quantise:\n{bullets(lines or ['no layers'])}"
        )

    nodes, treedef = jtu.tree_flatten_with_path(
        model, is_leaf=lambda keys, _: keys in chosen, is_leaf_takes_path=True
    )
    # No variable refers to an old layer once its codes exist.
    del model
    quantized: list[PyTree] = []
    nodes.reverse()
    while nodes:
        keys, node = nodes.pop()
        if keys in chosen:
            codes = QuantizedArray.of(jnp.asarray(node.weight), coding, stack_ndim(node))
            node = with_codes(path_str(keys), node, codes)
        quantized.append(node)
    return jtu.tree_unflatten(treedef, quantized)


def dequantize(model: M) -> M:
    """`model`, with each `QuantizedArray` replaced by the decoded weight.

    **Arguments:** `model`, any pytree. Everything but its quantised weights is unchanged.

    **Raises:** `SelectionError` if `model` is a `Net` or a set.
    """
    expect_model(model, "dequantize")
    return eqx.filter_eval_shape(all_plain, model) if is_template(model) else all_plain(model)


def with_codes(path: str, layer: PyTree, codes: QuantizedArray) -> PyTree:
    """**Raises:** `SelectionError` if the codes decode to numbers that are not finite."""
    weight = jnp.asarray(layer.weight)
    if not isinstance(weight, Tracer) and not _is_finite(codes):
        raise SelectionError(
            f"The weight of the {type(layer).__name__} at {show_path(path)!r} holds NaN, "
            f"infinities, or numbers too near to the largest of {weight.dtype}: its codes do not "
            "stand for finite numbers."
        )
    return decoding(eqx.tree_at(lambda m: m.weight, layer, placed_like(codes, weight)))


@jax.jit
def _is_finite(codes: QuantizedArray) -> Bool[Array, ""]:
    return jnp.all(jnp.isfinite(codes.decoded()))
