"""Prefixes: nothing at first, then keys and values of their own, which no merge can express."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import Prefix, multihead, perturbed, projections_of

from jno.lora import WrapperError, apply_lora, lora_report, merge_lora, unwrap_lora
from jno_lora_attention import PrefixAttention


def oracle(wrapper, inputs, **kwargs):
    """The law, in NumPy."""
    fields = (wrapper.prefix_keys, wrapper.prefix_values, wrapper.gate)
    prefix = Prefix(*(np.asarray(field).astype(np.float64) for field in fields))
    heads = wrapper.base.num_heads
    return multihead(projections_of(wrapper.base), heads, inputs, prefix=prefix, **kwargs)


def test_is_nothing_at_first_and_the_law_after_training(attention, inputs, getkey):
    wrapper = PrefixAttention(attention, 3, 1.0, key=getkey())
    heads, qk, vo = attention.num_heads, attention.qk_size, attention.vo_size
    assert wrapper.prefix_keys.shape == (3, heads, qk)
    assert wrapper.prefix_values.shape == (3, heads, vo)
    x = inputs(attention)
    np.testing.assert_allclose(wrapper(*x), attention(*x), rtol=1e-5, atol=1e-6)
    wrapper = perturbed(wrapper)
    assert not np.allclose(wrapper(*x), attention(*x), atol=1e-2)
    np.testing.assert_allclose(wrapper(*x), oracle(wrapper, x), rtol=1e-4, atol=1e-5)


def test_a_mask_hides_real_tokens_only(small, inputs, getkey):
    wrapper = perturbed(PrefixAttention(small, 3, 1.0, key=getkey()))
    x = inputs(small)
    mask = jnp.array([[True, False, True, True, False]] * 4)
    expected = oracle(wrapper, x, mask=mask)
    np.testing.assert_allclose(wrapper(*x, mask), expected, rtol=1e-4, atol=1e-5)
    per_head = jnp.stack([mask, mask])
    np.testing.assert_allclose(wrapper(*x, mask=per_head), expected, rtol=1e-4, atol=1e-5)


def test_queries_are_those_of_process_heads(small, inputs, getkey):
    wrapper = perturbed(PrefixAttention(small, 3, 1.0, key=getkey()))
    x = inputs(small)

    def double(q, k, v):
        return 2 * q, k, v

    expected = oracle(wrapper, x, process=double)
    np.testing.assert_allclose(wrapper(*x, process_heads=double), expected, rtol=1e-4, atol=1e-5)


def test_the_rank_is_the_number_of_tokens_and_is_not_clamped(small, getkey):
    wrapper = apply_lora(small, 50, key=getkey(), wrapper=PrefixAttention)
    assert wrapper.prefix_keys.shape == (50, 2, 4)
    assert lora_report(wrapper).trainable == 50 * 2 * (4 + 4) + 2


def test_the_prefix_starts_in_the_range_of_the_layers_own_keys(getkey):
    layer = eqx.nn.MultiheadAttention(2, 8, use_key_bias=True, key=getkey())
    layer = eqx.tree_at(lambda m: m.key_proj.bias, layer, jnp.full(8, 100.0))
    wrapper = PrefixAttention(layer, 4, 1.0, key=getkey())
    assert bool(jnp.all(wrapper.prefix_keys > 90)) and bool(jnp.all(wrapper.prefix_values < 90))


class Block(eqx.Module):
    attention: eqx.nn.MultiheadAttention

    def __call__(self, x):
        return self.attention(x, x, x)


@pytest.mark.parametrize("stacked", [False, True])
def test_merging_is_refused_with_the_path_and_the_reason(stacked, getkey):
    def make(key):
        return Block(eqx.nn.MultiheadAttention(2, 8, key=key))

    keys = jax.random.split(getkey(), 2)
    model = {"encoder": [eqx.filter_vmap(make)(keys) if stacked else make(keys[0])]}
    adapted = apply_lora(model, 3, key=getkey(), wrapper=PrefixAttention)
    with pytest.raises(WrapperError, match="encoder/0/attention") as caught:
        merge_lora(adapted)
    for word in ("cannot be merged", "Keep the layer wrapped", "unwrap"):
        assert word in str(caught.value)
    assert eqx.tree_equal(unwrap_lora(adapted), model)


def test_projections_read_as_the_bases_own(small, getkey):
    wrapper = perturbed(PrefixAttention(small, 3, 1.0, key=getkey()))
    assert (wrapper.num_heads, wrapper.vo_size, wrapper.use_key_bias) == (2, 4, True)
    assert wrapper.dropout.p == 0.0
    for name in ("query_proj", "key_proj", "value_proj", "output_proj"):
        assert eqx.tree_equal(getattr(wrapper, name), getattr(small, name))
    with pytest.raises(AttributeError, match="nor the 'MultiheadAttention'"):
        wrapper.no_such_thing  # noqa: B018


def test_state_round_trip(small, getkey):
    wrapper = perturbed(PrefixAttention(small, 3, 1.0, key=getkey()))
    restored = PrefixAttention.from_state(small, wrapper.state(), 3, 1.0)
    assert eqx.tree_equal(restored, wrapper)


class SameCall(eqx.nn.MultiheadAttention):
    """A subclass that adds nothing to the call."""


class OwnCall(eqx.nn.MultiheadAttention):
    def __call__(self, x):
        return super().__call__(x, x, x)


def test_a_subclass_with_a_call_of_its_own_is_not_claimed(getkey):
    assert PrefixAttention.applies_to(SameCall(2, 8, key=getkey()))
    assert not PrefixAttention.applies_to(OwnCall(2, 8, key=getkey()))


def test_a_subclass_with_arrays_of_its_own_reads_like_itself():
    class WithExtra(eqx.nn.MultiheadAttention):
        extra: jax.Array

        def __init__(self, *, key):
            super().__init__(2, 8, key=key)
            self.extra = jnp.arange(3.0)

        def attend_itself(self, x):
            return self(x, x, x)

    base = WithExtra(key=jax.random.key(0))
    wrapper = PrefixAttention(base, 2, 1.0, key=jax.random.key(1))
    assert wrapper.extra is base.extra and wrapper.query_proj is base.query_proj
    with pytest.raises(WrapperError):  # it would compute without the prefix
        wrapper.attend_itself  # noqa: B018
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        wrapper.nothing_of_the_kind  # noqa: B018
