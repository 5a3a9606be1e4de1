"""LoRA on the projections of an attention layer."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from jno_lora_zoo import LinearLayer, adapter_dtype_for, cited, dtype_of, mixed, sharded_over

from ._unit import FIELDS, AttentionUnit


class LoRAAttention(AttentionUnit):
    """LoRA on some of the four projections of `eqx.nn.MultiheadAttention`.

    Law: `W_p' = W_p + (alpha / r) B_p A_p` for each chosen projection `p`, with
    `A_p ~ N(0, 1/in_p)` and `B_p = 0`. `r` is the rank that the smallest chosen projection allows,
    `r sum_p (in_p + out_p)` parameters train.

    **Arguments:**

    - `key`: each projection gets its own key, so adding one does not change how the rest start.
    - `projections`: letters out of `"qkvo"` (query, key, value, output); by default `"qv"`, as in
        the paper: `net.lora(wrapper="lora-attention", options={"projections": "qkvo"})`.
    - `adapter_dtype`: the dtype of `A` and `B`; by default the base's, float32 at least.

    **Raises:** `ValueError` unless `projections` consists of distinct letters out of `"qkvo"`.

    Paper: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685. No
    dropout on the input of the update.
    """

    adapter_fields = ("lora_A", "lora_B")
    variant = "lora-attention"
    about = cited("2106.09685", family="low rank", formula="r (in + out) per projection")

    alpha: float = eqx.field(static=True)
    # By the letter of the projection: (r, in) and (out, r).
    lora_A: dict[str, Float[Array, "r _"]]
    lora_B: dict[str, Float[Array, "_ r"]]

    def __init__(
        self,
        base: eqx.nn.MultiheadAttention,
        rank: int,
        alpha: float,
        *,
        key: PRNGKeyArray,
        projections: str = "qv",
        adapter_dtype: Any = None,
    ):
        letters = set(projections) & set(FIELDS)
        if not projections or len(letters) < len(projections):
            raise ValueError(
                '`projections` must be distinct letters out of "qkvo" (query, key, value, output), '
                f'such as "qv", but is {projections!r}'
            )
        shapes = {p: getattr(base, FIELDS[p]).weight.shape for p in FIELDS if p in projections}
        dtype = adapter_dtype_for(base.query_proj.weight, adapter_dtype)
        keys = dict(zip(FIELDS, jax.random.split(key, len(FIELDS)), strict=True))
        self.base = base
        self.rank = r = min(rank, *(size for shape in shapes.values() for size in shape))
        self.alpha = alpha
        self.lora_A = {
            p: jax.random.normal(keys[p], (r, inputs), dtype) / math.sqrt(inputs)
            for p, (_, inputs) in shapes.items()
        }
        self.lora_B = {p: jnp.zeros((out, r), dtype) for p, (out, _) in shapes.items()}

    def partition_specs(self) -> dict[str, PartitionSpec]:
        specs: dict[str, PartitionSpec] = {}
        for p, linear in zip(self.projections, self._chosen(self.base), strict=True):
            *stack, outputs, inputs = sharded_over(linear.weight)
            specs[f"lora_A/{p}"] = PartitionSpec(*stack, None, inputs)
            specs[f"lora_B/{p}"] = PartitionSpec(*stack, outputs, None)
        return specs

    @property
    def projections(self) -> str:
        """The letters of the adapted projections."""
        return "".join(p for p in FIELDS if p in self.lora_A)

    @property
    def scaling(self) -> float:
        """The factor of the updates."""
        return self.alpha / self.rank

    def __call__(self, *args: Any, **kwargs: Any) -> Array:
        if type(self.base) is not eqx.nn.MultiheadAttention:
            # A subclass may read the weights in another way.
            return self.merge()(*args, **kwargs)
        return self._with_projections(_LowRankProjection)(*args, **kwargs)

    def merge(self) -> eqx.nn.MultiheadAttention:
        return self._with_projections(_with_update)

    @classmethod
    def options_of(cls, state: Mapping[str, Array]) -> dict[str, Any]:
        letters = "".join(p for p in FIELDS if f"lora_A/{p}" in state or f"lora_B/{p}" in state)
        return {"projections": letters} if letters else {}

    def _with_projections(self, adapted: Callable[..., Any]) -> eqx.nn.MultiheadAttention:
        projections = [
            adapted(linear, self.lora_A[p], self.lora_B[p], self.scaling)
            for p, linear in zip(self.projections, self._chosen(self.base), strict=True)
        ]
        return eqx.tree_at(self._chosen, self.base, projections)

    def _chosen(self, attention: Any) -> list[Any]:
        return [getattr(attention, FIELDS[p]) for p in self.projections]


class _LowRankProjection(eqx.Module):
    """`linear(x) + s B A x`: stands in for a projection while the attention layer runs."""

    linear: eqx.nn.Linear
    A: Float[Array, "r in"]
    B: Float[Array, "out r"]
    scaling: float

    def __call__(self, x: Shaped[Array, " in"], *, key: Any = None) -> Float[Array, " out"]:
        # As in the product with the weight. Casting the adapter to integers would truncate it.
        x = x.astype(jnp.result_type(x.dtype, dtype_of(self.linear.weight)))
        # `x @ A.T`, not `A @ x`: under the layer's `vmap` this is one plain matrix product.
        h = x @ self.A.T.astype(x.dtype)
        return self.linear(x) + self.scaling * mixed(h, self.B)


def _with_update(linear: Any, A: Array, B: Array, scaling: float) -> Any:
    W = LinearLayer.matrix(linear)
    return LinearLayer.with_matrix(linear, W + scaling * (B.astype(W.dtype) @ A.astype(W.dtype)))
