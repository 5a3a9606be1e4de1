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

from ._classes import loaded_class
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

    base: eqx.Module
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
    def misfit(cls, leaf: Any) -> str | None:
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
        y = self.base(*args, **kwargs)  # pyright: ignore[reportCallIssue]
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


def _is_called_as(leaf: Any, cls: Any) -> bool:
    """Whether `leaf` has the `__call__` of its base `cls`, where the channel axis is known."""
    return cls is not None and isinstance(leaf, cls) and type(leaf).__call__ is cls.__call__


class BottleneckLinear(Bottleneck, LinearLayer):  # noqa: D101 (inherited)
    @classmethod
    def fits(cls, leaf: Any) -> bool:
        batched = loaded_class("foundax.architectures.linear", "Linear")
        is_known = _is_called_as(leaf, eqx.nn.Linear) or _is_called_as(leaf, batched)
        return is_known and super().fits(leaf)

    def channel_axis(self) -> int:
        return 0 if isinstance(self.base, eqx.nn.Linear) else -1

    def bottleneck_features(self, x: Any, **_: Any) -> Float[Array, "r 1 *rest"]:
        x = jnp.asarray(x)
        rows = jnp.moveaxis(x, self.channel_axis(), -1) if x.ndim else x
        return jnp.moveaxis(self.down(rows, self.down_weight), -1, 0)[:, None]


class BottleneckConv(Bottleneck, ConvLayer):  # noqa: D101 (inherited)
    @classmethod
    def fits(cls, leaf: Any) -> bool:
        return _is_called_as(leaf, eqx.nn.Conv) and super().fits(leaf)

    def channel_axis(self) -> int:
        return 0

    def bottleneck_features(self, x: Any, **_: Any) -> Float[Array, "r groups *rest"]:
        return self.down(x, self.down_weight)


class BottleneckChannelLastConv(Bottleneck, ChannelLastConvLayer):  # noqa: D101 (inherited)
    def channel_axis(self) -> int:
        return -1

    def bottleneck_features(self, *args: Any, **kwargs: Any) -> Float[Array, "r groups *rest"]:
        groups = getattr(self.base, "groups", 1)
        A = jnp.tile(self.down_weight, (groups, 1))
        h = jnp.moveaxis(self._called_with(self.base, A)(*args, **kwargs), -1, 0)
        return jnp.swapaxes(h.reshape(groups, -1, *h.shape[1:]), 0, 1)
