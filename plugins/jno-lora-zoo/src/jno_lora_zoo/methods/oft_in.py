"""OFT of the inputs: rotate them, in blocks, before the layer."""

import math
from collections.abc import Mapping

import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from .._arrays import Matrix, rotated
from .._bibtex import cited
from .._layer_kind import Update
from .._method import Method
from .._orthogonal import antisymmetric, rotation, series_for


class OFTIn(Method):
    """OFT of the inputs: orthogonal fine-tuning in the authors' later form.

    Law: `W' = W blockdiag(R_1, ..., R_n)` with `R = (I - Q)(I + Q)^-1` for antisymmetric `Q = 0`.
    The blocks are `r x r` with `r = min(rank, in)`. `Q_packed` holds the entries above the diagonal
    of each `Q`, row by row; `ceil(in / r) r (r - 1) / 2` parameters train. If `r` does not divide
    `in`, the surplus rows and columns of the last `Q` are masked, and have no effect. `alpha` is
    ignored. A layer with a single input does not change.

    - `terms`: with a whole number, `R` is the series `I - 2 Q + 2 Q^2 - ...` with that many terms,
        the last term once: the paper's Cayley-Neumann form. It only needs products of blocks, and
        is approximately a rotation. `series` holds its coefficients.
    - `block_share`: one `Q` for all blocks, with `r (r - 1) / 2` parameters.

    Paper: Qiu et al., "Orthogonal Finetuning Made Scalable", arXiv:2506.19847. The paper rotates by
    the series with five terms; here the map is exact unless `terms` is given. The authors' code
    rotates by `R^T`: PEFT's vectors equal these vectors for its series, and their negatives for
    its exact map. The distance from the identity is not constrained (COFT).

    In an embedding, a block mixes the vectors of its `r` ids.

    **Raises:** `ValueError` for a rank of 1, where nothing could train, for `block_share` where
    `r` does not divide `in`, and unless `terms` is `None` or a whole number above 1.
    """

    adapter_fields = ("Q_packed",)
    variant = "oft-in"
    has_alpha = False
    about = cited("2506.19847", family="rotation", formula="ceil(in / r) r (r - 1) / 2")
    _rank_limits = ("in",)

    Q_packed: Float[Array, "blocks packed"]
    series: Float[Array, " terms"] | None

    def start(
        self,
        W: Matrix,
        r: int,
        key: PRNGKeyArray,
        dtype: DTypeLike,
        *,
        terms: int | None = None,
        block_share: bool = False,
    ) -> dict[str, Array | None]:
        inputs = W.shape[1]
        if r == 1 < inputs:
            raise ValueError("a block of one input cannot rotate: give a rank of 2 or more")
        if block_share and inputs % r:
            raise ValueError(
                f"with `block_share`, the rank must divide {inputs} inputs, but is {r}"
            )
        blocks = 1 if block_share else math.ceil(inputs / r)
        packed = jnp.zeros((blocks, r * (r - 1) // 2), dtype)
        return {"Q_packed": packed, "series": series_for(terms)}

    @classmethod
    def options_of(cls, state: Mapping[str, Array]) -> dict[str, object]:
        terms = len(state["series"]) if "series" in state else None
        return {"terms": terms, "block_share": len(state["Q_packed"]) == 1}

    def rotations(self, W: Matrix) -> Float[Array, "blocks r r"]:
        """The blocks `R`, in the dtype of `W`."""
        blocks, r = math.ceil(W.shape[1] / self.rank), self.rank
        Q = antisymmetric(self.Q_packed.astype(W.dtype), r)
        if W.shape[1] % r:
            exists = (jnp.arange(blocks * r) < W.shape[1]).reshape(blocks, r).astype(W.dtype)
            Q = Q * exists[:, :, None] * exists[:, None, :]
        return jnp.broadcast_to(rotation(Q, self.series), (blocks, r, r))

    def law(self, W: Matrix) -> Matrix:
        return rotated(W.T, self.rotations(W).mT).T

    def forward(self, x: ArrayLike) -> Array:
        W = self.matrix(self.base)
        if self.reads_features():
            return self.product(x, before=lambda v: rotated(v, self.rotations(W)))
        return self.plus(x, Update(lambda: self.law(W) - W, column=self.column))

    def column(self, i: Array) -> Float[Array, " out"]:
        """`(W blockdiag(R) - W)[:, i]`: only the block that `i` lies in."""
        W, r = self.matrix(self.base), self.rank
        inside, places = i % r, i // r * r + jnp.arange(r)
        packed = self.Q_packed[jnp.minimum(i // r, len(self.Q_packed) - 1)].astype(W.dtype)
        exists = (places < W.shape[1]).astype(W.dtype)
        Q = antisymmetric(packed, r) * exists[:, None] * exists[None, :]
        moved = rotation(Q, self.series)[:, inside] - (jnp.arange(r) == inside).astype(W.dtype)
        return W[:, jnp.minimum(places, W.shape[1] - 1)] @ moved
