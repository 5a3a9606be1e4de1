"""LoRA, and two that change one thing about it: rsLoRA the scale, LoRA-FA what trains."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._method import Scaled, adapter_dtype_for, as_multiplier


class LowRank(Scaled):
    """`W' = W + s B A` with `A ~ N(0, 1/in)` and `B = 0`; `s` is `alpha / r` unless told otherwise.

    **Raises** (as all of the zoo's constructors): `ValueError` for an `adapter_dtype` that is no
    floating dtype, and for a `multiplier` that is no real number.
    """

    base: eqx.Module
    lora_A: Float[Array, "r in"]
    lora_B: Float[Array, "out r"]
    rank: int = eqx.field(static=True)
    alpha: float = eqx.field(static=True)

    def __init__(
        self,
        base: eqx.Module,
        rank: int,
        alpha: float,
        *,
        key: PRNGKeyArray,
        adapter_dtype: Any = None,
        multiplier: Any = None,
    ):
        W = self.matrix(base)
        outputs, inputs = W.shape
        self.base = base
        self.rank = r = min(rank, outputs, inputs)
        self.alpha = alpha
        dtype = adapter_dtype_for(W, adapter_dtype)
        self.lora_A = jax.random.normal(key, (r, inputs), dtype) / math.sqrt(self.fan_in(W))
        self.lora_B = jnp.zeros((outputs, r), dtype)
        self.multiplier = as_multiplier(multiplier)

    @classmethod
    def low_rank_scale(cls, rank: int, alpha: float) -> float:
        """The factor `s` of the update."""
        return alpha / rank

    @property
    def scaling(self) -> float:
        """The factor `s` of the update."""
        return self.low_rank_scale(self.rank, self.alpha)

    def low_rank_update(self) -> tuple[Array, Array]:
        return self.lora_A, self.scaling * self.multiplied(self.lora_B)

    def law(self, W: Float[Array, "out in"]) -> Float[Array, "out in"]:
        B, A = self.multiplied(self.lora_B).astype(W.dtype), self.lora_A.astype(W.dtype)
        return W + self.scaling * (B @ A)

    def forward(self, x: Any) -> Array:
        return self.low_rank(x, self.lora_A, self.multiplied(self.lora_B), self.scaling)


class LoRA(LowRank):
    """LoRA: a low-rank update beside the frozen weight.

    Law: `W' = W + (alpha / r) B A`, `A ~ N(0, 1/in)`, `B = 0`. `r(in + out)` parameters train.
    `r = min(rank, in, out)`.

    Paper: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685. No
    dropout on the input: put an `eqx.nn.Dropout` before the layer.
    """

    adapter_fields = ("lora_A", "lora_B")
    variant = "lora"
    paper = "2106.09685"
    bibtex = """
    @misc{hu2021lora,
      title = {{LoRA}: Low-Rank Adaptation of Large Language Models},
      author = {Hu, Edward J. and Shen, Yelong and Wallis, Phillip and Allen-Zhu, Zeyuan and
        Li, Yuanzhi and Wang, Shean and Wang, Lu and Chen, Weizhu},
      year = {2021},
      eprint = {2106.09685},
      archivePrefix = {arXiv},
    }
    """
    formula = "r (in + out)"


class rsLoRA(LowRank):
    """rsLoRA: LoRA whose scale keeps the size of the update stable as the rank grows.

    Law: `W' = W + (alpha / sqrt(r)) B A`, `A ~ N(0, 1/in)`, `B = 0`. `r(in + out)` parameters
    train.

    Paper: Kalajdzievski, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA",
    arXiv:2312.03732.
    """

    adapter_fields = ("lora_A", "lora_B")
    variant = "rslora"
    paper = "2312.03732"
    bibtex = """
    @misc{kalajdzievski2023rslora,
      title = {A Rank Stabilization Scaling Factor for Fine-Tuning with {LoRA}},
      author = {Kalajdzievski, Damjan},
      year = {2023},
      eprint = {2312.03732},
      archivePrefix = {arXiv},
    }
    """
    formula = "r (in + out)"

    @classmethod
    def low_rank_scale(cls, rank: int, alpha: float) -> float:
        return alpha / math.sqrt(rank)


class LoRAFA(LowRank):
    """LoRA-FA: LoRA with `A` frozen: of a plain layer's input, only `A x` is kept for the gradient.

    Law: `W' = W + (alpha / r) B A`, `A ~ N(0, 1/in)` and frozen, `B = 0`. `r out` parameters train.

    Paper: Zhang et al., "LoRA-FA: Memory-efficient Low-rank Adaptation for Large Language Models
    Fine-tuning", arXiv:2308.03303.
    """

    adapter_fields = ("lora_B",)
    variant = "lora-fa"
    paper = "2308.03303"
    bibtex = """
    @misc{zhang2023lorafa,
      title = {{LoRA-FA}: Memory-efficient Low-rank Adaptation for Large Language Models
        Fine-tuning},
      author = {Zhang, Longteng and Zhang, Lin and Shi, Shaohuai and Chu, Xiaowen and Li,
        Bo},
      year = {2023},
      eprint = {2308.03303},
      archivePrefix = {arXiv},
    }
    """
    formula = "r out"
