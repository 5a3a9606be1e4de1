"""LoRA-One: factors that start along the first step of full fine-tuning."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, PRNGKeyArray

from .._arrays import Matrix
from .._bibtex import cited
from .._options import positive_number
from .._svd import largest
from .pissa import Split


class LoRAOne(Split):
    """LoRA-One: the factors start as the best approximation of the first full gradient step.

    Law: `W' = base + (alpha / r) B A`. With `U S V^T` the `r` largest singular triplets of the
    *negative* gradient of the loss by `W`, `B = U sqrt(S / (gamma S_1))` and
    `A = sqrt(S / (gamma S_1)) V^T` at first, and `base` holds `W - (alpha / r) B A`. `r(in + out)`
    parameters train.

    - `step`: with `True`, `base` is `W`, as in the paper: the adapted layer starts one step of
        gradient descent, of the length `alpha / (r gamma S_1)`, away from the original layer.
    - `gamma`: a positive number, 128 by default. A larger `gamma` makes both factors smaller.
    - `svd`: `"exact"`, `"randomized"` or `"auto"`, as PiSSA's, for the gradient.

    Paper: Zhang, Liu and Chen, "LoRA-One: One-Step Full Gradient Could Suffice for Fine-Tuning
    Large Language Models, Provably and Efficiently", arXiv:2502.01235. By default the adapted model
    equals the original here. The scale of the authors' code is rsLoRA's, `alpha / sqrt(r)`: for its
    start, multiply its `alpha` by `sqrt(r)`. The paper's preconditioner belongs to the optimiser. A
    layer whose gradient is zero does not change.

    **Raises:** `ValueError` if `gamma` is not positive.
    """

    needs = ("gradient",)
    variant = "lora-one"
    about = cited("2502.01235", family="low rank", formula="r (in + out)")

    def start(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        W: Matrix,
        r: int,
        key: PRNGKeyArray,
        dtype: DTypeLike,
        *,
        statistics: Mapping[str, Array],
        step: bool = False,
        gamma: object = 128.0,
        svd: str = "auto",
    ) -> dict[str, Any]:
        gamma = positive_number(gamma, "gamma")
        U, S, Vt = largest(-statistics["gradient"], r, svd, key)
        root = jnp.sqrt(S / (gamma * jnp.where(S[0] > 0, S[0], 1)))
        A, B = (root[:, None] * Vt).astype(dtype), (U * root[None, :]).astype(dtype)
        fields = self.split(W, A, B)
        # Nothing was subtracted from the weight, so nothing has to be added back.
        return {**fields, "base": self.base, "initial_B": jnp.zeros_like(B)} if step else fields
