"""SVFT, a method that the zoo lacks, for linear layers and convolutions: a whole plugin.

pip install ./examples/plugin_of_your_own
jno-lora check jno-lora-svft
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jno.lora import About, hookimpl
from jno_lora_zoo import ConvLayer, LinearLayer, Method, largest, scaled


class SVFT(Method):
    """SVFT: singular vectors fine-tuning. Only singular values of the weight train.

    Law: `W' = W + U diag(m) V^T`, with the singular vectors `U` and `V` of the `r` largest singular
    values of `W`, which are frozen, and `m = 0`. `r` parameters train. `r = min(rank, in, out)`.

    Paper: Lingam et al., "SVFT: Parameter-Efficient Fine-Tuning with Singular Vectors",
    arXiv:2405.19597. The plain form of the paper has all singular values: give a rank as large as
    the layer. The forms that also train entries beside the diagonal are not here.
    """

    adapter_fields = ("m",)  # the fields that train
    variant = "svft"  # wrapper="svft"
    has_alpha = False  # the law has no scale
    about = About(paper="2405.19597", formula="r")

    U: Float[Array, "out r"]
    Vt: Float[Array, "r in"]
    m: Float[Array, " r"]

    def start(self, W, r, key, dtype):
        """The initial arrays, for the matrix `W` of any kind of layer."""
        U, _, Vt = largest(W, r, "exact", key)
        return {"U": U.astype(dtype), "Vt": Vt.astype(dtype), "m": jnp.zeros(r, dtype)}

    def law(self, W):
        """The paper, in one line."""
        U, m, Vt = (array.astype(W.dtype) for array in (self.U, self.m, self.Vt))
        return W + U @ scaled(Vt, m)

    def forward(self, x):
        """The law for an input, without the matrix: `W x + U (m * (V^T x))`."""
        return self.low_rank(x, self.Vt, self.U, between=lambda h: scaled(h, self.m))


class SVFTLinear(SVFT, LinearLayer):
    """SVFT for linear layers."""


class SVFTConv(SVFT, ConvLayer):
    """SVFT for convolutions."""


jno_lora_api = 1  # the version of jno-lora's contract with plugins


@hookimpl
def jno_lora_wrappers():
    """The adapters of this plugin."""
    return [SVFTLinear, SVFTConv]
