"""A replay penalty: how far an adapted model has moved from its base on earlier inputs."""

from collections.abc import Callable
from typing import Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, ArrayLike, Float, PyTree

from jno.lora import Net, SelectionError, disabled, resolve
from jno.lora.extending import (
    adapted_layers,
    at_least_float32,
    bullets,
    check_number,
    expect_model,
    path_str,
    show_array,
    show_path,
    widest,
)

Distance = Literal["squared", "kl"]


def retain(
    model: PyTree,
    inputs: PyTree,
    weight: ArrayLike = 1.0,
    *,
    call: Callable[[PyTree, PyTree], PyTree] | None = None,
    distance: Distance = "squared",
    base: PyTree | None = None,
) -> Float[Array, ""]:
    r"""A replay penalty: how far the adapted model has moved from its base on earlier inputs.

        loss(model, batch) + jno_lora_train.retain(model, earlier_inputs, weight=0.1)

    It needs inputs from the earlier data, but no labels. The base gets no gradient. It costs a
    forward pass of the base on `inputs`, and a forward and a backward pass of the adapted model. A
    loss that computes the outputs on `inputs` anyway can subtract the outputs of `disabled(model)`
    itself, which costs only the forward pass of the base.

    **Arguments:**

    - `model`: the whole adapted model: `eqx.combine(trainable, frozen)`. It need not be resolved.
    - `inputs`: the argument of `call`; by default a pytree of arrays whose first axis runs over the
        examples.
    - `weight`: the factor of the penalty; may be traced.
    - `call`: a function of a model and `inputs` that returns the outputs, any pytree. By default
        `jax.vmap(model)(inputs)`. It is called for both models, so both get the same random keys.
    - `distance`: `"squared"`: the mean of `|f(x) - f_base(x)|^2` over all numbers of the outputs.
        `"kl"`: for outputs that are logits along their last axis, the mean of
        `sum_k p_base log(p_base / p)` over all other axes.
    - `base`: another model to stay near, such as the original in full fine-tuning. By default
        `disabled(model)`.

    **Returns:** a scalar of at least float32; 0 as long as the adapters change nothing.

    **Raises:** `SelectionError` if the model has no adapters and `base` is not given, if the
    outputs have no floating or complex numbers or differ in structure or shape, or if an argument
    is invalid; any error of `call`.

    Papers: Li and Hoiem, "Learning without Forgetting", arXiv:1606.09282; Buzzega et al., "Dark
    Experience for General Continual Learning: a Strong, Simple Baseline", arXiv:2004.07211.
    """
    expect_model(model, "retain")
    check_number("weight", weight)
    if distance not in get_args(Distance):
        raise SelectionError(f"`distance` must be 'squared' or 'kl', but is {distance!r}.")
    if base is None:
        if next(adapted_layers(model), None) is None:
            raise SelectionError(
                "retain compares an adapted model with its base, but this model carries no "
                "adapters. Give the whole adapted model, eqx.combine(trainable, frozen), or the "
                "model to stay near: retain(model, inputs, base=original)."
            )
        base = disabled(model)
    expect_model(base, "retain")
    call = call or _mapped
    new, old = call(resolve(model), inputs), call(resolve(base), inputs)
    pairs = _pairs(new, old)
    value = _squared(pairs) if distance == "squared" else _kl(pairs)
    return jnp.asarray(weight, value.dtype) * value


def _mapped(model: PyTree, inputs: PyTree) -> PyTree:
    return jax.vmap(Net(model))(inputs)


def _pairs(new: PyTree, old: PyTree) -> list[tuple[str, Array, Array]]:
    """The floating and complex arrays of two outputs, paired by their path in the output."""
    columns = [
        [(path_str(keys), at_least_float32(leaf)) for keys, leaf in jtu.tree_leaves_with_path(tree)]
        for tree in (eqx.filter(new, eqx.is_inexact_array), eqx.filter(old, eqx.is_inexact_array))
    ]
    shown = [{path: show_array(leaf) for path, leaf in column} for column in columns]
    if shown[0] != shown[1]:
        first, second = shown
        lines = [
            f"{show_path(path)}: {first.get(path, 'nothing')} from the model, "
            f"{second.get(path, 'nothing')} from the base"
            for path in first | second
            if first.get(path) != second.get(path)
        ]
        raise SelectionError(f"The outputs of model and base differ:\n{bullets(lines)}")
    if not sum(x.size for _, x in columns[0]):
        raise SelectionError(
            "The outputs to retain hold no floating or complex numbers. `call` must return the "
            "outputs of the model that it is given."
        )
    stop = jax.lax.stop_gradient
    return [(path, x, stop(y)) for (path, x), (_, y) in zip(*columns, strict=True)]


def _squared(pairs: list[tuple[str, Array, Array]]) -> Array:
    sums = [jnp.sum(jnp.square(jnp.abs(x - y))) for _, x, y in pairs]
    return _total(sums) / sum(x.size for _, x, _ in pairs)


def _kl(pairs: list[tuple[str, Array, Array]]) -> Array:
    rows = 0
    sums: list[Array] = []
    for path, x, y in pairs:
        if not x.ndim or not x.shape[-1] or jnp.iscomplexobj(x):
            raise SelectionError(
                f"distance='kl' is for real logits along a last axis, but the output "
                f"{show_path(path)!r} is {show_array(x)}. Return the logits alone from `call`, or "
                "use distance='squared'."
            )
        log_p, log_base = jax.nn.log_softmax(x), jax.nn.log_softmax(y)
        # `exp` of a logit of minus infinity is 0, and 0 times infinity would be NaN.
        terms = jnp.where(log_base > -jnp.inf, jnp.exp(log_base) * (log_base - log_p), 0)
        sums.append(jnp.sum(terms))
        rows += x.size // x.shape[-1]
    return _total(sums) / rows


def _total(sums: list[Array]) -> Array:
    dtype = widest(value.dtype for value in sums)
    return jnp.sum(jnp.stack([value.astype(dtype) for value in sums]))
