"""IA3 on the keys and values of an attention layer."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from jno_lora_zoo import adapter_dtype_for, cited, scaled, sharded_over

from ._unit import AttentionUnit


class IA3Attention(AttentionUnit):
    """IA³: one trained factor for each channel of the keys and of the values.

    Law: `K' = l_k * (W_k x + b_k)` and `V' = l_v * (W_v x + b_v)`, where `l_k` and `l_v` start as
    1. As in the paper, the *activations* are scaled, and therefore the bias too (the zoo's
    `IA3Linear` scales the weight alone); `process_heads` gets the scaled heads. `merge` scales the
    rows of the weights, and the biases. `heads (qk_size + vo_size)` parameters train. `rank`,
    `alpha` and `key` are ignored. `adapter_dtype` is by default the base's, float32 at least.

    Paper: Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than
    In-Context Learning", arXiv:2205.05638. The paper's third vector scales the inner activations of
    the feed-forward block: adapt that layer with `IA3Linear`.
    """

    adapter_fields = ("key_scale", "value_scale")
    variant = "ia3-attention"
    about = cited("2205.05638", family="scale", formula="heads (qk + vo)")

    key_scale: Float[Array, " heads*qk"]
    value_scale: Float[Array, " heads*vo"]

    def __init__(
        self,
        base: eqx.nn.MultiheadAttention,
        rank: int,
        *,
        key: PRNGKeyArray,
        adapter_dtype: Any = None,
    ):
        del key
        dtype = adapter_dtype_for(base.query_proj.weight, adapter_dtype)
        self.base, self.rank = base, rank
        self.key_scale = jnp.ones(base.key_proj.weight.shape[0], dtype)
        self.value_scale = jnp.ones(base.value_proj.weight.shape[0], dtype)

    def partition_specs(self) -> dict[str, PartitionSpec]:
        *keys, _ = sharded_over(self.base.key_proj.weight)
        *values, _ = sharded_over(self.base.value_proj.weight)
        return {"key_scale": PartitionSpec(*keys), "value_scale": PartitionSpec(*values)}

    def __call__(self, *args: Any, **kwargs: Any) -> Array:
        if type(self.base) is not eqx.nn.MultiheadAttention:
            # A subclass may read the weights in another way.
            return self.merge()(*args, **kwargs)
        # Scaling the weights instead would compute the whole gradient of a weight in training.
        key = _ScaledProjection(self.base.key_proj, self.key_scale)
        value = _ScaledProjection(self.base.value_proj, self.value_scale)
        return eqx.tree_at(_key_and_value, self.base, (key, value))(*args, **kwargs)

    def merge(self) -> eqx.nn.MultiheadAttention:
        key = _scaled(self.base.key_proj, self.key_scale)
        value = _scaled(self.base.value_proj, self.value_scale)
        return eqx.tree_at(_key_and_value, self.base, (key, value))


class _ScaledProjection(eqx.Module):
    """`scale * linear(x)`, bias included: stands in for a projection while the layer runs."""

    linear: eqx.nn.Linear
    scale: Float[Array, " out"]

    def __call__(self, x: Shaped[Array, " in"], *, key: Any = None) -> Float[Array, " out"]:
        return scaled(self.linear(x), self.scale)


def _key_and_value(attention: Any) -> tuple[Any, Any]:
    return attention.key_proj, attention.value_proj


def _scaled(linear: Any, scale: Array) -> Any:
    weight = scaled(jnp.asarray(linear.weight), scale)
    linear = eqx.tree_at(lambda m: m.weight, linear, weight)
    if linear.bias is None:
        return linear
    return eqx.tree_at(lambda m: m.bias, linear, scaled(jnp.asarray(linear.bias), scale))
