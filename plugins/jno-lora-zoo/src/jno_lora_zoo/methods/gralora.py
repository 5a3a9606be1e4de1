"""GraLoRA: a grid of blocks, each with its own low-rank update."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from .._arrays import Matrix, compute_dtype
from .._bibtex import cited
from .._options import whole_number
from .._scaled import Additive


class GraLoRA(Additive):
    """GraLoRA: granular low-rank adaptation. The rank of the whole update is up to `k r`.

    Law: `W' = W + (alpha / r) U`, where `U` is a grid of `k x k` blocks: block `(j, n)` is the
    product of the `n`-th `r / k` columns of `B_j` and the `j`-th `r / k` rows of `A_n`. `A_n`
    `(in / k, r)` `~ N(0, k/in)` and `B_j` `(r, out / k)` `= 0` are stored transposed. `r(in + out)`
    parameters train. If `k` does not divide a size of `W`, the last blocks are cut. The rank is not
    clamped.

    - `k`: the blocks in a row and in a column. By default it is the smallest divisor of the rank
        above 1: 2 for even ranks. With a rank of 1, or if the weight is too small, it is 1, which
        is LoRA.

    Paper: Jung et al., "GraLoRA: Granular Low-Rank Adaptation for Parameter-Efficient Fine-Tuning",
    arXiv:2505.20355. The paper's hybrid with a LoRA of all inputs is not supported.

    **Raises:** `ValueError` if `k` does not divide the rank, or if a block would have no entry.
    """

    adapter_fields = ("A", "B")
    variant = "gralora"
    about = cited("2505.20355", family="structured", formula="k r (ceil(in / k) + ceil(out / k))")
    _rank_limits = ()

    A: Float[Array, "k q r"]
    B: Float[Array, "k r p"]

    def start(
        self, W: Matrix, r: int, key: PRNGKeyArray, dtype: DTypeLike, *, k: object = None
    ) -> dict[str, Array]:
        if k is None:
            k = next((n for n in range(2, r + 1) if r % n == 0 and _fits(n, W.shape)), 1)
        k = whole_number(k, "k")
        if r % k:
            raise ValueError(f"`k` must divide the rank, but `k` is {k} and the rank {r}")
        if not _fits(k, W.shape):
            raise ValueError(f"a weight {W.shape} has no {k} x {k} blocks with an entry in each")
        p, q = (-(-size // k) for size in W.shape)
        A = jax.random.normal(key, (k, q, r), dtype) * math.sqrt(k / self.fan_in(W))
        return {"A": A, "B": jnp.zeros((k, r, p), dtype)}

    @classmethod
    def options_of(cls, state: Mapping[str, Array]) -> dict[str, object]:
        return {**super().options_of(state), "k": len(state["A"])}

    def blocks(self, dtype: DTypeLike) -> tuple[Array, Array]:
        """`A` as `(n, q, j, r / k)` and `s B` as `(j, n, r / k, p)`, in this dtype."""
        k, q, r = self.A.shape
        A, B = self.A.astype(dtype), self.times_scale(self.B.astype(dtype))
        return A.reshape(k, q, k, r // k), B.reshape(k, k, r // k, -1)

    def update(self, W: Matrix) -> Matrix:
        A, B = self.blocks(W.dtype)
        U = jnp.einsum("nqjs,jnsp->jpnq", A, B)
        outputs, inputs = W.shape
        return U.reshape(-1, A.shape[0] * A.shape[1])[:outputs, :inputs]

    def times(self, shape: tuple[int, ...], v: Float[Array, " in"]) -> Float[Array, " out"]:
        A, B = (factor.astype(v.dtype) for factor in self.blocks(compute_dtype(self.B)))
        padded = jnp.pad(v, (0, A.shape[0] * A.shape[1] - v.size)).reshape(A.shape[:2])
        h = jnp.einsum("nq,nqjs->jns", padded, A)
        return jnp.einsum("jns,jnsp->jp", h, B).reshape(-1)[: shape[0]]

    def column(self, shape: tuple[int, ...], i: Array) -> Float[Array, " out"]:
        A, B = self.blocks(compute_dtype(self.B))
        n, at = jnp.divmod(i, A.shape[1])
        return jnp.einsum("js,jsp->jp", A[n, at], B[:, n]).reshape(-1)[: shape[0]]


def _fits(k: int, shape: tuple[int, ...]) -> bool:
    """Whether each of the `k x k` blocks has an entry."""
    return all(-(-size // k) * (k - 1) < size for size in shape)
