"""The sum of the adapters' penalties, for a loss."""

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jno.lora import LoRAWrapper, WrapperError
from jno.lora.extending import (
    adapted_layers,
    at_least_float32,
    errors_as,
    expect_model,
    over_stack,
    overrides,
    show_path,
    widest,
)


def penalty(model: PyTree) -> Float[Array, ""]:
    """The sum of the penalties that adapters define, to add to a loss.

        loss(model) + 0.1 * jno_lora_train.penalty(model)

    AdaLoRA's penalty keeps its directions orthonormal. Every layer of a stack contributes. The sum
    is differentiable, and 0 if no adapter of `model` defines a `penalty`.

    **Arguments:** `model`, the whole model: `eqx.combine(trainable, frozen)`.

    **Returns:** a scalar, float32 at least.

    **Raises:** `WrapperError`, naming the path, if an adapter's `penalty` fails or is not one real
    number; `SelectionError` if `model` is a `Net` or a set.
    """
    expect_model(model, "penalty")
    penalties: list[Array] = []
    for path, adapter in adapted_layers(model):
        if overrides(type(adapter), LoRAWrapper, "penalty"):
            name = type(adapter).__name__
            with errors_as(f"compute the penalty of the {name} at {show_path(path)!r}"):
                penalties.append(_penalty_of(adapter))
    if not penalties:
        return jnp.asarray(0.0)  # of a weak type, so that a loss keeps its precision
    dtype = widest(x.dtype for x in penalties)
    return jnp.sum(jnp.stack([x.astype(dtype) for x in penalties]))


def _penalty_of(adapter: LoRAWrapper) -> Array:
    ndim = type(adapter).stack_ndim(adapter.base)
    value = over_stack(lambda layer: jnp.asarray(layer.penalty()), ndim)(adapter)
    if value.ndim != ndim or not jnp.issubdtype(value.dtype, jnp.floating):
        came = f"{value.dtype} {value.shape[ndim:]}"
        raise WrapperError(f"`penalty()` must return one real number for a layer, not {came}")
    return jnp.sum(at_least_float32(value))
