"""LoRA-Null: factors that start in the directions that the layer's inputs use least."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from .._arrays import Matrix
from .._bibtex import cited
from .._svd import Triplets
from .pissa import Split


class LoRANull(Split):
    """LoRA-Null: `A` starts in the null space of the layer's earlier inputs.

    Law: `W' = base + (alpha / r) B A`. `N` are the `r` eigenvectors of the covariance `E[x x^T]` of
    the inputs with the smallest eigenvalues, as columns. With `U S V^T` the `r` singular triplets
    of `W N N^T` and `s` the scale, `B = U sqrt(S / s)` and `A = sqrt(S / s) V^T` at first, and
    `base` holds `W - s B A`. `r(in + out)` parameters train.

    Calibrate on the data to preserve. As long as the rows of `A` are combinations of the columns of
    `N`, an input without a part along `N` gives the output of the original layer.
    `net.mask("lora_A$").freeze()` keeps `A` there; then `r out` parameters train. If the inputs use
    all directions, `N` contains the directions that they use least.

    Paper: Tang et al., "Put the Space of LoRA Initialization to the Extreme to Preserve Pre-trained
    Knowledge", arXiv:2503.02659. Its first version had the title "LoRA-Null: Low-Rank Adaptation
    via Null Space for Large Language Models", and calls a frozen `A` LoRA-Null-v2. The paper has no
    scale; `alpha = r` gives its `s = 1`. Its code divides the inputs of each call by their maximum.
    A layer whose weight is zero stays zero.

    **Raises:** `ValueError` if `alpha` is not positive.
    """

    needs = ("input_covariance",)
    variant = "lora-null"
    about = cited("2503.02659", family="low rank", formula="r (in + out)")

    def start(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, W: Matrix, r: int, key: PRNGKeyArray, dtype: Any, *, statistics: Mapping[str, Array]
    ) -> dict[str, Any]:
        # The eigenvalues ascend.
        N = jnp.linalg.eigh(statistics["input_covariance"])[1][:, :r]
        U, S, Vt = jnp.linalg.svd(W @ N, full_matrices=False)
        return self.halved(W, Triplets(U, S, Vt @ N.T), dtype)
