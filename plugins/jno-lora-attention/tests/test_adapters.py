"""Calls, starts, options and reading of the three adapters. `test_oracles.py` has the laws."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import (
    LETTERS,
    multihead,
    projections_of,
    random_layer,
    scaled_projections,
    with_low_rank,
)
from zoo_cases import assert_close, perturb, shapes_in_jaxpr

from jno.lora import (
    LoRALinear,
    Net,
    WrapperError,
    apply_lora,
    extract_adapters,
    lora_report,
    merge_lora,
    unwrap_lora,
)
from jno_lora_attention import IA3Attention, LoRAAttention, PrefixAttention
from jno_lora_combine import extract_lora, sum_adapters

ADAPTERS = [LoRAAttention, IA3Attention, PrefixAttention]
KEY = jax.random.key(0)


@pytest.fixture
def small(getkey):
    """A self-attention layer, for what does not depend on the form."""
    return eqx.nn.MultiheadAttention(2, 8, use_key_bias=True, key=getkey())


@pytest.mark.parametrize("cls", ADAPTERS, ids=lambda cls: cls.__name__)
def test_every_argument_reaches_the_base(cls, getkey):
    """`test_oracles.py` has masks and changed heads."""
    layer = eqx.nn.MultiheadAttention(2, 8, dropout_p=0.5, key=getkey())
    wrapper = apply_lora(layer, 2, 1.0, key=getkey(), wrapper=cls)
    x, key = [jax.random.normal(getkey(), (n, 8)) for n in (4, 5, 5)], getkey()
    dropped, silent = (layer(*x, **given) for given in ({"key": key}, {"inference": True}))
    assert not np.allclose(dropped, silent, atol=1e-2)
    np.testing.assert_allclose(wrapper(*x, key=key), dropped, rtol=1e-5, atol=1e-6)
    by_keyword = wrapper(query=x[0], key_=x[1], value=x[2], inference=True)
    for y in (by_keyword, eqx.nn.inference_mode(wrapper)(*x)):
        np.testing.assert_allclose(y, silent, rtol=1e-5, atol=1e-6)
    with pytest.raises(RuntimeError, match="key"):
        wrapper(*x)


class Reading(eqx.nn.MultiheadAttention):
    """A subclass that reads a weight itself, and has another signature."""

    def __call__(self, x):
        return 2 * super().__call__(x, x, x) + x @ self.value_proj.weight.T


@pytest.mark.parametrize("cls", [LoRAAttention, IA3Attention])
def test_a_subclass_is_called_with_the_merged_weights(cls):
    x = np.random.default_rng(7).normal(size=(5, 8))
    with jax.enable_x64(True):
        layer = random_layer(Reading, num_heads=2, query_size=8, use_key_bias=True)
        assert cls.applies_to(layer) and not PrefixAttention.applies_to(layer)
        wrapper = perturb(apply_lora(layer, 2, 1.0, key=KEY, wrapper=cls))
        actual = wrapper(jnp.asarray(x))
    merged = projections_of(layer)
    if cls is LoRAAttention:
        merged = with_low_rank(merged, wrapper.lora_A, wrapper.lora_B, 0.5)
    else:
        merged = scaled_projections(merged, wrapper.scale)
    expected = 2 * multihead(merged, 2, (x, x, x)) + x @ merged["v"].weight.T
    assert_close(actual, expected, 1e-12)


def test_queries_and_values_by_default_each_with_a_key_of_its_own(small):
    wrapper = LoRAAttention(small, 3, 6.0, key=KEY)
    assert wrapper.projections == "qv"
    assert {p: a.shape for p, a in wrapper.lora_A.items()} == {"q": (3, 8), "v": (3, 8)}
    more = LoRAAttention(small, 3, 1.0, key=KEY, projections="ovkq")
    assert more.projections == "qkvo"
    np.testing.assert_array_equal(wrapper.lora_A["v"], more.lora_A["v"])
    assert not np.allclose(more.lora_A["q"], more.lora_A["k"])
    for projections in ("", "qq", "query"):
        options = {"projections": projections}
        with pytest.raises(WrapperError, match=r'at \'0/a\'.*distinct letters out of "qkvo"'):
            apply_lora([{"a": small}], 2, key=KEY, wrapper=LoRAAttention, options=options)
    # Each projection has the rank that it allows.
    layer = eqx.nn.MultiheadAttention(2, 8, qk_size=1, output_size=3, key=KEY)
    assert LoRAAttention(layer, 9, 1.0, key=KEY, projections="q").rank == 2
    net = Net(layer).lora(9, wrapper=LoRAAttention)
    assert {p: len(A) for p, A in net.module.lora_A.items()} == {"q": 2, "v": 8}
    (row,) = net.summary()
    assert (row.rank, row.asked_rank) == (8, 9)
    # An adapter reads like its merged layer.
    moved = perturb(wrapper)
    assert (moved.num_heads, moved.qk_size, moved.dropout.p) == (2, 4, 0.0)
    np.testing.assert_array_equal(moved.query_proj.weight, moved.merge().query_proj.weight)
    assert not np.allclose(moved.query_proj.weight, small.query_proj.weight, atol=1e-2)


def test_a_state_remembers_the_projections_and_must_fit(small):
    wrapper = perturb(LoRAAttention(small, 2, 3.0, key=KEY, projections="kvo"))
    state = wrapper.state()
    assert set(state) == {f"lora_{ab}/{p}" for ab in "AB" for p in "kvo"}
    restored = LoRAAttention.from_state(small, state, wrapper.rank, wrapper.alpha)
    assert eqx.tree_equal(restored, wrapper)
    lacking = {k: v for k, v in state.items() if k != "lora_B/v"}
    transposed = {**state, "lora_A/k": state["lora_A/k"].T}
    for bad in ({}, {**state, "lora_A/z": state["lora_A/k"]}, lacking, transposed):
        with pytest.raises(WrapperError, match="saved state"):
            LoRAAttention.from_state(small, bad, 2, 1.0)


def test_no_weight_is_merged_in_the_forward_pass(getkey):
    # 24 channels, 4 queries, 5 tokens: only a weight has the shape (24, 24).
    layer = eqx.nn.MultiheadAttention(3, 24, key=KEY)
    wrapper = LoRAAttention(layer, 2, 1.0, key=KEY, projections="qkvo")
    x = [jax.random.normal(getkey(), (n, 24)) for n in (4, 5, 5)]
    assert (24, 24) not in shapes_in_jaxpr(lambda x: wrapper(*x), x)


def test_a_prefix_starts_in_the_range_of_the_keys_and_its_rank_is_not_clamped(small):
    wrapper = apply_lora(small, 50, key=KEY, wrapper=PrefixAttention)
    assert wrapper.prefix_keys.shape == (50, 2, 4)
    assert lora_report(wrapper).trainable == 50 * 2 * (4 + 4) + 2
    far = eqx.tree_at(lambda m: m.key_proj.bias, small, jnp.full(8, 100.0))
    wrapper = PrefixAttention(far, 4, key=KEY)
    assert bool(jnp.all(wrapper.prefix_keys > 90)) and bool(jnp.all(wrapper.prefix_values < 90))


class Block(eqx.Module):
    attention: eqx.nn.MultiheadAttention

    def __call__(self, x):
        return self.attention(x, x, x)


@pytest.mark.parametrize("stacked", [False, True])
def test_merging_a_prefix_is_refused_with_the_path_and_the_reason(stacked, getkey):
    def make(key):
        return Block(eqx.nn.MultiheadAttention(2, 8, key=key))

    keys = jax.random.split(getkey(), 2)
    model = {"encoder": [eqx.filter_vmap(make)(keys) if stacked else make(keys[0])]}
    adapted = apply_lora(model, 3, key=getkey(), wrapper=PrefixAttention)
    with pytest.raises(WrapperError, match=r"(?s)encoder/0/attention.*cannot be merged.*unwrap"):
        merge_lora(adapted)
    assert eqx.tree_equal(unwrap_lora(adapted), model)


def test_a_prefix_reads_like_its_base():
    class WithExtra(eqx.nn.MultiheadAttention):
        extra: jax.Array

        def __init__(self, *, key):
            super().__init__(2, 8, key=key)
            self.extra = jnp.arange(3.0)

        def attend_itself(self, x):
            return self(x, x, x)

    base = WithExtra(key=KEY)
    assert PrefixAttention.applies_to(base)
    wrapper = PrefixAttention(base, 2, key=KEY)
    assert (wrapper.num_heads, wrapper.vo_size, wrapper.dropout.p) == (2, 4, 0.0)
    assert wrapper.extra is base.extra and wrapper.query_proj is base.query_proj
    with pytest.raises(WrapperError):  # it would compute without the prefix
        wrapper.attend_itself  # noqa: B018
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        wrapper.nothing_of_the_kind  # noqa: B018


def test_adapters_of_several_projections_add_up(small, getkey):
    x = jax.random.normal(getkey(), (5, 8))
    adapters = [
        perturb(LoRAAttention(small, rank, 3.0, key=getkey(), projections=projections))
        for rank, projections in ((2, "qv"), (3, "vo"))
    ]
    sets = {str(i): extract_adapters(adapter) for i, adapter in enumerate(adapters)}
    total = sum_adapters(small, sets)
    merged = merge_lora(total)
    for field in LETTERS.values():
        W, *others = (getattr(m, field).weight for m in (small, *map(merge_lora, adapters)))
        expected = W + sum(other - W for other in others)
        np.testing.assert_allclose(getattr(merged, field).weight, expected, atol=1e-5)
    np.testing.assert_allclose(total(x, x, x), merged(x, x, x), atol=1e-5)


def test_a_bias_of_a_projection_may_train(small, getkey):
    given = {"projections": "kv", "bias": "train"}
    wrapper = perturb(LoRAAttention(small, 2, 3.0, key=getkey(), **given))
    assert wrapper.bias_update["v"] is None  # only the keys have a bias
    x = jax.random.normal(getkey(), (5, 8))
    np.testing.assert_allclose(wrapper(x, x, x), wrapper.merge()(x, x, x), atol=1e-5)
    assert not np.allclose(wrapper.merge().key_proj.bias, small.key_proj.bias)
    state = wrapper.state()
    assert LoRAAttention.options_of(state) == given
    assert eqx.tree_equal(LoRAAttention.from_state(small, state, 2, 3.0), wrapper)


def test_a_fine_tune_becomes_lora_of_the_projections(small):
    tuned = jax.tree.map(lambda x: 1.1 * x if eqx.is_array(x) else x, small)
    adapted, _ = extract_lora(small, tuned, rank=8, leftovers="drop")
    assert {type(getattr(adapted, field)) for field in LETTERS.values()} == {LoRALinear}
