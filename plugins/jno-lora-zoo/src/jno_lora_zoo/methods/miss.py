"""MiSS: one small matrix, repeated over the inputs, as the update."""

from collections.abc import Mapping

import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.tree_util import Partial
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from .._arrays import Matrix, in_compute_dtype
from .._bibtex import cited
from .._layer_kind import Update
from .._options import whole_number
from .._scaled import Additive


class MiSS(Additive):
    """MiSS: matrix shard sharing. Inputs that are `r` apart have the same update.

    Law: `W' = W + [D^T D^T ...]`, cut to `in` columns, with `D` `(r, out)` `= 0`. `r out`
    parameters train. `r = min(rank, in)`. `alpha` is ignored: the paper has no scale.

    At most one of `mini` and `bat` may be given.

    - `mini`: with a number `n`, `D` is `(r, n)`, repeated over the outputs as well. `r n`
        parameters train.
    - `bat`: with `True`, each `r` outputs have their own `D` `(r, r)`, and each `(r, r)` block `V`
        of `W` in their rows becomes `V + V D + D`. `r out` parameters train. The layer makes the
        matrix.

    Paper: Kang and Yin, "MiSS: Revisiting the Trade-off in LoRA with an Efficient Shard-Sharing
    Structure", arXiv:2409.15371. Its first versions are called Bone, and have `bat`.

    **Raises:** `ValueError` if both options are given, if `n` does not divide `out`, or if `r` does
    not divide `in` and `out` with `bat`.
    """

    adapter_fields = ("D",)
    variant = "miss"
    has_alpha = False
    about = cited(
        "2409.15371",
        family="structured",
        formula="r out",
        cost="with `bat`, makes a matrix as large as the weight at every call: merge before "
        "decoding.",
    )
    _rank_limits = ("in",)

    # `(r, out)`; `(r, n)` with `mini`; `(out / r, r, r)` with `bat`.
    D: Float[Array, "*blocks r columns"]

    def start(
        self,
        W: Matrix,
        r: int,
        key: PRNGKeyArray,
        dtype: DTypeLike,
        *,
        mini: object = None,
        bat: bool = False,
    ) -> dict[str, Array]:
        outputs, inputs = W.shape
        if bat and mini is not None:
            raise ValueError("MiSS takes `mini` or `bat`, not both")
        if bat and (outputs % r or inputs % r):
            raise ValueError(
                f"with `bat`, the rank must divide the sizes of the matrix, {W.shape}, but is {r}"
            )
        columns = outputs if mini is None else whole_number(mini, "mini")
        if outputs % columns:
            raise ValueError(f"`mini` must divide the number of outputs, {outputs}, but is {mini}")
        return {"D": jnp.zeros((outputs // r, r, r) if bat else (r, columns), dtype)}

    @classmethod
    def options_of(cls, state: Mapping[str, Array]) -> dict[str, object]:
        D = state["D"]
        option = {"bat": True} if D.ndim == 3 else {"mini": D.shape[1]}
        return {**super().options_of(state), **option}

    def update(self, W: Matrix) -> Matrix:
        outputs, inputs = W.shape
        D = self.multiplied(self.D.astype(W.dtype))
        if D.ndim == 3:
            blocks, r, _ = D.shape
            V = W.reshape(blocks, r, inputs // r, r)
            return (jnp.einsum("kins,kst->kint", V, D) + D[:, :, None]).reshape(W.shape)
        return jnp.tile(D, (-(-inputs // len(D)), outputs // D.shape[1]))[:inputs].T

    def times(self, shape: tuple[int, ...], v: Float[Array, " in"]) -> Float[Array, " out"]:
        r, columns = self.D.shape
        sums = jnp.pad(v, (0, -v.size % r)).reshape(-1, r).sum(0)
        y = sums @ self.multiplied(self.D).astype(v.dtype)
        # Not `jnp.tile`, which Taylor mode cannot follow.
        return jnp.broadcast_to(y, (shape[0] // columns, columns)).reshape(-1)

    def column(self, shape: tuple[int, ...], i: Array) -> Float[Array, " out"]:
        D = in_compute_dtype(self.multiplied(self.D))
        return jnp.tile(D[i % len(D)], shape[0] // D.shape[1])

    def forward(self, x: ArrayLike) -> Array:
        if self.D.ndim == 2:
            return super().forward(x)
        return self.plus(x, Update(Partial(MiSS.own_update, self)))

    def partition_specs(self) -> dict[str, PartitionSpec]:
        # `D` is small, so only the axes of a stack are sharded.
        return {"D": PartitionSpec(*self.mesh_axes(self.base).stack)}
