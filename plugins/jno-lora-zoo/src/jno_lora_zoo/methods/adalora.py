"""AdaLoRA: an update in the form of a singular value decomposition."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._arrays import Matrix, in_compute_dtype, scaled
from .._scaled import Scaled


class AdaLoRA(Scaled):
    """AdaLoRA: a low-rank update with a trained weight for each of its directions.

    Law: `W' = W + (alpha / r) B diag(E) A`, `A ~ N(0, 1/in)`, `B ~ N(0, 1/out)`, `E = 0`.
    `r(in + out + 1)` parameters train. `r = min(rank, in, out)`.

    A direction whose entry of `E` is zero has no effect: an allocator moves rank between layers by
    entries that it holds at zero, and no shape changes.

    Paper: Zhang et al., "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning",
    arXiv:2303.10512. This is the law alone, without the paper's allocator and its penalty, which
    keeps rows of `A` and columns of `B` orthonormal; with the variances here they start close to
    that. PEFT starts both factors from `N(0, 0.02^2)`, and divides by `r + 1e-5`.
    """

    adapter_fields = ("lora_A", "lora_B", "lora_E")
    variant = "adalora"
    family = "low rank"
    paper = "2303.10512"
    formula = "r (in + out + 1)"

    lora_A: Float[Array, "r in"]
    lora_B: Float[Array, "out r"]
    lora_E: Float[Array, " r"]

    def start(self, W: Matrix, r: int, key: PRNGKeyArray, dtype: Any) -> dict[str, Any]:
        outputs, inputs = W.shape
        for_A, for_B = jax.random.split(key)
        return {
            "lora_A": jax.random.normal(for_A, (r, inputs), dtype) / math.sqrt(self.fan_in(W)),
            "lora_B": jax.random.normal(for_B, (outputs, r), dtype) / math.sqrt(outputs),
            "lora_E": jnp.zeros(r, dtype),
        }

    def law(self, W: Matrix) -> Matrix:
        B, A = self.lora_B.astype(W.dtype), self.lora_A.astype(W.dtype)
        return W + B @ scaled(A, self.times_scale(self.lora_E))

    def low_rank_update(self) -> tuple[Array, Array]:
        A = in_compute_dtype(self.lora_A)
        return scaled(A, self.times_scale(self.lora_E)), self.lora_B

    def forward(self, x: Any) -> Array:
        E = self.times_scale(self.lora_E)
        return self.low_rank(x, self.lora_A, self.lora_B, between=lambda h: scaled(h, E))
