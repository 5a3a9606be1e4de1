"""Bottleneck adapters: a small nonlinear network beside a layer, on its channels."""

import abc
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jno.lora import Term, WrapperError
from jno_lora_zoo import ConvLayer, LayerKind, LinearLayer, adapter_dtype_for, cited

from ._sums import summed
from .layers import ChannelLastConvLayer

_NO_MERGE = (
    "A bottleneck cannot be merged: it adds a nonlinear function of the input, which no weight "
    "computes. Keep the layer wrapped (save it with its adapters), or drop the bottleneck with "
    "`unwrap` (`jno.lora.unwrap_lora(model)`)."
)


class Bottleneck(LayerKind):
    """A nonlinear bottleneck of `rank` channels beside a layer.

    Law: `y = layer(x) + (alpha / rank) B gelu(A x + a)`, with GELU in its tanh form, `a = 0`,
    `B = 0` and `A ~ N(0, 1/in)`. `A` reads the same inputs as the layer; for a convolution, these
    are the patches of the kernel. `rank (in + out + 1)` parameters train. The rank is not clamped.

    A bottleneck does not change the weight, so `merge` raises, and `weight` is the base's weight.
    With groups, all groups share `A` and `a`, and the rows of `B` are divided among the groups.

    `adapter_dtype` is by default the weight's, float32 at least.

    Papers: Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", arXiv:1902.00751; He et
    al., "Towards a Unified View of Parameter-Efficient Transfer Learning", arXiv:2110.04366, for
    the parallel form with a scale.
    """

    adapter_fields = ("down_weight", "down_bias", "up_weight")
    variant = "bottleneck"
    about = cited("1902.00751", "2110.04366", family="bottleneck", formula="r (in + out + 1)")
    mergeable = False

    base: Any
    down_weight: Float[Array, "r in"]
    down_bias: Float[Array, " r"]
    up_weight: Float[Array, "out r"]
    rank: int = eqx.field(static=True)
    alpha: float = eqx.field(static=True)

    def __init__(
        self, base: Any, rank: int, alpha: float, *, key: PRNGKeyArray, adapter_dtype: Any = None
    ):
        outputs, inputs = eqx.filter_eval_shape(self.matrix, base).shape
        dtype = adapter_dtype_for(base.weight, adapter_dtype)
        self.base, self.rank, self.alpha = base, rank, alpha
        self.down_weight = jax.random.normal(key, (rank, inputs), dtype) / inputs**0.5
        self.down_bias = jnp.zeros(rank, dtype)
        self.up_weight = jnp.zeros((outputs, rank), dtype)

    @classmethod
    def misfit(cls, leaf: object) -> str | None:
        # A layer of this kind, with an unknown `__call__`.
        if super().fits(leaf):
            return f"nothing says which axis of its output a {type(leaf).__name__} has channels on"
        return super().misfit(leaf)

    @abc.abstractmethod
    def bottleneck_features(self, *args: Any, **kwargs: Any) -> Float[Array, "r groups *rest"]:
        """`A x` for each group of channels, from the arguments of a call."""

    @abc.abstractmethod
    def channel_axis(self) -> int:
        """The axis of the channels in the layer's output."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        y = self.base(*args, **kwargs)
        h = self.bottleneck_features(*args, **kwargs)
        a = self.down_bias.astype(h.dtype)
        h = jax.nn.gelu(h + a.reshape(-1, *(1,) * (h.ndim - 1)))
        B = (self.alpha / self.rank * self.up_weight).astype(h.dtype)
        update = jnp.einsum("gor,rg...->go...", B.reshape(h.shape[1], -1, self.rank), h)
        update = jnp.moveaxis(update.reshape(-1, *h.shape[2:]), 0, self.channel_axis())
        return y + update.astype(y.dtype).reshape(y.shape)

    @classmethod
    def sum_of(cls, terms: Sequence[Term], rank: int | None = None) -> Term:
        axes = {"down_weight": -2, "down_bias": -1, "up_weight": -1}
        return summed(terms, axes, "up_weight", rank)

    def merge(self) -> eqx.Module:
        raise WrapperError(_NO_MERGE)


_BATCHED_LINEAR = ("foundax.architectures.linear", "Linear")


def _class_with_call(leaf: object) -> type:
    """The class that defines the `__call__` of `leaf`, and so the axis of its channels."""
    return next((cls for cls in type(leaf).__mro__ if "__call__" in vars(cls)), object)


class BottleneckLinear(Bottleneck, LinearLayer):  # noqa: D101 (inherited)
    @classmethod
    def fits(cls, leaf: object) -> bool:
        definer = _class_with_call(leaf)
        is_batched = (definer.__module__, definer.__name__) == _BATCHED_LINEAR
        return (is_batched or definer is eqx.nn.Linear) and super().fits(leaf)

    def channel_axis(self) -> int:
        return 0 if isinstance(self.base, eqx.nn.Linear) else -1

    def bottleneck_features(self, x: Array, **_: object) -> Float[Array, "r 1 *rest"]:
        x = jnp.asarray(x)
        rows = jnp.moveaxis(x, self.channel_axis(), -1) if x.ndim else x
        return jnp.moveaxis(self.down(rows, self.down_weight), -1, 0)[:, None]


class BottleneckConv(Bottleneck, ConvLayer):  # noqa: D101 (inherited)
    @classmethod
    def fits(cls, leaf: object) -> bool:
        return _class_with_call(leaf) is eqx.nn.Conv and super().fits(leaf)

    def channel_axis(self) -> int:
        return 0

    def bottleneck_features(self, x: Array, **_: object) -> Float[Array, "r groups *rest"]:
        return self.down(x, self.down_weight)


class BottleneckChannelLastConv(Bottleneck, ChannelLastConvLayer):  # noqa: D101 (inherited)
    def channel_axis(self) -> int:
        return -1

    def bottleneck_features(self, *args: Any, **kwargs: Any) -> Float[Array, "r groups *rest"]:
        groups = getattr(self.base, "groups", 1)
        A = jnp.tile(self.down_weight, (groups, 1))
        h = jnp.moveaxis(self._called_with(self.base, A)(*args, **kwargs), -1, 0)
        return jnp.swapaxes(h.reshape(groups, -1, *h.shape[1:]), 0, 1)
