"""EVA: LoRA that starts with the directions in which the layer's inputs vary most."""

from collections.abc import Mapping

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, PRNGKeyArray

from .._arrays import Matrix
from .._bibtex import cited
from .._svd import largest
from .lora import LowRank

# Directions with less than this fraction of the largest variance are whitened no further.
_LEAST_VARIANCE = 1e-6


class EVA(LowRank):
    """EVA: LoRA whose `A` starts as the principal directions of the layer's inputs.

    Law: `W' = W + (alpha / r) B A`, `A = V_r^T` and `B = 0`. `V_r` are the `r` eigenvectors of the
    covariance of the inputs, `E[x x^T] - E[x] E[x]^T`, with the largest eigenvalues (the explained
    variance). `r(in + out)` parameters train.

    - `whiten`: with `True`, each row of `A` is divided by the root of its eigenvalue, so that the
        entries of `A (x - E[x])` have the variance 1.
    - `svd`: `"exact"`, `"randomized"` or `"auto"`, as PiSSA's, for the covariance.

    Paper: Paischer et al., "Parameter Efficient Fine-tuning via Explained Variance Adaptation",
    arXiv:2410.07170. The paper takes singular vectors of the inputs; its code centres the inputs,
    as here, and follows the vectors batch by batch until they converge; here they are computed from
    all batches. The code whitens by the root of a singular value, which grows with the number of
    samples. To distribute ranks over layers as in the paper, use `jno_lora_zoo.allocate`.
    """

    needs = ("input_covariance", "input_mean")
    variant = "eva"
    about = cited("2410.07170", family="low rank", formula="r (in + out)")

    def start(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        W: Matrix,
        r: int,
        key: PRNGKeyArray,
        dtype: DTypeLike,
        *,
        statistics: Mapping[str, Array],
        whiten: bool = False,
        svd: str = "auto",
    ) -> dict[str, Array]:
        mean = statistics["input_mean"]
        covariance = statistics["input_covariance"] - jnp.outer(mean, mean)
        _, variance, A = largest(covariance, r, svd, key)
        if whiten:
            variance = jnp.maximum(variance, _LEAST_VARIANCE * variance[0])
            A = A / jnp.sqrt(jnp.where(variance > 0, variance, 1))[:, None]
        return {"lora_A": A.astype(dtype), "lora_B": jnp.zeros((len(W), r), dtype)}
