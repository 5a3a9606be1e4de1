"""AdaLoRA: an update in the form of a singular value decomposition."""

import math
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from jno.lora import LowRankForm

from .._arrays import Matrix, in_compute_dtype, scaled
from .._bibtex import cited
from .._scaled import Scaled


class AdaLoRA(Scaled):
    """AdaLoRA: a low-rank update with a trained weight for each of its directions.

    Law: `W' = W + (alpha / r) B diag(E) A`, `A ~ N(0, 1/in)`, `B ~ N(0, 1/out)`, `E = 0`.
    `r(in + out + 1)` parameters train. `r = min(rank, in, out)`.

    A direction whose entry of `E` is zero has no effect. `AdaLoRAController`, the paper's
    allocator, moves rank between layers by setting entries to zero, which changes no shapes;
    `jno_lora_combine.shrink` then removes these directions. The penalty
    `||A A^T - I||^2 + ||B^T B - I||^2` (Frobenius norms; see `jno_lora_train.penalty`) keeps rows
    of `A` and columns of `B` orthonormal. With the variances here, they start almost orthonormal.

    Paper: Zhang et al., "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning",
    arXiv:2303.10512. PEFT starts both factors from `N(0, 0.02^2)`, and divides by `r + 1e-5`.
    """

    adapter_fields = ("lora_A", "lora_B", "lora_E")
    rank_gate = "lora_E"
    rank_axes: ClassVar[Mapping[str, int]] = {"lora_A": 0, "lora_B": 1}
    variant = "adalora"
    about = cited("2303.10512", family="low rank", formula="r (in + out + 1)")

    lora_A: Float[Array, "r in"]
    lora_B: Float[Array, "out r"]
    lora_E: Float[Array, " r"]

    def start(self, W: Matrix, r: int, key: PRNGKeyArray, dtype: DTypeLike) -> dict[str, Array]:
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

    def low_rank_form(self) -> LowRankForm:
        A = in_compute_dtype(self.lora_A)
        return LowRankForm(scaled(A, self.times_scale(self.lora_E)), self.lora_B)

    def penalty(self) -> Float[Array, ""]:
        A, B = in_compute_dtype(self.lora_A), in_compute_dtype(self.lora_B)
        identity = jnp.eye(len(A), dtype=A.dtype)
        return jnp.sum((A @ A.T - identity) ** 2) + jnp.sum((B.T @ B - identity) ** 2)

    def forward(self, x: ArrayLike) -> Array:
        E = self.times_scale(self.lora_E)
        return self.low_rank(x, self.lora_A, self.lora_B, between=lambda h: scaled(h, E))
