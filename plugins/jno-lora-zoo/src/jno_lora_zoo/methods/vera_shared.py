"""VeRA as published: one pair of random matrices for all layers."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from jno.lora import Shared

from .._arrays import Matrix
from .._bibtex import cited
from .vera import BetweenVectors


class VeRAShared(BetweenVectors):
    """VeRA with shared matrices: one frozen random pair for all layers, stored and saved once.

    Law: `W' = W + alpha diag(b) B diag(d) A`. `A` and `B` are the first `(r, in)` and `(out, r)`
    entries of two matrices with the largest rank, `in` and `out` of all layers, which are uniform
    with mean 0 and variances `2/in` and `2/r` for these largest sizes. `b` starts at 0 and `d` at
    `d_initial`; `out + r` parameters train. The rank is not clamped. All layers with the same rank
    use the same random directions; `VeRA` draws them for each layer.

    - `d_initial`: the start of `d`.

    Embeddings share another `A`, of variance 2, because a lookup reads a single column. This `A` is
    `(r, num_embeddings)`: VeRA, which stores no matrix, suits large tables better.

    Paper: Kopiczko et al., "VeRA: Vector-based Random Matrix Adaptation", arXiv:2310.11454. The
    paper has no scale: the default `alpha = 1`. Every adapter has the same two arrays, and a stack
    of layers has a copy for each layer.
    """

    variant = "vera-shared"
    about = cited("2310.11454", family="structured", formula="out + r, beside a frozen pair")
    _scales_by_alpha = True

    A: Shared
    B: Shared

    def start(
        self, W: Matrix, r: int, key: PRNGKeyArray, dtype: DTypeLike, *, d_initial: float = 0.1
    ) -> dict[str, Array | Shared]:
        outputs, inputs = W.shape
        kaiming = functools.partial(kaiming_uniform, dtype=dtype)
        A = Shared("vera-A", (r, inputs), kaiming)
        if self.fan_in(W) == 1 < inputs:
            for_lookups = functools.partial(kaiming_uniform, dtype=dtype, fan_in=1)
            A = Shared("vera-A-of-lookups", (r, inputs), for_lookups)
        b, d = jnp.zeros(outputs, dtype), jnp.full(r, d_initial, dtype)
        return {"b": b, "d": d, "A": A, "B": Shared("vera-B", (outputs, r), kaiming)}

    def projections(self, W: Array) -> tuple[Float[Array, "r in"], Float[Array, "out r"]]:
        outputs, inputs = W.shape
        A, B = self.A.array[: self.rank, :inputs], self.B.array[:outputs, : self.rank]
        return A.astype(W.dtype), B.astype(W.dtype)


def kaiming_uniform(
    key: PRNGKeyArray, shape: tuple[int, ...], *, dtype: DTypeLike, fan_in: int | None = None
) -> Array:
    """Uniform with mean 0 and variance `2 / fan_in`, by default for the last axis."""
    bound = math.sqrt(6 / (shape[-1] if fan_in is None else fan_in))
    return jax.random.uniform(key, shape, dtype, -bound, bound)
