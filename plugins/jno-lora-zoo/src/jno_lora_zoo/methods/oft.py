"""OFT: rotate the outputs, in blocks."""

import math

import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from .._arrays import Matrix, rotated
from .._bibtex import cited
from .._method import Method
from .._orthogonal import cayley


class OFT(Method):
    """OFT: orthogonal fine-tuning, a rotation of the layer's outputs.

    Law: `W' = blockdiag(R_1, ..., R_n) W` with `R = (I - Q~)(I + Q~)^-1`, `Q~ = (Q - Q^T) / 2`,
    `Q = 0`. The blocks are `r x r` with `r = min(rank, out)`. If `r` does not divide `out`, the
    surplus rows and columns of the last `Q~` are masked *before* the Cayley map, so that the
    remaining block is orthogonal too. `ceil(out / r) r^2` parameters train; only their
    antisymmetric part acts. `alpha` is ignored. A layer with a single output, a layer whose weight
    is zero, and the last output if it is alone in its block do not change.

    Paper: Qiu et al., "Controlling Text-to-Image Diffusion by Orthogonal Finetuning",
    arXiv:2306.07280. The paper rotates the inputs of each neuron, which keeps the norms of the rows
    of `W` and the angles between them; a rotation of outputs keeps `W^T W`: the length of `W x`,
    and the angles between the outputs for different `x`. The distance from the identity is not
    constrained (the paper's COFT).

    **Raises:** `ValueError` for a rank of 1, with which nothing could train.
    """

    adapter_fields = ("Q_blocks",)
    variant = "oft"
    has_alpha = False
    about = cited("2306.07280", family="rotation", formula="ceil(out / r) r^2")
    _rank_limits = ("out",)

    Q_blocks: Float[Array, "blocks r r"]

    def start(self, W: Matrix, r: int, key: PRNGKeyArray, dtype: DTypeLike) -> dict[str, Array]:
        if r == 1 < W.shape[0]:
            raise ValueError("a block of one output cannot rotate: give a rank of 2 or more")
        return {"Q_blocks": jnp.zeros((math.ceil(W.shape[0] / r), r, r), dtype)}

    def rotations(self, W: Array) -> Float[Array, "blocks r r"]:
        """The blocks `R`, each orthogonal, in the dtype of `W`."""
        blocks, r, _ = self.Q_blocks.shape
        Q = self.Q_blocks.astype(W.dtype)
        exists = (jnp.arange(blocks * r) < W.shape[0]).reshape(blocks, r).astype(W.dtype)
        return cayley((Q - Q.mT) / 2 * exists[:, :, None] * exists[:, None, :])

    def law(self, W: Matrix) -> Matrix:
        return rotated(W, self.rotations(W))

    def has_fast_path(self) -> bool:
        # A block across two groups mixes their outputs, which the layer with the law's kernel
        # cannot do, because its outputs depend only on the inputs of their group.
        size = self.group_size(self.base)
        return size is None or size % self.rank == 0

    def forward(self, x: ArrayLike) -> Array:
        return self.on_output(x, rotated, self.rotations(self.matrix(self.base)))
