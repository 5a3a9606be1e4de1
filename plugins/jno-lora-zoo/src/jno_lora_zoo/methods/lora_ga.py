"""LoRA-GA: factors whose first step is as close to full fine-tuning as their rank allows."""

import math
from collections.abc import Mapping
from typing import Any

from jax.typing import DTypeLike
from jaxtyping import Array, PRNGKeyArray

from .._arrays import Matrix
from .._bibtex import cited
from .._options import positive_number
from .._svd import largest
from .pissa import Split


class LoRAGA(Split):
    """LoRA-GA: both factors start as singular vectors of the gradient.

    Law: `W' = base + (alpha / r) B A`. With `U S V^T` the singular value decomposition of the
    gradient of the loss by `W`, `A = c V_[1:r]^T` and `B = c U_[r+1:2r]` with
    `c = out^(1/4) / sqrt(gamma)` at first, and `base` holds `W - (alpha / r) B A`. `r(in + out)`
    parameters train. If there are fewer than `2 r` vectors, `B` gets the last `r` vectors, so that
    the vectors of `A` and `B` still span the gradient.

    - `gamma`: a positive number, 16 by default. A larger `gamma` makes both factors smaller.
    - `svd`: `"exact"`, `"randomized"` or `"auto"`, as PiSSA's, for the gradient.

    Paper: Wang, Yu and Li, "LoRA-GA: Low-Rank Adaptation with Gradient Approximation",
    arXiv:2407.05000. The paper's scale is rsLoRA's, `alpha / sqrt(r)`: for its start, multiply its
    `alpha` by `sqrt(r)`. PEFT multiplies `B` by singular values, and scales `B` alone.

    **Raises:** `ValueError` if `gamma` is not positive.
    """

    needs = ("gradient",)
    variant = "lora-ga"
    about = cited("2407.05000", family="low rank", formula="r (in + out)")

    def start(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        W: Matrix,
        r: int,
        key: PRNGKeyArray,
        dtype: DTypeLike,
        *,
        statistics: Mapping[str, Array],
        gamma: object = 16.0,
        svd: str = "auto",
    ) -> dict[str, Any]:
        U, _, Vt = largest(statistics["gradient"], min(2 * r, *W.shape), svd, key)
        c = len(W) ** 0.25 / math.sqrt(positive_number(gamma, "gamma"))
        return self.split(W, (c * Vt[:r]).astype(dtype), (c * U[:, -r:]).astype(dtype))
