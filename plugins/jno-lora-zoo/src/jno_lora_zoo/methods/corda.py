"""CorDA: PiSSA or MiLoRA of the weight times the covariance of its inputs."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, PRNGKeyArray

from .._arrays import Matrix
from .._bibtex import cited
from .._svd import Triplets, largest, smallest
from .pissa import Split

MODES = ("instruction-previewed", "knowledge-preserved")
_DAMPING = 0.01


class CorDA(Split):
    """CorDA: train the part of the weight that matters most, or least, for some data.

    Law: `W' = base + (alpha / r) B A`. `C` is the covariance `E[x x^T]` of the inputs, divided by
    the mean of its diagonal, plus `0.01 I`. With `U S V^T` the `r` chosen singular triplets of
    `W C` and `s` the scale, `B = U sqrt(S / s)` and `A = sqrt(S / s) V^T C^-1` at first, and `base`
    holds `W - s B A`. `r(in + out)` parameters train.

    - `mode`: `"instruction-previewed"`, the default, trains the `r` largest triplets (use data to
        learn); `"knowledge-preserved"` trains the `r` smallest (use data to preserve).
    - `svd`: `"exact"`, `"auto"`, and for the largest triplets `"randomized"`, as PiSSA's, for the
        smallest `"gram"`, as MiLoRA's.

    Paper: Yang et al., "CorDA: Context-Oriented Decomposition Adaptation of Large Language Models
    for Task-Aware Parameter-Efficient Fine-tuning", arXiv:2406.05223. The paper has no scale;
    `alpha = r` gives its `s = 1`. Its code divides the inputs of each call by their maximum, and
    doubles the damping until the inverse is exact; here the covariance is scaled, and the base
    absorbs any remaining error. A layer whose weight is zero stays zero.

    **Raises:** `ValueError` for another mode, and if `alpha` is not positive.
    """

    needs = ("input_covariance",)
    variant = "corda"
    about = cited("2406.05223", family="singular", formula="r (in + out)")

    def start(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        W: Matrix,
        r: int,
        key: PRNGKeyArray,
        dtype: DTypeLike,
        *,
        statistics: Mapping[str, Array],
        mode: str = MODES[0],
        svd: str = "auto",
    ) -> dict[str, Any]:
        if mode not in MODES:
            raise ValueError(f"`mode` must be {MODES[0]!r} or {MODES[1]!r}, but is {mode!r}")
        C = statistics["input_covariance"]
        size = jnp.mean(jnp.diagonal(C))
        C = C / jnp.where(size > 0, size, 1) + _DAMPING * jnp.eye(len(C), dtype=C.dtype)
        U, S, Vt = largest(W @ C, r, svd, key) if mode == MODES[0] else smallest(W @ C, r, svd)
        return self.halved(W, Triplets(U, S, jnp.linalg.solve(C, Vt.T).T), dtype)
