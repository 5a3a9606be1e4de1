"""LoRA, rsLoRA (another scale) and LoRA-FA (one factor trains)."""

import math
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from jno.lora import LowRankForm, WrapperError

from .._arrays import Matrix, cast_like, in_compute_dtype
from .._bibtex import cited
from .._layer_kind import Bias, LayerKind
from .._random import low_rank_start
from .._weighted import Weighted


class LowRank(Weighted):
    """`W' = W + s B A` with `A ~ N(0, 1/in)` and `B = 0`; `s` is `alpha / r` unless told otherwise.

    With the option `dropout=p`, training computes `W x + s B A dropout(x)`. A call then needs
    `key=`, and `eqx.nn.inference_mode` switches dropout off. Files and sets do not store dropout:
    to resume with it, adapt with the option and swap the set in.

    With the option `bias="train"`, an update of the layer's bias, if there is one, trains as well,
    from zero: `out` more parameters.

    **Raises** (like all constructors of the zoo): `ValueError` unless `adapter_dtype` is a floating
    dtype and `multiplier` a real number. A call with dropout raises `WrapperError` without a key,
    or if the adapter does not get the layer's inputs.
    """

    adapter_fields = ("lora_A", "lora_B")
    optional_fields = ("bias_update",)
    takes_weights = True

    lora_A: Float[Array, "r in"]
    lora_B: Float[Array, "out r"]
    bias_update: Float[Array, " out"] | None
    dropout: eqx.nn.Dropout | None

    def start(self, W: Matrix, r: int, key: PRNGKeyArray, dtype: DTypeLike) -> dict[str, Array]:
        return low_rank_start(W, r, key, dtype, self.fan_in(W))

    def _initial_fields(
        self,
        *start: Any,
        multiplier: Any = None,
        dropout: Any = None,
        bias: str | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        if bias not in (None, "train"):
            raise ValueError(f'`bias` must be "train" or None, but is {bias!r}')
        W, _, _, dtype = start
        has_bias = bias == "train" and self.bias_of(self.base) is not None
        return {
            **super()._initial_fields(*start, multiplier=multiplier, **options),
            "bias_update": jnp.zeros(len(W), dtype) if has_bias else None,
            "dropout": as_dropout(dropout, type(self)),
        }

    def law(self, W: Matrix) -> Matrix:
        B = self.weighted(self.lora_B).astype(W.dtype)
        return W + self.times_scale(B) @ self.lora_A.astype(W.dtype)

    def forward(self, x: ArrayLike, seen: ArrayLike | None = None) -> Array:
        B = self.multiplied(self.lora_B)
        if self.direction_weights is not None:
            return self.weighted_low_rank(x, self.direction_weights, B, seen)
        return self.low_rank(x, self.lora_A, B, between=lambda h: self.scaling * h, seen=seen)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.dropout is None or self.dropout.inference:
            return super().__call__(*args, **kwargs)
        shape = self.matrix(self.base).shape
        name = f"{type(self).__name__} of a {type(self.base).__name__} {shape}"
        x = jnp.asarray(self.read(args[0])) if len(args) == 1 and self.computes(args[0]) else None
        if x is None or not jnp.issubdtype(x.dtype, jnp.inexact):
            raise WrapperError(
                f"The {name} was built with `dropout`, and does not see the features that its "
                "low-rank product reads: the layer has an unknown `__call__`, reads integers, or "
                "got its input by name. Leave `dropout` out for this layer (`specs=`), or switch "
                "it off by `eqx.nn.inference_mode(model)`."
            )
        if kwargs.get("key") is None:
            raise WrapperError(
                f"The {name} was built with `dropout` and called without `key=`. Give each adapted "
                "layer a key (as `eqx.nn.MLP` does not), or switch dropout off by "
                "`eqx.nn.inference_mode(model)`."
            )
        y = self.forward(x, seen=self.dropout(x, key=kwargs["key"]))
        return self.written(self.finished(y), args[0])

    def bias_law(self, b: Bias) -> Bias:
        if self.bias_update is None:
            return b
        wide = in_compute_dtype(b)
        return cast_like(wide + self.bias_update.astype(wide.dtype), b)

    @classmethod
    def options_of(cls, state: Mapping[str, Array]) -> dict[str, object]:
        options = super().options_of(state)
        return {**options, "bias": "train"} if "bias_update" in state else options

    def low_rank_form(self) -> LowRankForm:
        B = self.times_scale(self.weighted(self.lora_B))
        return LowRankForm(self.lora_A, B, shift=self.bias_update)

    @classmethod
    def low_rank_scale(cls, rank: int, alpha: float) -> float:
        return cls.scale_for(rank, alpha)


class LoRA(LowRank):
    """LoRA: a low-rank update beside the frozen weight.

    Law: `W' = W + (alpha / r) B A`, `A ~ N(0, 1/in)`, `B = 0`. `r(in + out)` parameters train.
    `r = min(rank, in, out)`.

    - `dropout`: the probability with which an input of `B A` is dropped in training.
    - `bias`: `"train"` trains an update of the bias.

    Paper: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685.
    """

    variant = "lora"
    about = cited("2106.09685", family="low rank", formula="r (in + out)")


class rsLoRA(LowRank):
    """rsLoRA: LoRA with a scale that keeps the size of the update stable as the rank grows.

    Law: `W' = W + (alpha / sqrt(r)) B A`, `A ~ N(0, 1/in)`, `B = 0`. `r(in + out)` parameters
    train.

    Paper: Kalajdzievski, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA",
    arXiv:2312.03732.
    """

    variant = "rslora"
    about = cited("2312.03732", family="low rank", formula="r (in + out)")

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
    about = cited("2308.03303", family="low rank", formula="r out")


def as_dropout(p: Any, cls: type[LowRank]) -> eqx.nn.Dropout | None:
    """The field for this option. **Raises:** `ValueError` unless it is `None` or a probability."""
    if p is None or p == 0:
        return None
    if isinstance(p, bool) or not isinstance(p, int | float) or not 0 < p < 1:
        raise ValueError(f"`dropout` must be a probability from 0 to below 1, but is {p!r}")
    if cls.computes is LayerKind.computes:
        raise ValueError(f"`dropout` cannot be used by {cls.__name__}, which calls its layer whole")
    return eqx.nn.Dropout(float(p))
