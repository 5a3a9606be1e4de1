"""BOFT: rotate the inputs by a butterfly of block rotations, and scale the outputs."""

import functools
import math
from collections.abc import Mapping

import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from .._arrays import Matrix, rotated, scaled
from .._bibtex import cited
from .._method import Method
from .._options import whole_number
from .._orthogonal import cayley


class BOFT(Method):
    """BOFT: orthogonal fine-tuning by butterfly factors, each a rotation in blocks.

    Law: `W' = diag(s) W F_0 F_1 ... F_(m-1)`, `F_i = P_i blockdiag(R_1, R_2, ...) P_i^T`, with
    `R = (I - Q~)(I + Q~)^-1`, `Q~ = (Q - Q^T) / 2`, `Q = 0`, `s = 1`. The blocks are `r x r` with
    `r = min(rank, in)`. In factor `i`, a block rotates two halves of `r / 2` inputs that are `2^i`
    halves apart, so each factor doubles the number of inputs that an output of the product depends
    on. `m blocks r^2 + out` parameters train, with `blocks = ceil(in / (2^(m-1) r)) 2^(m-1)`; only
    the antisymmetric part of a block acts. Surplus inputs of the last blocks are masked before the
    Cayley map. `alpha` is ignored.

    - `factors`: the number `m`, by default 2, or 1 if `r` is odd and cannot be halved, or if one
        block contains all inputs. One factor is OFT of the inputs, with a scale.

    Paper: Liu et al., "Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization",
    arXiv:2311.06243. The authors' code (and PEFT) rotates by the transpose of each `R`, so its
    matrices are the transposes of ours.

    In a `WeightNorm` of rows, `s` has no effect.

    **Raises:** `ValueError` for `factors` below 1, above 1 if `r` is odd, and if the last factor
    would not have two halves to rotate, that is, unless `2^(m-2) r` is below `in`.
    """

    adapter_fields = ("Q_blocks", "s")
    variant = "boft"
    has_alpha = False
    about = cited(
        "2311.06243",
        family="rotation",
        formula="m h r^2 ceil(in/hr) + out, h = 2^(m-1)",
        cost="rotates the whole weight at every call, unless the layer reads features.",
    )
    _rank_limits = ("in",)

    Q_blocks: Float[Array, "m blocks r r"]
    s: Float[Array, " out"]

    def start(
        self, W: Matrix, r: int, key: PRNGKeyArray, dtype: DTypeLike, *, factors: object = None
    ) -> dict[str, Array]:
        inputs = W.shape[1]
        if factors is None:
            factors = 1 if r % 2 or r == inputs else 2
        most = 1 + ((inputs - 1) // r).bit_length()
        m = whole_number(factors, "factors", most, f" for {inputs} inputs in blocks of {r}")
        if m > 1 and r % 2:
            raise ValueError(f"{r} inputs have no halves: give an even rank or `factors` 1")
        blocks = math.ceil(inputs / (2 ** (m - 1) * r)) * 2 ** (m - 1)
        return {"Q_blocks": jnp.zeros((m, blocks, r, r), dtype), "s": jnp.ones(W.shape[0], dtype)}

    @classmethod
    def options_of(cls, state: Mapping[str, Array]) -> dict[str, object]:
        return {"factors": len(state["Q_blocks"])}

    def rotations(self, W: Matrix) -> Float[Array, "m blocks r r"]:
        """The blocks `R` of every factor, each orthogonal, in the dtype of `W`."""
        m, blocks, r, _ = self.Q_blocks.shape
        Q = self.Q_blocks.astype(W.dtype)
        exists = (jnp.arange(blocks * r) < W.shape[1]).astype(W.dtype)
        exists = jnp.stack([gathered(exists, i, r) for i in range(m)]).reshape(m, blocks, r)
        return cayley((Q - Q.mT) / 2 * exists[..., :, None] * exists[..., None, :])

    def law(self, W: Matrix) -> Matrix:
        # W F_0 F_1 ... = (... F_1^T F_0^T W^T)^T
        R = self.rotations(W).mT
        turned = functools.reduce(lambda v, i: butterfly(v, R[i], i), range(len(R)), W.T)
        return scaled(turned.T, self.s)

    def has_fast_path(self) -> bool:
        return self.reads_features()

    def forward(self, x: ArrayLike) -> Array:
        R = self.rotations(self.matrix(self.base))

        def turned(v: Array) -> Array:
            return functools.reduce(lambda v, i: butterfly(v, R[i], i), reversed(range(len(R))), v)

        return scaled(self.product(x, before=turned), self.s)


def butterfly(
    v: Float[Array, "n *rest"], R: Float[Array, "blocks r r"], i: int
) -> Float[Array, "n *rest"]:
    """`F_i v` along the first axis."""
    blocks, r, _ = R.shape
    padded = jnp.pad(v, ((0, blocks * r - len(v)), *((0, 0),) * (v.ndim - 1)))
    return gathered(rotated(gathered(padded, i, r), R), i, r, back=True)[: len(v)]


def gathered(
    v: Float[Array, "n *rest"], i: int, r: int, back: bool = False
) -> Float[Array, "n *rest"]:
    """`P_i^T v`, in which the two halves that a block of factor `i` rotates are adjacent.

    `back`: `P_i v`.
    """
    if i == 0:  # the halves are adjacent already, and an odd block cannot be halved
        return v
    shape = (2**i, 2) if back else (2, 2**i)
    halves = v.reshape(-1, *shape, r // 2, *v.shape[1:])
    return jnp.swapaxes(halves, 1, 2).reshape(v.shape)
