"""Adapters that are wrong on quantised weights, in a bank, or as functions of a parameter."""

import equinox as eqx
import jax
import jax.numpy as jnp

from jno_lora_zoo import LoRALinear

from ._bases import LoRA
from ._rows import changed


def first_leaf(self):
    """Scales the update by the largest number of the weight, or of what is stored for it."""
    leaves = jax.tree.leaves(self.base)
    largest = jnp.max(jnp.abs(next(x for x in leaves if eqx.is_inexact_array(x))))
    return self.lora_A, self.lora_B * jax.lax.stop_gradient(largest)


changed(
    "quantized-base",
    "TakesTheFirstLeafForTheWeight",
    factors=first_leaf,
)
changed(
    "bank",
    "CallForgetsTheScaleOfItsFactors",
    LoRALinear,
    also="merge-equals-call",
    forward=lambda self, x: self.base(x) + self.lora_B @ (self.lora_A @ x),
)
changed(
    "conditional",
    "SkipsAnUpdateOfZeros",
    also="jit",
    __call__=lambda self, x: LoRA.__call__(self, x) if self.lora_B.any() else self.base(x),
)
