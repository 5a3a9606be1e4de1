"""IA3: one trained factor per output, or per input."""

import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from jno.lora import LowRankForm

from .._arrays import Matrix, scaled
from .._bibtex import cited
from .._layer_kind import Bias, Update
from .._method import Method


class IA3(Method):
    """IA³: infused adapter by inhibiting and amplifying inner activations.

    Law: `W' = diag(scale) W`, `scale = 1`, the bias untouched. `out` parameters train. `rank` and
    `alpha` are ignored. A layer whose weight is zero stays zero.

    Paper: Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than
    In-Context Learning", arXiv:2205.05638. The paper scales keys, values and the inner activations
    of feed-forward blocks; choose those layers with `target=`.
    """

    adapter_fields = ("scale",)
    variant = "ia3"
    has_alpha = False
    about = cited("2205.05638", family="scale", formula="out")
    _rank_limits = ()
    scales_rows_only = True

    scale: Float[Array, " out"]

    def start(self, W: Matrix, r: int, key: PRNGKeyArray, dtype: DTypeLike) -> dict[str, Array]:
        return {"scale": jnp.ones(W.shape[0], dtype)}

    def law(self, W: Matrix) -> Matrix:
        return scaled(W, self.scale)

    def low_rank_form(self) -> LowRankForm:
        W = self.matrix(self.base)
        return LowRankForm(W[:0], W[:, :0], gain=self.scale)

    def forward(self, x: ArrayLike) -> Array:
        return self.on_output(x, scaled, self.scale)


class IA3In(Method):
    """IA³ on inputs: one trained factor per input of a layer.

    Law: `W' = W diag(scale)`, `scale = 1`, the bias untouched. `in` parameters train. `rank` and
    `alpha` are ignored. A layer whose weight is zero stays zero. In a convolution, an input is a
    column of the kernel's matrix: `in` is the inputs of a group times the size of the kernel. Only
    a kernel of size 1 has a factor per channel.

    Paper: Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than
    In-Context Learning", arXiv:2205.05638. It scales the inner activations of feed-forward blocks,
    which are the inputs of their second layer. PEFT calls such layers `feedforward_modules`.
    """

    adapter_fields = ("scale",)
    variant = "ia3-in"
    has_alpha = False
    about = cited("2205.05638", family="scale", formula="in")
    _rank_limits = ()

    scale: Float[Array, " in"]

    def start(self, W: Matrix, r: int, key: PRNGKeyArray, dtype: DTypeLike) -> dict[str, Array]:
        return {"scale": jnp.ones(W.shape[1], dtype)}

    def law(self, W: Matrix) -> Matrix:
        return W * self.scale.astype(W.dtype)[None, :]

    def forward(self, x: ArrayLike) -> Array:
        if self.reads_features():
            return self.product(x, before=lambda v: scaled(v, self.scale))
        W = self.matrix(self.base)
        change = self.scale.astype(W.dtype) - 1
        return self.plus(x, Update(lambda: W * change[None], column=lambda i: W[:, i] * change[i]))


class IA3Out(IA3):
    """IA³ with the bias: one trained factor per output of a layer, which scales the bias too.

    Law: `W' = diag(scale) W` and `b' = scale b`, `scale = 1`. `out` parameters train. `rank` and
    `alpha` are ignored. A layer whose weight and bias are zero stays zero.

    Paper: Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than
    In-Context Learning", arXiv:2205.05638. It scales activations, as PEFT does; `IA3` leaves the
    bias untouched.
    """

    variant = "ia3-out"
    about = cited("2205.05638", family="scale", formula="out, for the bias too")

    def bias_law(self, b: Bias) -> Bias:
        return scaled(b, self.scale)

    def low_rank_form(self) -> LowRankForm:
        b = self.bias_of(self.base)
        shift = None if b is None else self.bias_law(b) - b
        return super().low_rank_form()._replace(shift=shift)
