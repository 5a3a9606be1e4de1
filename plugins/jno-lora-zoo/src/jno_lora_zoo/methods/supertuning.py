"""Super-Tuning: train the entries of the weight with the largest magnitude."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, PRNGKeyArray

from .._arrays import Matrix
from .._bibtex import cited
from .._positions import count_of, digits_of
from .shira import Scattered


class SuperTuning(Scattered):
    """Super-Tuning: trained values at the entries of the weight with the largest magnitude.

    Law: `W' = W + scatter(values)`, `values = 0`, at the positions of the largest `|W_ij|`.
    `min(r(in + out), in out)` parameters train, or `(1 - sparsity) in out`. `alpha` is ignored. The
    positions are saved, because a rounded weight could have different largest entries.

    Paper: "Super-Tuning: From Activation-Aware Pruning to Sparse Fine-Tuning", arXiv:2607.09287. It
    chooses by magnitude or by activations; here the choice is by magnitude, as in PEFT. Its mixture
    with LoRA ("Supra") is not supported. The paper and PEFT use a sparsity instead of a rank:
    `options={"sparsity": 0.99}`.

    - `sparsity`: the fraction of the entries that do not train, from 0 to less than 1.
    - `count`: how many entries train, instead of `sparsity`.
    - `largest`: `False` for the smallest entries.

    **Raises:** `ValueError` unless between one entry and all entries train.
    """

    variant = "supertuning"
    about = cited(
        "2607.09287",
        family="sparse",
        formula="min(r (in + out), in out)",
        cost="makes a matrix as large as the weight at every call: merge before decoding.",
    )

    def start(
        self,
        W: Matrix,
        r: int,
        key: PRNGKeyArray,
        dtype: DTypeLike,
        *,
        sparsity: Any = None,
        count: object = None,
        largest: bool = True,
    ) -> dict[str, Array]:
        option = "count"
        if sparsity is not None:
            if count is not None:
                raise ValueError("`sparsity` and `count` say the same: give one of them")
            option, count = "(1 - sparsity) in out", int(W.size * (1 - sparsity))
        n = count_of(W.shape, r, count, option)
        sizes = jnp.abs(W).reshape(-1)
        positions = jax.lax.top_k(sizes if largest else -sizes, n)[1]
        # In the order of memory.
        return {"values": jnp.zeros(n, dtype), "positions": digits_of(jnp.sort(positions))}

    @classmethod
    def options_of(cls, state: Mapping[str, Array]) -> dict[str, object]:
        return {"count": len(state["values"])}
