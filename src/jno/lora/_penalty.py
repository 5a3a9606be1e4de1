"""The sum of the adapters' penalties, for a loss."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ._compute import at_least_float32
from ._contract import LoRAWrapper, expect_model, over_stack
from ._errors import WrapperError, failing
from ._paths import show_place
from ._tree import adapted_layers


def penalty(model: PyTree) -> Float[Array, ""]:
    """The sum of the penalties that adapters define, to add to a loss.

        loss(model) + 0.1 * jno.lora.penalty(model)

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
        if type(adapter).penalty is not LoRAWrapper.penalty:
            with failing(f"compute the penalty of {show_place(type(adapter), path)}"):
                penalties.append(_penalty_of(adapter))
    return total(penalties)


def total(values: Sequence[Array]) -> Array:
    """The sum of numbers in the widest of their dtypes."""
    widest = max((value.dtype for value in values), key=lambda dtype: dtype.itemsize, default=None)
    return sum((value.astype(widest) for value in values), start=jnp.asarray(0.0))


def _penalty_of(adapter: LoRAWrapper) -> Array:
    ndim = type(adapter).stack_ndim(adapter.base)
    value = over_stack(lambda layer: jnp.asarray(layer.penalty()), ndim)(adapter)
    if value.ndim != ndim or not jnp.issubdtype(value.dtype, jnp.floating):
        raise WrapperError(
            f"`penalty()` must return one real number for a layer, but returned {value.dtype} "
            f"{value.shape[ndim:]}"
        )
    return jnp.sum(at_least_float32(value))
