"""MMEA: a small network of the scalars computes gains for the channels of an equivariant layer."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jno.lora import LoRAWrapper, WrapperError
from jno_lora_zoo import adapter_dtype_for, cited, in_compute_dtype

from ._classes import E3nnLinear
from .layers import E3nnLayer, e3nn

_NO_MERGE = (
    "MMEA cannot be merged: its gains depend on the layer's input, so no plain e3nn linear layer "
    "computes the same. Keep the layer adapted (save it with its adapters), or drop the gains with "
    "`unwrap` (`jno.lora.unwrap_lora(model)`). `IA3E3nn` has constant gains, and can be merged."
)


class MMEA(LoRAWrapper):
    """MMEA: a gate of the scalars gives a gain for each channel of a layer's output.

    Law: for the input `x` with the scalars `s` (`0e`), and the output `y` of the layer,
    `g = up silu(down s + down_bias) + up_bias`. A scalar channel becomes `y_k + g_k`. A channel of
    any other irrep becomes `exp(g_k) y_k`. All components of a channel have one gain, and channels
    do not mix, so rotations and inversions of the input still rotate and invert the output. `up`
    and `up_bias` start at 0, so nothing changes until the gate is trained, and
    `down ~ N(0, 1/scalars)`.

    With `scalars` inputs and `channels` of the output (the sum of its multiplicities, times
    `channel_out` if the layer has it), `r (scalars + 1) + channels (r + 1)` parameters train. The
    rank is the width of the gate and is not clamped; the authors use 16. `alpha` is ignored.

    MMEA cannot be merged, so `merge` raises. Layers without even scalars among their inputs are not
    claimed.

    **Arguments:**

    - `adapter_dtype`: the dtype of the four arrays; by default the base's, float32 at least.

    **Raises:** `ValueError` for a layer without even scalars (`0e`) among its inputs.

    Paper: Jin, Yuan and Tao, "Magnitude-Modulated Equivariant Adapter for Parameter-Efficient
    Fine-Tuning of Equivariant Graph Neural Networks", arXiv:2511.06696. The authors' code starts
    the rows of the scalars at random, which changes the model; here all of `up` starts at 0. The
    code does not distinguish odd scalars (`0o`) from even scalars. Here, odd scalars have gains,
    but the gate does not read them, because otherwise an inversion would change it. The second form
    of the code, `1 + g_k` instead of `exp(g_k)`, is left out.
    """

    adapter_fields = ("down", "down_bias", "up", "up_bias")
    variant = "mmea"
    about = cited("2511.06696", family="scale", formula="r (scalars + 1) + channels (r + 1)")
    mergeable = False

    base: Any
    rank: int = eqx.field(static=True)
    down: Float[Array, "r scalars"]
    down_bias: Float[Array, " r"]
    up: Float[Array, "channels r"]
    up_bias: Float[Array, " channels"]

    @classmethod
    def applies_to(cls, leaf: Any) -> bool:
        """Whether `leaf` is an e3nn linear layer with floating weights that reads scalars."""
        return E3nnLayer.applies_to(leaf) and _scalars(leaf) > 0

    @classmethod
    def why_not(cls, leaf: Any) -> str | None:
        if not isinstance(leaf, E3nnLinear) or _scalars(leaf):
            return E3nnLayer.why_not(leaf)
        return f"the gate reads even scalars (0e), and its inputs are {leaf.irreps_in}"

    @classmethod
    def stack_ndim(cls, leaf: Any) -> int:
        return E3nnLayer.stack_ndim(leaf)

    def __init__(self, base: Any, rank: int, *, key: PRNGKeyArray, adapter_dtype: Any = None):
        scalars = _scalars(base)
        if not scalars:
            raise ValueError(
                f"{self.why_not(base)}. Choose layers that read scalars with `target=`, or another "
                "adapter, such as `LoRAE3nn`."
            )
        channels = base.irreps_out.num_irreps * (base.channel_out or 1)
        dtype = adapter_dtype_for(next(iter(base._weights.values())), adapter_dtype)
        self.base, self.rank = base, rank
        self.down = jax.random.normal(key, (rank, scalars), dtype) / math.sqrt(scalars)
        self.down_bias = jnp.zeros(rank, dtype)
        self.up = jnp.zeros((channels, rank), dtype)
        self.up_bias = jnp.zeros(channels, dtype)

    def __call__(self, weights_or_input: Any, input_or_none: Any = None) -> Any:
        """The layer's output with gains, for the same arguments as the layer."""
        base = self.base
        args = (weights_or_input,) if input_or_none is None else (weights_or_input, input_or_none)
        y = base(*args)
        gate = self._gate(args[-1])
        if base.channel_out is not None:
            gate = gate.reshape(*gate.shape[:-1], base.channel_out, -1)
        gate = jnp.broadcast_to(gate, (*y.shape[:-1], gate.shape[-1]))
        chunks: list[Array | None] = []
        start = 0
        for (mul, ir), chunk in zip(y.irreps, y.chunks, strict=True):
            g = gate[..., start : start + mul, None]
            start += mul
            if ir == "0e":
                # A chunk of zeros is stored as `None`.
                chunks.append(g if chunk is None else in_compute_dtype(chunk) + g)
            else:
                chunks.append(None if chunk is None else in_compute_dtype(chunk) * jnp.exp(g))
        return e3nn().from_chunks(y.irreps, chunks, y.shape[:-1], gate.dtype).astype(y.dtype)

    def merge(self) -> eqx.Module:
        raise WrapperError(_NO_MERGE)

    def _gate(self, x: Any) -> Float[Array, "*batch channels"]:
        """`g` for the inputs `x`, in float32 at least."""
        s = in_compute_dtype(e3nn().as_irreps_array(x).filter(keep="0e").array)
        arrays = (self.down, self.down_bias, self.up, self.up_bias)
        down, down_bias, up, up_bias = (array.astype(s.dtype) for array in arrays)
        hidden = jax.nn.silu(_plus(s @ down.T, down_bias))
        return _plus(hidden @ up.T, up_bias)


def _plus(h: Float[Array, "*batch n"], bias: Float[Array, " n"]) -> Float[Array, "*batch n"]:
    return h + jnp.broadcast_to(bias, h.shape)


def _scalars(layer: E3nnLinear) -> int:
    """The number of even scalars among the inputs of an e3nn linear layer."""
    return sum(mul for mul, ir in layer.irreps_in if ir == "0e")
