"""LoRA on chosen projections of an attention layer."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import (
    LETTERS,
    multihead,
    perturbed,
    projections_of,
    random_layer,
    with_low_rank,
)
from zoo_cases import assert_close

from jno.lora import Net, WrapperError, apply_lora
from jno_lora_attention import LoRAAttention

SUBSETS = ["".join(c) for n in (1, 2, 3, 4) for c in itertools.combinations("qkvo", n)]


def test_queries_and_values_by_default(small, getkey):
    wrapper = LoRAAttention(small, 3, 6.0, key=getkey())
    assert wrapper.projections == "qv" and wrapper.scaling == 2.0
    assert {p: a.shape for p, a in wrapper.lora_A.items()} == {"q": (3, 8), "v": (3, 8)}
    assert {p: b.shape for p, b in wrapper.lora_B.items()} == {"q": (8, 3), "v": (8, 3)}


@pytest.mark.parametrize("projections", SUBSETS)
def test_the_law_on_every_subset(projections):
    with jax.enable_x64(True):
        layer = random_layer(num_heads=2, query_size=8, key_size=6, output_size=5)
        wrapper = LoRAAttention(layer, 2, 3.0, key=jax.random.key(0), projections=projections)
        wrapper = perturbed(wrapper)
        merged = wrapper.merge()
    for p, base in projections_of(layer).items():
        weight = base.weight
        if p in projections:
            weight = weight + 1.5 * np.asarray(wrapper.lora_B[p]) @ np.asarray(wrapper.lora_A[p])
        assert_close(getattr(merged, LETTERS[p]).weight, weight, 1e-12)


@pytest.mark.parametrize("projections", ["qv", "k", "qkvo"])
def test_starts_as_the_base_and_equals_its_merge(projections, attention, inputs, getkey):
    wrapper = LoRAAttention(attention, 2, 4.0, key=getkey(), projections=projections)
    x = inputs(attention)
    np.testing.assert_allclose(wrapper(*x), attention(*x), rtol=1e-5, atol=1e-6)
    wrapper = perturbed(wrapper)
    merged = wrapper.merge()
    assert type(merged) is eqx.nn.MultiheadAttention
    assert jax.tree.structure(merged) == jax.tree.structure(attention)
    assert not np.allclose(wrapper(*x), attention(*x), atol=1e-2)
    np.testing.assert_allclose(wrapper(*x), merged(*x), rtol=1e-4, atol=1e-5)


def test_one_projection_more_changes_no_others_start(small, getkey):
    key = getkey()
    few = LoRAAttention(small, 2, 1.0, key=key, projections="v")
    all_ = LoRAAttention(small, 2, 1.0, key=key, projections="ovkq")
    np.testing.assert_array_equal(few.lora_A["v"], all_.lora_A["v"])
    assert all_.projections == "qkvo"
    assert not np.allclose(all_.lora_A["q"], all_.lora_A["k"])


def test_the_rank_is_what_the_smallest_projection_allows(getkey):
    layer = eqx.nn.MultiheadAttention(2, 8, qk_size=1, output_size=3, key=getkey())

    def rank_of(projections):
        return LoRAAttention(layer, 9, 1.0, key=getkey(), projections=projections).rank

    assert (rank_of("q"), rank_of("v"), rank_of("vo"), rank_of("qvo")) == (2, 8, 3, 2)
    net = Net(layer).lora(9, wrapper=LoRAAttention)
    (row,) = net.summary()
    assert (row.rank, row.asked_rank) == (2, 9)


@pytest.mark.parametrize("projections", ["", "qq", "qx", "query"])
def test_other_letters_are_refused(projections, small, getkey):
    with pytest.raises(ValueError, match='distinct letters out of "qkvo"'):
        LoRAAttention(small, 2, 1.0, key=getkey(), projections=projections)
    with pytest.raises(WrapperError, match=r"at '0/a'.*distinct letters"):
        apply_lora(
            [{"a": small}],
            2,
            key=getkey(),
            wrapper=LoRAAttention,
            options={"projections": projections},
        )


@pytest.mark.parametrize("projections", ["qv", "o", "kvo"])
def test_the_state_remembers_the_projections(projections, small, getkey):
    wrapper = LoRAAttention(small, 2, 3.0, key=getkey(), projections=projections)
    wrapper = perturbed(wrapper)
    state = wrapper.state()
    assert set(state) == {f"lora_{ab}/{p}" for ab in "AB" for p in projections}
    restored = LoRAAttention.from_state(small, state, wrapper.rank, wrapper.alpha)
    assert eqx.tree_equal(restored, wrapper)


def test_a_state_that_does_not_fit_is_refused(small, getkey):
    state = LoRAAttention(small, 2, 1.0, key=getkey()).state()
    for bad in (
        {},
        {"other": state["lora_A/q"]},
        {**state, "lora_A/z": state["lora_A/q"]},
        {k: v for k, v in state.items() if k != "lora_B/v"},
        {**state, "lora_A/q": state["lora_A/q"].T},
    ):
        with pytest.raises(WrapperError, match="saved state"):
            LoRAAttention.from_state(small, bad, 2, 1.0)


class Doubling(eqx.nn.MultiheadAttention):
    """A subclass that reads a weight itself, and has another signature."""

    def __call__(self, x):
        return 2 * super().__call__(x, x, x) + x @ self.value_proj.weight.T


def test_a_subclass_is_called_with_the_merged_weights():
    x = np.random.default_rng(7).normal(size=(5, 8))
    with jax.enable_x64(True):
        layer = random_layer(Doubling, num_heads=2, query_size=8)
        assert LoRAAttention.applies_to(layer)
        wrapper = perturbed(LoRAAttention(layer, 2, 1.0, key=jax.random.key(0)))
        actual = wrapper(jnp.asarray(x))
    merged = with_low_rank(projections_of(layer), wrapper.lora_A, wrapper.lora_B, 0.5)
    expected = 2 * multihead(merged, 2, (x, x, x)) + x @ merged["v"].weight.T
    assert_close(actual, expected, 1e-12)


def test_no_weight_is_merged_in_the_forward_pass(getkey):
    # 24 channels, 4 queries, 5 tokens: only a weight has the shape (24, 24).
    layer = eqx.nn.MultiheadAttention(3, 24, key=getkey())
    wrapper = LoRAAttention(layer, 2, 1.0, key=getkey(), projections="qkvo")
    x = tuple(jax.random.normal(getkey(), (n, 24)) for n in (4, 5, 5))
    jaxpr = jax.make_jaxpr(lambda x: wrapper(*x))(x)
    assert (24, 24) not in {v.aval.shape for e in jaxpr.eqns for v in e.outvars}


def test_reads_like_the_layer(small, getkey):
    wrapper = perturbed(LoRAAttention(small, 2, 1.0, key=getkey()))
    assert (wrapper.num_heads, wrapper.qk_size, wrapper.dropout.p) == (2, 4, 0.0)
    merged = wrapper.merge()
    np.testing.assert_array_equal(wrapper.query_proj.weight, merged.query_proj.weight)
    np.testing.assert_array_equal(wrapper.key_proj.weight, small.key_proj.weight)
    assert not np.allclose(wrapper.query_proj.weight, small.query_proj.weight, atol=1e-2)
    assert jnp.issubdtype(wrapper.lora_A["q"].dtype, jnp.floating)
