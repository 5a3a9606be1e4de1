"""LoRA, and two that change one thing about it: rsLoRA the scale, LoRA-FA which factor trains."""

import math
from typing import Any

from jaxtyping import Array, Float, PRNGKeyArray

from .._arrays import Matrix
from .._random import low_rank_start
from .._scaled import Scaled


class LowRank(Scaled):
    """`W' = W + s B A` with `A ~ N(0, 1/in)` and `B = 0`; `s` is `alpha / r` unless told otherwise.

    **Raises** (as all of the zoo's constructors): `ValueError` unless `adapter_dtype` is a floating
    dtype and `multiplier` a real number.
    """

    adapter_fields = ("lora_A", "lora_B")
    family = "low rank"
    formula = "r (in + out)"

    lora_A: Float[Array, "r in"]
    lora_B: Float[Array, "out r"]

    def start(self, W: Matrix, r: int, key: PRNGKeyArray, dtype: Any) -> dict[str, Any]:
        return low_rank_start(W, r, key, dtype, self.fan_in(W))

    def law(self, W: Matrix) -> Matrix:
        return W + self.times_scale(self.lora_B.astype(W.dtype)) @ self.lora_A.astype(W.dtype)

    def forward(self, x: Any) -> Array:
        B = self.multiplied(self.lora_B)
        return self.low_rank(x, self.lora_A, B, between=lambda h: self.scaling * h)

    def low_rank_update(self) -> tuple[Array, Array]:
        return self.lora_A, self.times_scale(self.lora_B)

    @classmethod
    def low_rank_scale(cls, rank: int, alpha: float) -> float:
        """The factor `s` of the update."""
        return cls.scale_for(rank, alpha)


class LoRA(LowRank):
    """LoRA: a low-rank update beside the frozen weight.

    Law: `W' = W + (alpha / r) B A`, `A ~ N(0, 1/in)`, `B = 0`. `r(in + out)` parameters train.
    `r = min(rank, in, out)`.

    Paper: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685. No
    dropout on the input: put an `eqx.nn.Dropout` before the layer.
    """

    variant = "lora"
    paper = "2106.09685"


class rsLoRA(LowRank):
    """rsLoRA: LoRA whose scale keeps the size of the update stable as the rank grows.

    Law: `W' = W + (alpha / sqrt(r)) B A`, `A ~ N(0, 1/in)`, `B = 0`. `r(in + out)` parameters
    train.

    Paper: Kalajdzievski, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA",
    arXiv:2312.03732.
    """

    variant = "rslora"
    paper = "2312.03732"

    @classmethod
    def scale_for(cls, rank: int, alpha: float) -> float:
        return alpha / math.sqrt(rank)


class LoRAFA(LowRank):
    """LoRA-FA: LoRA with `A` frozen. The gradient of a plain layer keeps `A x`, not its input `x`.

    Law: `W' = W + (alpha / r) B A`, `A ~ N(0, 1/in)` and frozen, `B = 0`. `r out` parameters train.

    Paper: Zhang et al., "LoRA-FA: Memory-efficient Low-rank Adaptation for Large Language Models
    Fine-tuning", arXiv:2308.03303.
    """

    adapter_fields = ("lora_B",)
    variant = "lora-fa"
    paper = "2308.03303"
    formula = "r out"
