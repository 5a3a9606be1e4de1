"""DoRA: adapt the magnitude and the direction of each row separately."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from jno.lora import LowRankForm

from .._arrays import Matrix, row_norms, scaled
from .._bibtex import cited
from .._layer_kind import Factor
from .._random import low_rank_start
from .._weighted import Weighted


class DoRA(Weighted):
    """DoRA: weight-decomposed low-rank adaptation.

    Law: `W' = m * V / norm(V)` with `V = W + (alpha / r) B A`, where `norm` is taken of each row.
    `m` starts as `norm(W)`, `A ~ N(0, 1/in)`, `B = 0`. `r(in + out) + out` parameters train.

    The norm is a constant for differentiation (section 4.3 of the paper), also in `merge`, except
    for derivatives in the weights of `with_directions`, so that the derivative in a parameter is
    exact, and a trained basis of a conditional learns through the norm. The norm is computed from
    `W` at every call, because a stored norm would be wrong once the base changes. A row of `W` that
    is zero has magnitude zero, and stays zero.

    `merge` takes the norm of `V` itself; the forward pass computes it from the factors. Where `B A`
    cancels most of a row of `W`, the relative error of this norm is up to `2 e c^2`: `e` is the
    rounding of the dtype (6e-8 in float32), `c` the sum of the norms of `W` and `B A` over the norm
    of `V`. That is 5e-3 if 0.99 of a row is cancelled, and zero if the rank is the number of
    inputs. Rows below 1e-19 or above 1e19 give zeros, because their squares exceed the range of
    float32.

    Paper: Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", arXiv:2402.09353. The paper
    norms columns of `(in, out)` matrices, which are rows here.
    """

    adapter_fields = ("magnitude", "lora_A", "lora_B")
    takes_weights = True
    variant = "dora"
    about = cited(
        "2402.09353",
        family="low rank",
        formula="r (in + out) + out",
        cost="reads the whole weight at every call, for its norms: merge before decoding.",
    )

    magnitude: Float[Array, " out"]
    lora_A: Float[Array, "r in"]
    lora_B: Float[Array, "out r"]

    def start(self, W: Matrix, r: int, key: PRNGKeyArray, dtype: DTypeLike) -> dict[str, Array]:
        factors = low_rank_start(W, r, key, dtype, self.fan_in(W))
        return {"magnitude": row_norms(W).astype(dtype), **factors}

    def law(self, W: Matrix) -> Matrix:
        V = self.direction(W, self.lora_A, self.lora_B)
        if self.direction_weights is None:
            norms = jax.lax.stop_gradient(row_norms(V))
        else:
            detached = map(jax.lax.stop_gradient, (W, self.lora_A, self.lora_B))
            norms = _norms(self.direction(*detached))
        return scaled(V, self.row_factor(norms))

    def direction(self, W: Matrix, A: Factor, B: Array) -> Matrix:
        """`V`, for these values of the fields `lora_A` and `lora_B`."""
        return W + self.times_scale(self.weighted(B.astype(W.dtype))) @ A.astype(W.dtype)

    def low_rank_form(self) -> LowRankForm:
        B = self.times_scale(self.weighted(self.lora_B))
        V = self.direction(self.matrix(self.base), self.lora_A, self.lora_B)
        return LowRankForm(self.lora_A, B, gain=self.row_factor(row_norms(V)))

    def forward(self, x: ArrayLike) -> Array:
        B, weights = self.multiplied(self.lora_B), self.direction_weights
        if weights is None:
            y = self.low_rank(x, self.lora_A, B, between=lambda h: self.scaling * h)
            norms = jax.lax.stop_gradient(self.factored_norms())
        else:
            y = self.weighted_low_rank(x, weights, B, seen=x)
            norms = self.weighted_norms(weights)
        return scaled(y, self.row_factor(norms))

    def row_factor(self, norms: Float[Array, " out"]) -> Float[Array, " out"]:
        return self.magnitude.astype(norms.dtype) / jnp.where(norms > 0, norms, 1)

    def factored_norms(self) -> Float[Array, " out"]:
        """`||V||_row` without forming `B A`, where `B` includes the scale.

        `||V_i||^2 = ||W_i||^2 + 2 (B * W A^T)_i + (B (A A^T) * B)_i`, summed over `r`.
        """
        # Detached before the products, because a loop over blocks of rows would store the blocks.
        A, B = (jax.lax.stop_gradient(factor) for factor in (self.lora_A, self.lora_B))
        if A.shape[0] == A.shape[1]:  # `V` is no larger than `W A^T` then, and its norm is exact
            W = jax.lax.stop_gradient(self.matrix(self.base))
            return row_norms(W + self.times_scale(B.astype(W.dtype)) @ A.astype(W.dtype))
        products, squares = self.row_products(self.base, A)
        A, B = A.astype(products.dtype), self.times_scale(B.astype(products.dtype))
        cross = jnp.sum(B * products, axis=1)
        update = jnp.sum((B @ (A @ A.T)) * B, axis=1)
        # Rounding may leave a row that is nearly zero with a negative square.
        return jnp.sqrt(jnp.maximum(squares + 2 * cross + update, 0))

    def weighted_norms(self, weights: Float[Array, " K"]) -> Float[Array, " out"]:
        """`factored_norms` for `B = sum_k w_k B_k`. Only the weights are not constants.

        The squares are a polynomial in the weights, so a map over weights does not copy factors.
        """
        A, B = (jax.lax.stop_gradient(factor) for factor in (self.lora_A, self.lora_B))
        products, squares = map(jax.lax.stop_gradient, self.row_products(self.base, A))
        w, A = weights.astype(products.dtype), A.astype(products.dtype)
        B = jnp.moveaxis(self.times_scale(B.astype(A.dtype)), 0, 1)  # (out, K, r)
        cross = jnp.sum(B * products[:, None], axis=2)
        update = jnp.sum((B @ (A @ A.T))[:, :, None] * B[:, None], axis=3)
        squares = squares + (2 * cross + update @ w) @ w
        # The derivative of a root at zero is infinite.
        return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)


def _norms(V: Matrix) -> Float[Array, " out"]:
    """`row_norms`, whose derivative at a row of zeros is zero."""
    is_zero = jnp.all(V == 0, axis=1)
    return jnp.where(is_zero, 0, row_norms(jnp.where(is_zero[:, None], 1, V)))
