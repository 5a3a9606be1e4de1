"""RandLoRA: a full-rank update from trained scales of random matrices that are not stored."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from .._arrays import Matrix, scaled
from .._bibtex import cited
from .._derivatives import recomputed
from .._random import uniform_matrix
from .._scaled import Scaled


class RandLoRA(Scaled):
    """RandLoRA: a sum of random low-rank terms, each scaled by two trained vectors.

    Law: `W' = W + (alpha / r) sum_j B_j Λ_j A Γ_j` for `j = 1 ... n` with
    `n = ceil(min(in, out) / r)`, and transposed, `sum_j Γ_j A^T Λ_j B_j^T`, where there are fewer
    outputs than inputs. `A` `(r, min)` is the same in all terms; `B_j` `(max, r)` is every `n`-th
    column, from the `j`-th on, of a matrix `B` `(max, r n)`. Both are uniform with mean 0 and
    variance 1, drawn from `seed` at every use (also in the backward pass), and not saved. `Λ_j`,
    the columns of `lambdas`, start at 0, and `Γ_j`, the rows of `gammas`, at `1 / max(n, min)`.
    `n (r + min)` parameters train: *fewer* at a higher rank. The rank is not clamped.

    - `bases`: given matrices `(A, B)`, which are stored and saved, instead of random matrices.

    Paper: Albert et al., "RandLoRA: Full-rank parameter-efficient fine-tuning of large models",
    arXiv:2502.00987. The paper shares one pair of matrices among all layers; here each layer has
    its own seed. PEFT's default scale is `alpha = 20 r`, so the default `alpha = r` learns slowly.

    **Raises:** `ValueError` for `bases` of wrong shapes.
    """

    adapter_fields = ("lambdas", "gammas")
    variant = "randlora"
    about = cited(
        "2502.00987",
        family="structured",
        formula="ceil(m / r) (r + m), m = min(in, out)",
        cost="draws matrices as large as the weight at every call: merge before decoding.",
    )
    _rank_limits = ()

    lambdas: Float[Array, "r n"]
    gammas: Float[Array, "n smaller"]
    # As VeRA's. It is unused beside `bases`.
    seed: Shaped[Array, "4"]
    basis_A: Float[Array, "r smaller"] | None
    basis_B: Float[Array, "larger rn"] | None

    def start(
        self, W: Matrix, r: int, key: PRNGKeyArray, dtype: DTypeLike, *, bases: Any = None
    ) -> dict[str, Array | None]:
        smaller, larger = sorted(W.shape)
        n = math.ceil(smaller / r)
        shapes = [(r, smaller), (larger, r * n)]
        if bases is not None and [jnp.shape(basis) for basis in bases] != shapes:
            raise ValueError(
                f"`bases` must be two matrices of the shapes {shapes[0]} and {shapes[1]}, but "
                f"theirs are {[jnp.shape(basis) for basis in bases]}"
            )
        A, B = (None, None) if bases is None else (jnp.array(basis, dtype) for basis in bases)
        return {
            "lambdas": jnp.zeros((r, n), dtype),
            "gammas": jnp.full((n, smaller), 1 / max(n, smaller), dtype),
            "seed": jax.random.bits(key, (4,), jnp.uint8),
            "basis_A": A,
            "basis_B": B,
        }

    @classmethod
    def options_of(cls, state: Mapping[str, Array]) -> dict[str, object]:
        options = super().options_of(state)
        if "basis_A" in state:
            options["bases"] = (state["basis_A"], state["basis_B"])
        return options

    def projections(self, W: Array) -> tuple[Float[Array, "r smaller"], Float[Array, "larger rn"]]:
        """The random matrices `A` and `B`, in the dtype of `W`."""
        if self.basis_A is not None and self.basis_B is not None:
            return self.basis_A.astype(W.dtype), self.basis_B.astype(W.dtype)
        smaller, larger = sorted(W.shape)
        A = uniform_matrix(self.seed, 0, (self.rank, smaller), 1.0, W.dtype)
        B = uniform_matrix(self.seed, 1, (larger, self.lambdas.size), 1.0, W.dtype)
        return A, B

    def factors(self, W: Matrix) -> tuple[Float[Array, "rn in"], Float[Array, "out rn"]]:
        """The factors `(r n, in)` and `(out, r n)` of the update, between which `Λ` stands."""
        A, B = self.projections(W)
        scaled_A = (A[:, None] * self.gammas.astype(W.dtype)[None]).reshape(B.shape[1], -1)
        return (scaled_A, B) if W.shape[0] >= W.shape[1] else (B.T, scaled_A.T)

    def law(self, W: Matrix) -> Matrix:
        A, B = self.factors(W)
        return W + B @ scaled(A, self.times_scale(self.lambdas.astype(W.dtype)).reshape(-1))

    def forward(self, x: ArrayLike) -> Array:
        # If stored for the backward pass, the random matrices would be as large as the model.
        return recomputed(RandLoRA._forward)(self, x)

    def _forward(self, x: ArrayLike) -> Array:
        A, B = self.factors(self.matrix(self.base))
        lambdas = self.times_scale(self.lambdas).reshape(-1)
        return self.low_rank(x, A, B, between=lambda h: scaled(h, lambdas))
