"""OFT: rotate the outputs, in blocks."""

import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._cayley import cayley
from .._method import Method, adapter_dtype_for


class OFT(Method):
    """OFT: orthogonal fine-tuning, a rotation of what the layer puts out.

    Law: `W' = blockdiag(R_1, ..., R_n) W` with `R = (I - Q~)(I + Q~)^-1`, `Q~ = (Q - Q^T) / 2`,
    `Q = 0`. The blocks are `r x r` with `r = min(rank, out)`; where `r` does not divide `out`, the
    last block's surplus rows and columns of `Q~` are masked *before* the Cayley map, so that the
    block that is left is orthogonal too. `ceil(out / r) r^2` parameters train, of which the
    antisymmetric part acts. `alpha` is ignored. A layer with a single output stays as it is, and so
    does one whose weight is zero, and the last output if it is alone in its block.

    Paper: Qiu et al., "Controlling Text-to-Image Diffusion by Orthogonal Finetuning",
    arXiv:2306.07280. The paper rotates the inputs of each neuron, which keeps the norms of the rows
    of `W` and the angles between them; a rotation of outputs keeps `W^T W`: the length of `W x`,
    and the angles between the outputs for different `x`. No constraint on the distance from the
    identity (the paper's COFT).

    **Raises:** `ValueError` for a rank of 1, where nothing could train.
    """

    adapter_fields = ("Q_blocks",)
    variant = "oft"
    paper = "2306.07280"
    bibtex = r"""
    @misc{qiu2023oft,
      title = {Controlling Text-to-Image Diffusion by Orthogonal Finetuning},
      author = {Qiu, Zeju and Liu, Weiyang and Feng, Haiwen and Xue, Yuxuan and Feng, Yao
        and Liu, Zhen and Zhang, Dan and Weller, Adrian and Sch{\"o}lkopf, Bernhard},
      year = {2023},
      eprint = {2306.07280},
      archivePrefix = {arXiv},
    }
    """
    formula = "ceil(out / r) r^2"

    base: eqx.Module
    Q_blocks: Float[Array, "blocks r r"]
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
    ):
        del key  # nothing is random
        W = self.matrix(base)
        self.base = base
        self.rank = r = min(rank, W.shape[0])
        if r == 1 < W.shape[0]:
            raise ValueError(
                "OFT rotates the outputs in blocks of `rank`, and a block of one output has no "
                "rotation: give a rank of 2 or more"
            )
        self.alpha = alpha
        blocks = math.ceil(W.shape[0] / r)
        self.Q_blocks = jnp.zeros((blocks, r, r), adapter_dtype_for(W, adapter_dtype))

    def rotations(self, W: Array) -> Float[Array, "blocks r r"]:
        """The blocks `R`, each orthogonal, in the dtype of `W`."""
        blocks, r, _ = self.Q_blocks.shape
        Q = self.Q_blocks.astype(W.dtype)
        exists = (jnp.arange(blocks * r) < W.shape[0]).reshape(blocks, r).astype(W.dtype)
        skew = (Q - Q.mT) / 2 * exists[:, :, None] * exists[:, None, :]
        return cayley(skew)

    def law(self, W: Float[Array, "out in"]) -> Float[Array, "out in"]:
        outputs, inputs = W.shape
        R = self.rotations(W)
        blocks, r, _ = R.shape
        rows = jnp.pad(W, ((0, blocks * r - outputs), (0, 0))).reshape(blocks, r, inputs)
        return (R @ rows).reshape(blocks * r, inputs)[:outputs]

    def has_fast_path(self) -> bool:
        return self.rotates_output(self.rank)

    def forward(self, x: Any) -> Array:
        return self.rotated_product(x, self.rotations(self.matrix(self.base)))
