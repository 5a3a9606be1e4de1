"""PSOFT: a small rotation between the weight's principal singular factors."""

from collections.abc import Mapping

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from .._arrays import Matrix
from .._bibtex import cited
from .._orthogonal import antisymmetric, rotation, series_for
from .._singular_core import SingularCore, singular_factors


class PSOFT(SingularCore):
    """PSOFT: the weight is rotated within its own principal subspace.

    Law: `W' = W + B (diag(b) R diag(a) - I) A` with `R = (I - Q)(I + Q)^-1`. `A = V_r^T` and
    `B = U_r S_r` are from the `r` largest singular triplets of `W` and frozen. `Q = 0` is
    antisymmetric, and `Q_packed` holds its entries above the diagonal, row by row; `a = b = 1`.
    `r(r - 1) / 2 + 2 r` parameters train. `alpha` is ignored: the scale of the paper's code is
    divided out of its `B`.

    - `scale_inputs`: with `False`, without the trained `a`.
    - `scale_outputs`: with `False`, without the trained `b`.
    - `terms`: with a whole number, `R` is the series `I - 2 Q + 2 Q^2 - ...` with that many terms,
        the last of them once. Its coefficients are kept as `series`.
    - `svd`: `"exact"`, `"randomized"` or `"auto"`, as PiSSA's.

    Paper: Wu et al., "Efficient Orthogonal Fine-Tuning with Principal Subspace Adaptation",
    arXiv:2505.11235. The authors' code (and PEFT) rotates by `R^T`: its vectors are the negatives
    of those here. A layer whose weight is zero stays zero.

    **Raises:** `ValueError` unless `terms` is `None` or a whole number above 1, and for an
    effective rank of 1 without `a` and `b`, where nothing could train.
    """

    adapter_fields = ("Q_packed", "a", "b")
    variant = "psoft"
    has_alpha = False
    about = cited("2505.11235", family="rotation", formula="r (r - 1) / 2 + 2 r")

    Q_packed: Float[Array, " packed"]
    a: Float[Array, " r"] | None
    b: Float[Array, " r"] | None
    series: Float[Array, " terms"] | None

    def start(
        self,
        W: Matrix,
        r: int,
        key: PRNGKeyArray,
        dtype: DTypeLike,
        *,
        scale_inputs: bool = True,
        scale_outputs: bool = True,
        terms: int | None = None,
        svd: str = "auto",
    ) -> dict[str, Array | None]:
        if r == 1 and not (scale_inputs or scale_outputs):
            raise ValueError("nothing would train: give a rank of 2 or more, or leave a scale on")
        return {
            **singular_factors(W, r, svd, key, dtype),
            "Q_packed": jnp.zeros(r * (r - 1) // 2, dtype),
            "a": jnp.ones(r, dtype) if scale_inputs else None,
            "b": jnp.ones(r, dtype) if scale_outputs else None,
            "series": series_for(terms),
        }

    @classmethod
    def options_of(cls, state: Mapping[str, Array]) -> dict[str, object]:
        terms = len(state["series"]) if "series" in state else None
        return {"scale_inputs": "a" in state, "scale_outputs": "b" in state, "terms": terms}

    def core(self, dtype: DTypeLike) -> Float[Array, "r r"]:
        """`diag(b) R diag(a) - I`."""
        R = rotation(antisymmetric(self.Q_packed.astype(dtype), self.rank), self.series)
        if self.a is not None:
            R = R * self.a.astype(dtype)[None, :]
        if self.b is not None:
            R = R * self.b.astype(dtype)[:, None]
        return R - jnp.eye(self.rank, dtype=dtype)
