"""LoHa, a method that the zoo lacks, for linear layers and convolutions: a whole plugin.

pip install ./examples/plugin_of_your_own
jno-lora check jno-lora-loha
"""

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

    A1: Float[Array, "r in"]
    B1: Float[Array, "out r"]
    A2: Float[Array, "r in"]
    B2: Float[Array, "out r"]

    def start(self, W, r, key, dtype):
        """The arrays at first, for the matrix `W` of whatever kind of layer."""
        outputs, inputs = W.shape
        a1, b1, a2 = jax.random.split(key, 3)
        return {
            "A1": jax.random.normal(a1, (r, inputs), dtype),
            "B1": jax.random.normal(b1, (outputs, r), dtype) / r**0.5,
            "A2": jax.random.normal(a2, (r, inputs), dtype) / inputs**0.5,
            "B2": jnp.zeros((outputs, r), dtype),
        }

    def law(self, W):
        """The paper, in one line."""
        first, second = self.B1 @ self.A1, self.B2 @ self.A2
        return W + (self.alpha / self.rank) * (first * second).astype(W.dtype)

    def has_fast_path(self):
        """Never: no product with a vector is quicker than making the matrix."""
        return False

    def forward(self, x):
        """Not called without a fast path: the layer gets the law's weight and is called."""
        raise NotImplementedError


class LoHaLinear(LoHa, LinearLayer):
    """LoHa for linear layers."""


class LoHaConv(LoHa, ConvLayer):
    """LoHa for convolutions."""


jno_lora_api = 1  # the version of jno-lora's contract with plugins


@hookimpl
def jno_lora_wrappers():
    """The adapters of this plugin."""
    return [LoHaLinear, LoHaConv]
