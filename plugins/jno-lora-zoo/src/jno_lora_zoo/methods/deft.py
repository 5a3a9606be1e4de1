"""DEFT: remove a subspace of the outputs, and inject a trained update into it."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from jno.lora import LowRankForm

from .._arrays import Matrix
from .._bibtex import cited
from .._layer_kind import Update
from .._method import Method
from .._orthogonal import orthonormal


class DEFT(Method):
    """DEFT: a projection onto the complement of a small subspace, and an injection into it.

    Law: `W' = (I - P relu(P)^T) W + P R`, `P ~ N(0, 0.02^2)`, `R = relu(P)^T W`. `r(in + out)`
    parameters train; `r = min(rank, out)`. `alpha` is ignored.

    - `orthogonal`: with `True`, `W' = (I - Q Q^T) W + Q R`, where `Q` has the orthonormalised
        columns of `P`. The array of that name only records the option.
    - `inject`: with `False`, without `R`. With `orthogonal`, this is the law of PaRa (Chen et al.,
        arXiv:2406.05641), with `r out` parameters. Because a subspace is missing from the start,
        the adapted model does not start as the original.

    Paper: Kumar et al., "DEFT: Decompositional Efficient Fine-Tuning for Text-to-Image Models",
    arXiv:2509.22793. The paper starts `R` at random; here, as in PEFT, the injection starts as the
    outputs that the projection removes, and the adapted model equals the original to rounding.
    PEFT's factor `alpha / r` of the injection belongs into `R`, and its orthonormal columns may
    have the opposite sign.
    """

    adapter_fields = ("P", "R")
    variant = "deft"
    has_alpha = False
    about = cited(
        "2509.22793",
        family="low rank",
        formula="r (in + out)",
        cost="reads the whole weight at every call, to project it: merge before decoding.",
    )
    _rank_limits = ("out",)

    P: Float[Array, "out r"]
    R: Float[Array, "r in"] | None
    orthogonal: Float[Array, ""] | None

    def start(
        self,
        W: Matrix,
        r: int,
        key: PRNGKeyArray,
        dtype: DTypeLike,
        *,
        inject: bool = True,
        orthogonal: bool = False,
    ) -> dict[str, Array | None]:
        self.P = (0.02 * jax.random.normal(key, (W.shape[0], r))).astype(dtype)
        self.orthogonal = jnp.ones(()) if orthogonal else None
        _, right = self.projection(W)
        R = (right.T @ W).astype(dtype) if inject else None
        return {"P": self.P, "R": R, "orthogonal": self.orthogonal}

    @classmethod
    def options_of(cls, state: Mapping[str, Array]) -> dict[str, object]:
        return {"inject": "R" in state, "orthogonal": "orthogonal" in state}

    def projection(self, W: Matrix) -> tuple[Float[Array, "out r"], Float[Array, "out r"]]:
        """The two factors of `P relu(P)^T` or `Q Q^T`, in the dtype of `W`."""
        P = self.P.astype(W.dtype)
        if self.orthogonal is None:
            return P, jnp.where(P > 0, P, 0)  # `jet` cannot follow `jax.nn.relu`
        Q = orthonormal(P)
        return Q, Q

    def factors(self, W: Matrix) -> tuple[Float[Array, "out r"], Float[Array, "r in"]]:
        """`P` (or `Q`) and `R - relu(P)^T W` (or `R - Q^T W`): the update is their product."""
        # Once per batch, because projecting each output separately makes a step 1.5 to 2 times as
        # long.
        P, right = self.projection(W)
        taken = right.T @ W
        return P, -taken if self.R is None else self.R.astype(W.dtype) - taken

    def law(self, W: Matrix) -> Matrix:
        P, A = self.factors(W)
        return W + P @ A

    def low_rank_form(self) -> LowRankForm:
        P, A = self.factors(self.matrix(self.base))
        return LowRankForm(A, P)

    def forward(self, x: ArrayLike) -> Array:
        W = self.matrix(self.base)
        P, A = self.factors(W)

        def column(i: Array) -> Float[Array, " out"]:
            _, right = self.projection(W)
            injected = 0 if self.R is None else self.R[:, i].astype(W.dtype)
            return P @ (injected - right.T @ W[:, i])

        def times(v: Array) -> Array:
            return P.astype(v.dtype) @ (A.astype(v.dtype) @ v)

        return self.plus(x, Update(lambda: P @ A, times, column))
