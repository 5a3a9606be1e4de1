"""LoHa, a method that the zoo lacks, for linear layers and convolutions: a whole plugin.

pip install ./examples/plugin_of_your_own
jno-lora check jno-lora-loha
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jno.lora import hookimpl
from jno_lora_zoo import ConvLayer, LinearLayer, Method


class LoHa(Method):
    """LoHa: the entrywise product of two low-rank matrices, whose rank is up to `r^2`.

    Law: `W' = W + (alpha / r) (B1 A1) * (B2 A2)`. At the start the entries of `B1 A1` have
    variance 1, `A2 ~ N(0, 1/in)` and `B2 = 0`. `2 r (in + out)` parameters train.

    Paper: Hyeon-Woo et al., "FedPara", arXiv:2108.06098. It trains the product instead of the
    weight; as an update, which starts at zero, it is LyCORIS's (arXiv:2309.14859).
    """

    adapter_fields = ("A1", "B1", "A2", "B2")
    variant = "loha"  # wrapper="loha"
    paper = "2108.06098"
    formula = "2 r (in + out)"

    base: eqx.Module
    A1: Float[Array, "r in"]
    B1: Float[Array, "out r"]
    A2: Float[Array, "r in"]
    B2: Float[Array, "out r"]
    rank: int = eqx.field(static=True)
    alpha: float = eqx.field(static=True)

    def __init__(self, base, rank, alpha, *, key):
        W = self.matrix(base)  # (out, in), of whatever kind of layer
        outputs, inputs = W.shape
        self.base, self.rank, self.alpha = base, min(rank, outputs, inputs), alpha
        a1, b1, a2 = jax.random.split(key, 3)
        self.A1 = jax.random.normal(a1, (self.rank, inputs), W.dtype)
        self.B1 = jax.random.normal(b1, (outputs, self.rank), W.dtype) / self.rank**0.5
        self.A2 = jax.random.normal(a2, (self.rank, inputs), W.dtype) / inputs**0.5
        self.B2 = jnp.zeros((outputs, self.rank), W.dtype)

    def law(self, W):
        """The paper, in one line."""
        first, second = self.B1 @ self.A1, self.B2 @ self.A2
        return W + (self.alpha / self.rank) * (first * second).astype(W.dtype)

    def has_fast_path(self):
        """None: no product with a vector is quicker than making the matrix."""
        return False

    def forward(self, x):
        """Not called, for want of a fast path: the layer is, with the law's weight in it."""
        raise NotImplementedError


class LoHaLinear(LoHa, LinearLayer):
    """LoHa for linear layers."""


class LoHaConv(LoHa, ConvLayer):
    """LoHa for convolutions."""


jno_lora_api = 1  # the version of jno-lora's contract with plugins


@hookimpl
def jno_lora_wrappers():
    """What the plugin provides."""
    return [LoHaLinear, LoHaConv]
