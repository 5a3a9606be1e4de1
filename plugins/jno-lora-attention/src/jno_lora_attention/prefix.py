"""Prefix tuning: trained keys and values that every query may attend to."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from jno.lora import LoRAWrapper, WrapperError
from jno_lora_zoo import adapter_dtype_for, cited, in_compute_dtype, sharded_over

from .layer import AttentionLayer, is_plain_attention

_NO_MERGE = (
    "A prefix cannot be merged: it adds keys and values that no projection produces, so no plain "
    "MultiheadAttention computes the same. Keep the layer wrapped (save it with its adapters), or "
    "drop the prefix with `unwrap` (`jno.lora.unwrap_lora(model)`)."
)


class PrefixAttention(LoRAWrapper):
    """Trained key and value prefixes, behind a gate per head that starts at 0.

    Law: for each head, `heads' = softmax(Q K^T / sqrt(d)) V + g softmax(Q P_k^T / sqrt(d)) P_v`,
    before the output projection. `P_k` and `P_v` have `rank` tokens. `g` starts at 0, so nothing
    changes until it is trained. `rank heads (qk_size + vo_size) + heads` parameters train.
    The rank is not clamped, and `alpha` is ignored.

    Queries are taken after `process_heads`; the prefix, which has no position, does not go through
    it. Masks and dropout apply to the real tokens only.

    The prefix starts as the layer's projections of random tokens, so that it has the size of real
    keys and values. `adapter_dtype` is by default the base's, float32 at least.

    A prefix cannot be merged: `merge` raises. The projections read as the base's projections.

    Papers: Li and Liang, "Prefix-Tuning: Optimizing Continuous Prompts for Generation",
    arXiv:2101.00190, whose prefix shares one softmax with the real tokens and so changes the model
    from the start; Zhang et al., "LLaMA-Adapter", arXiv:2303.16199, for the separate softmax and
    the gate. Keys and values are trained directly, not through an MLP or the projections.
    """

    adapter_fields = ("prefix_keys", "prefix_values", "gate")
    variant = "prefix-attention"
    about = cited("2101.00190", "2303.16199", family="prefix", formula="r heads (qk + vo) + heads")
    mergeable = False

    base: eqx.nn.MultiheadAttention
    rank: int = eqx.field(static=True)
    prefix_keys: Float[Array, "rank heads qk"]
    prefix_values: Float[Array, "rank heads vo"]
    gate: Float[Array, " heads"]

    @classmethod
    def applies_to(cls, leaf: Any) -> bool:
        # The law is about heads, which a subclass may arrange differently.
        call = eqx.nn.MultiheadAttention.__call__
        return is_plain_attention(leaf) and type(leaf).__call__ is call

    @classmethod
    def stack_ndim(cls, leaf: Any) -> int:
        return AttentionLayer.stack_ndim(leaf)

    def __init__(
        self,
        base: eqx.nn.MultiheadAttention,
        rank: int,
        *,
        key: PRNGKeyArray,
        adapter_dtype: DTypeLike | None = None,
    ):
        dtype = adapter_dtype_for(base.query_proj.weight, adapter_dtype)
        key_key, value_key = jax.random.split(key)
        heads = base.num_heads
        self.base, self.rank = base, rank
        keys = _of_random_tokens(base.key_proj, rank, key_key)
        values = _of_random_tokens(base.value_proj, rank, value_key)
        self.prefix_keys = keys.reshape(rank, heads, -1).astype(dtype)
        self.prefix_values = values.reshape(rank, heads, -1).astype(dtype)
        self.gate = jnp.zeros(heads, dtype)

    def partition_specs(self) -> dict[str, PartitionSpec]:
        """The heads are sharded as the outputs of their projections, unless that cuts a head."""
        *stack, keys = _axes_of_heads(self.base.key_proj, self.base.num_heads)
        *_, values = _axes_of_heads(self.base.value_proj, self.base.num_heads)
        return {
            "prefix_keys": PartitionSpec(*stack, None, keys, None),
            "prefix_values": PartitionSpec(*stack, None, values, None),
            "gate": PartitionSpec(*stack, values),
        }

    def __call__(self, *args: Any, process_heads: Any = None, **kwargs: Any) -> Array:
        queries: list[Array] = []

        def keep_queries(query: Array, key: Array, value: Array) -> tuple[Array, Array, Array]:
            if process_heads is not None:
                query, key, value = process_heads(query, key, value)
            queries.append(query)
            return query, key, value

        # The base computes its heads, to which the prefix is added before the output projection.
        heads_only = eqx.tree_at(lambda m: m.output_proj, self.base, eqx.nn.Identity())
        heads = heads_only(*args, process_heads=keep_queries, **kwargs)
        prefix = self._attend(queries[0]).reshape(heads.shape).astype(heads.dtype)
        return jax.vmap(self.base.output_proj)(heads + prefix)

    def merge(self) -> eqx.Module:
        raise WrapperError(_NO_MERGE)

    def _attend(self, queries: Float[Array, "q_seq heads qk"]) -> Float[Array, "q_seq heads vo"]:
        """The queries' attention to the prefix, times the gate."""
        dtype = queries.dtype
        arrays = (self.prefix_keys, self.prefix_values, self.gate)
        keys, values, gate = (array.astype(dtype) for array in arrays)
        queries = queries / math.sqrt(queries.shape[-1])
        logits = jnp.einsum("shd,phd->hsp", queries, keys)
        weights = jax.nn.softmax(in_compute_dtype(logits)).astype(dtype)
        return gate[None, :, None] * jnp.einsum("hsp,phd->shd", weights, values)


def _axes_of_heads(linear: Any, heads: int) -> tuple[Any, ...]:
    """The mesh axes that cut the stack of a projection, and the axes that can cut its heads."""
    weight = linear.weight
    *stack, outputs, _ = sharded_over(weight)
    if outputs is None:
        return (*stack, None)
    rows_per_device = weight.sharding.shard_shape(weight.shape)[-2]
    has_whole_heads = rows_per_device % (weight.shape[-2] // heads) == 0
    return (*stack, outputs if has_whole_heads else None)


def _of_random_tokens(
    linear: eqx.nn.Linear, count: int, key: PRNGKeyArray
) -> Float[Array, "tokens out"]:
    """The output of `linear` for standard normal tokens, in float32 at least."""
    W = in_compute_dtype(linear.weight)
    projected = jax.random.normal(key, (count, W.shape[1]), W.dtype) @ W.T
    if linear.bias is None:
        return projected
    return projected + jnp.asarray(linear.bias, W.dtype)[None, :]
