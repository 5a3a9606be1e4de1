"""VeRA: two trained vectors around random matrices that are never stored."""

import abc

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from jno.lora import LowRankForm

from .._arrays import Matrix, scaled
from .._bibtex import cited
from .._random import uniform_matrix
from .._scaled import Scaled


class BetweenVectors(Scaled):
    """`W' = W + s diag(b) B diag(d) A`, where `b` and `d` train. The rank is not clamped."""

    adapter_fields = ("b", "d")
    _rank_limits = ()

    b: Float[Array, " out"]
    d: Float[Array, " r"]

    @abc.abstractmethod
    def projections(self, W: Array) -> tuple[Float[Array, "r in"], Float[Array, "out r"]]:
        """The matrices `A` and `B`, in the dtype of `W`."""

    def law(self, W: Matrix) -> Matrix:
        A, B = self.projections(W)
        return W + scaled(B @ scaled(A, self.d), self.times_scale(self.b.astype(W.dtype)))

    def low_rank_form(self) -> LowRankForm:
        A, B = self.projections(self.matrix(self.base))
        return LowRankForm(scaled(A, self.d), scaled(B, self.times_scale(self.b)))

    def forward(self, x: ArrayLike) -> Array:
        A, B = self.projections(self.matrix(self.base))
        d, b = self.d, self.times_scale(self.b)
        return self.low_rank(x, A, B, lambda h: scaled(h, d), lambda y: scaled(y, b))


class VeRA(BetweenVectors):
    """VeRA: vector-based random matrix adaptation.

    Law: `W' = W + (alpha / r) diag(b) B diag(d) A`. `A` `(r, in)` and `B` `(out, r)` are uniform
    with mean 0 and variances `1/in` and 1. They are drawn from `seed` at every use, and are not
    saved. `b` starts at 0 and `d` at 1; `out + r` parameters train. The rank is not clamped.

    Paper: Kopiczko et al., "VeRA: Vector-based Random Matrix Adaptation", arXiv:2310.11454. The
    paper shares one pair of matrices among all layers and starts `d` at 0.1, as `VeRAShared` does;
    here each layer has its own seed, and `d` starts at 1. The paper has no scale: the default
    `alpha = rank` gives its factor of 1.
    """

    variant = "vera"
    about = cited("2310.11454", family="structured", formula="out + r")

    # Four numbers from 0 to 255, which survive a cast of the whole model to any floating dtype. An
    # array, not a static field, so that layers can be stacked and seeds can differ without
    # retracing.
    seed: Shaped[Array, "4"]

    def start(self, W: Matrix, r: int, key: PRNGKeyArray, dtype: DTypeLike) -> dict[str, Array]:
        seed = jax.random.bits(key, (4,), jnp.uint8)
        return {"b": jnp.zeros(W.shape[0], dtype), "d": jnp.ones(r, dtype), "seed": seed}

    def projections(self, W: Array) -> tuple[Float[Array, "r in"], Float[Array, "out r"]]:
        outputs, inputs = W.shape
        A = uniform_matrix(self.seed, 0, (self.rank, inputs), 1 / self.fan_in(W), W.dtype)
        B = uniform_matrix(self.seed, 1, (outputs, self.rank), 1.0, W.dtype)
        return A, B
