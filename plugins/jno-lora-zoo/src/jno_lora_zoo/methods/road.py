"""RoAd: rotate and scale the outputs in pairs."""

from collections.abc import Mapping

import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from .._arrays import Matrix, in_compute_dtype
from .._bibtex import cited
from .._layer_kind import Bias
from .._method import Method
from .._options import whole_number

Angles = Float[Array, "per_pair groups half"]


class RoAd(Method):
    """RoAd: rotate and scale each pair of outputs, including the bias.

    Law: `W' = blockdiag(R_1, R_2, ...) W` with `R = [[c_1, -s_1], [s_2, c_2]]`, and the same for
    the bias; `c = scale cos(theta)`, `s = scale sin(theta)`. `theta` starts at 0 and `scale` at 1.
    `2 ceil(out / 2)` parameters train, times `per_pair`. `rank` and `alpha` are ignored.

    An output is paired with the output half a group away. If the number of outputs is odd, the last
    is scaled alone, by `scale cos(theta)`. Its `theta` has zero gradient at the start, so only its
    `scale` trains.

    - `per_pair`: the number of angles and scales of a pair: 1 for all four entries, 2 for its rows,
        4 for its entries (the paper's variants).
    - `group_size`: the size of a group, which must be even and divide the outputs (PEFT's default
        is 64). By default, all outputs are one group.

    Paper: Liao and Monz, "3-in-1: 2D Rotary Adaptation for Efficient Finetuning, Efficient Batching
    and Composability", arXiv:2409.00119. The paper pairs neighbours.

    In a convolution with groups, pairs across two groups use the law's kernel. In a cell, the bias
    of the gates is rotated, and the second bias of a GRU is not.

    **Raises:** `ValueError` for any other `per_pair` or `group_size`.
    """

    adapter_fields = ("theta", "scale")
    variant = "road"
    has_alpha = False
    about = cited("2409.00119", family="rotation", formula="2 ceil(out / 2)")
    _rank_limits = ()

    theta: Angles
    scale: Angles

    def start(
        self,
        W: Matrix,
        r: int,
        key: PRNGKeyArray,
        dtype: DTypeLike,
        *,
        per_pair: object = 1,
        group_size: object = None,
    ) -> dict[str, Array]:
        outputs = W.shape[0]
        size = outputs + outputs % 2
        if whole_number(per_pair, "per_pair") not in (1, 2, 4):
            raise ValueError(f"`per_pair` must be 1, 2 or 4, but is {per_pair!r}")
        if group_size is not None:
            size = whole_number(group_size, "group_size")
            if size % 2 or outputs % size:
                raise ValueError(
                    f"`group_size` must be even and divide the {outputs} outputs, but is {size}"
                )
        shape = (per_pair, -(-outputs // size), size // 2)
        return {"theta": jnp.zeros(shape, dtype), "scale": jnp.ones(shape, dtype)}

    @classmethod
    def options_of(cls, state: Mapping[str, Array]) -> dict[str, object]:
        per_pair, groups, half = state["theta"].shape
        # A single group may have an odd number of outputs, which `group_size` does not allow.
        return {"per_pair": per_pair, "group_size": None if groups == 1 else 2 * half}

    def law(self, W: Matrix) -> Matrix:
        return turned(W, (self.theta, self.scale))

    def bias_law(self, b: Bias) -> Bias:
        return turned(b, (self.theta, self.scale))

    def has_fast_path(self) -> bool:
        size = self.group_size(self.base)
        return size is None or size % (2 * self.theta.shape[2]) == 0

    def forward(self, x: ArrayLike) -> Array:
        return self.on_output(x, turned, (self.theta, self.scale))


def turned(y: Float[Array, "n *rest"], p: tuple[Angles, Angles]) -> Float[Array, "n *rest"]:
    """`R y` along the first axis, computed in float32 at least as in `scaled`."""
    # For the four entries of each block: c_1, c_2, s_1, s_2.
    theta, scale = (jnp.tile(angles, (4 // len(angles), 1, 1)) for angles in p)
    c, s = scale[:2] * jnp.cos(theta[:2]), scale[2:] * jnp.sin(theta[2:])
    _, groups, half = c.shape
    wide, sizes = in_compute_dtype(y), y.shape[1:]
    padded = jnp.pad(wide, ((0, 2 * groups * half - len(y)), *((0, 0),) * len(sizes)))
    pairs = padded.reshape(groups, 2, half, *sizes)
    partners = jnp.concatenate([pairs[:, 1:], pairs[:, :1]], axis=1).reshape(padded.shape)
    # In vectors: as `(groups, 2, half)` a step takes up to twice as long on a CPU. It takes 1.5 of
    # LoRA's with 64 vectors of 512 outputs, and 2.2 with 1024, where the law's weight takes 1.3.
    c, s = (
        jnp.swapaxes(v, 0, 1).astype(wide.dtype).reshape(-1, *(1,) * len(sizes))
        for v in (c, s * jnp.array([-1, 1], s.dtype)[:, None, None])
    )
    return (c * padded + s * partners)[: len(y)].astype(y.dtype)
