"""IA3 on keys and values: the activations are scaled, the bias included."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jno_lora_attention import IA3Attention


def test_starts_as_the_base_and_equals_its_merge(attention, inputs, getkey, perturbed):
    wrapper = IA3Attention(attention, 1, 1.0, key=getkey())
    assert wrapper.key_scale.shape == (attention.num_heads * attention.qk_size,)
    assert wrapper.value_scale.shape == (attention.num_heads * attention.vo_size,)
    x = inputs(attention)
    np.testing.assert_allclose(wrapper(*x), attention(*x), rtol=1e-6)
    wrapper = perturbed(wrapper)
    merged = wrapper.merge()
    assert jax.tree.structure(merged) == jax.tree.structure(attention)
    assert not np.allclose(wrapper(*x), attention(*x), atol=1e-3)
    np.testing.assert_allclose(wrapper(*x), merged(*x), rtol=1e-4, atol=1e-5)


def test_scales_activations_with_their_bias(getkey, inputs, perturbed):
    layer = eqx.nn.MultiheadAttention(2, 8, use_key_bias=True, use_value_bias=True, key=getkey())
    wrapper = perturbed(IA3Attention(layer, 1, 1.0, key=getkey()))
    query, key, value = inputs(layer)
    seen = {}

    def look(which):
        def process(q, k, v):
            seen[which] = (q, k, v)
            return q, k, v

        return process

    wrapper(query, key, value, process_heads=look("adapted"))
    layer(query, key, value, process_heads=look("base"))
    (q, k, v), (q0, k0, v0) = seen["adapted"], seen["base"]
    np.testing.assert_array_equal(q, q0)
    np.testing.assert_allclose(k, k0 * wrapper.key_scale.reshape(1, 2, 4), rtol=1e-6)
    np.testing.assert_allclose(v, v0 * wrapper.value_scale.reshape(1, 2, 4), rtol=1e-6)
    merged = wrapper.merge()
    np.testing.assert_allclose(
        merged.key_proj.bias, layer.key_proj.bias * wrapper.key_scale, rtol=1e-6
    )
    assert eqx.tree_equal(merged.query_proj, layer.query_proj)
    assert eqx.tree_equal(merged.output_proj, layer.output_proj)


class Summing(eqx.nn.MultiheadAttention):
    def __call__(self, x):
        return super().__call__(x, x, x) + jnp.sum(self.value_proj.weight)


def test_a_subclass_is_called_with_the_merged_weights(getkey, perturbed):
    wrapper = perturbed(IA3Attention(Summing(2, 8, key=getkey()), 1, 1.0, key=getkey()))
    x = jax.random.normal(getkey(), (5, 8))
    np.testing.assert_allclose(wrapper(x), wrapper.merge()(x), rtol=1e-5)
