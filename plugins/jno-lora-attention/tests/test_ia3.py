"""IA3 on keys and values: the activations are scaled, the bias included."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from attention_cases import (
    multihead,
    perturbed,
    projections_of,
    random_layer,
    scaled_projections,
)
from zoo_cases import assert_close

from jno_lora_attention import IA3Attention


def test_starts_as_the_base_and_equals_its_merge(attention, inputs, getkey):
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


def test_scales_activations_with_their_bias():
    seen = []

    def look(*heads):
        seen.append(heads)
        return heads

    random = np.random.default_rng(7)
    x = [random.normal(size=shape) for shape in ((4, 5), (6, 7), (6, 3))]
    with jax.enable_x64(True):
        sizes = {"query_size": 5, "key_size": 7, "value_size": 3, "qk_size": 2, "vo_size": 3}
        layer = random_layer(num_heads=2, **sizes, use_key_bias=True, use_value_bias=True)
        wrapper = perturbed(IA3Attention(layer, 1, 1.0, key=jax.random.key(0)))
        wrapper(*map(jnp.asarray, x), process_heads=look)
    projections = projections_of(layer)
    scales = {"q": np.ones(4), "k": wrapper.key_scale, "v": wrapper.value_scale}
    for letter, tokens, heads in zip("qkv", x, seen[0], strict=True):
        expected = projections[letter](tokens) * np.asarray(scales[letter])
        assert_close(heads, expected.reshape(heads.shape), 1e-14)


def test_leaves_the_other_projections_as_they_are(small, getkey):
    merged = perturbed(IA3Attention(small, 1, 1.0, key=getkey())).merge()
    assert eqx.tree_equal(merged.query_proj, small.query_proj)
    assert eqx.tree_equal(merged.output_proj, small.output_proj)


class Summing(eqx.nn.MultiheadAttention):
    def __call__(self, x):
        return super().__call__(x, x, x) + jnp.sum(self.value_proj.weight)


def test_a_subclass_is_called_with_the_merged_weights():
    x = np.random.default_rng(7).normal(size=(5, 8))
    with jax.enable_x64(True):
        layer = random_layer(Summing, num_heads=2, query_size=8, use_key_bias=True)
        wrapper = perturbed(IA3Attention(layer, 1, 1.0, key=jax.random.key(0)))
        actual = wrapper(jnp.asarray(x))
    scales = {"k": wrapper.key_scale, "v": wrapper.value_scale}
    scaled = scaled_projections(projections_of(layer), scales)
    assert_close(actual, multihead(scaled, 2, (x, x, x)) + np.sum(scaled["v"].weight), 1e-12)
