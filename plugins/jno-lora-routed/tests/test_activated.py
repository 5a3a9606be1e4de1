"""Activated LoRA: which tokens are active, and what the tokens before do not see."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jno.lora import SelectionError, WrapperError, apply_lora, extract_adapters, merge_lora
from jno_lora_routed import ActivatedLoRA, with_invocation
from jno_lora_routed._activated import active_from

KEY = jax.random.key(0)
TOKENS = jnp.asarray([1, 3, 4, 2, 3, 4, 5])
FIRST = 4  # the last (3, 4) begins here


class Attention(eqx.Module):
    """Two blocks of one stack, which `lax.scan` runs, and a `vmap` over heads beside them."""

    embed: eqx.nn.Embedding
    blocks: dict[str, eqx.nn.Linear]
    per_head: eqx.nn.Linear

    def __call__(self, tokens):
        """The output, and the keys and values of each block."""
        arrays, static = eqx.partition(self.blocks, eqx.is_array)
        causal = jnp.tril(jnp.ones((len(tokens), len(tokens)), bool))

        def block(x, layers):
            layers = eqx.combine(layers, static)
            each = functools.partial(jax.vmap, axis_name="tokens")
            q, k, v = (each(layers[name])(x) for name in ("query", "key", "value"))
            heads = each(jax.vmap(self.per_head))(q.reshape(-1, 2, 3)).reshape(q.shape)
            weights = jax.nn.softmax(jnp.where(causal, heads @ k.T, -jnp.inf))
            return x + weights @ v, (k, v)

        return jax.lax.scan(block, jax.vmap(self.embed)(tokens), arrays)


@pytest.fixture(scope="module")
def models():
    make = eqx.filter_vmap(lambda key: eqx.nn.Linear(6, 6, key=key))
    names = enumerate(("query", "key", "value"))
    blocks = {name: make(jax.random.split(jax.random.key(n), 2)) for n, name in names}
    embed, per_head = eqx.nn.Embedding(9, 6, key=KEY), eqx.nn.Linear(3, 3, key=KEY)
    plain = Attention(embed, blocks, per_head)
    options = {"invocation": (3, 4)}
    adapted = apply_lora(plain, 2, key=KEY, wrapper=ActivatedLoRA, options=options)
    nonzero = lambda path, x: x + 0.3 if "lora_B" in jax.tree_util.keystr(path) else x  # noqa: E731
    return plain, jax.tree_util.tree_map_with_path(nonzero, adapted)


@eqx.filter_jit
def run(model, tokens):
    return with_invocation(model, tokens, axis="tokens")(tokens)


def test_keys_and_values_before_the_invocation_are_the_bases_bit_for_bit(models):
    plain, adapted = models
    base = eqx.filter_jit(lambda model, tokens: model(tokens))(plain, TOKENS)
    invoked = run(adapted, TOKENS)
    for ours, theirs in zip(jax.tree.leaves(invoked), jax.tree.leaves(base), strict=True):
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        assert np.array_equal(ours[..., :FIRST, :], theirs[..., :FIRST, :])
        assert (np.abs(ours - theirs)[..., FIRST:, :].max(-1) > 1e-3).all()
    # A batch, of which the second example has no invocation.
    batch = jnp.stack([TOKENS, TOKENS[::-1]])
    rows = jax.vmap(lambda tokens: run(adapted, tokens))(batch)
    plain_rows = jax.vmap(plain)(batch)
    leaves = map(jax.tree.leaves, (rows, invoked, plain_rows))
    for ours, single, theirs in zip(*leaves, strict=True):
        np.testing.assert_allclose(ours[0], single, atol=1e-5)
        np.testing.assert_allclose(ours[1], theirs[1], atol=1e-5)


def test_only_the_factors_train_and_files_hold_no_tokens_of_a_call(models):
    _, adapted = models

    @eqx.filter_grad
    def gradients(model):
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(run(model, TOKENS)))

    layer = gradients(adapted).blocks["key"]
    assert jnp.all(layer.lora_A != 0)
    assert jnp.all(layer.lora_B != 0)
    assert not jnp.any(layer.settings.active)
    invoked = with_invocation(adapted, TOKENS, axis="tokens")
    assert eqx.tree_equal(extract_adapters(invoked), extract_adapters(adapted))
    with pytest.raises(WrapperError, match="cannot be merged"):
        merge_lora(adapted)


def test_the_last_occurrence_counts():
    def active(tokens, invocation):
        return active_from(jnp.asarray(tokens), jnp.asarray(invocation)).astype(int).tolist()

    assert active([7, 3, 7, 3, 1], [7, 3]) == [0, 0, 1, 1, 1]
    assert active([7, 7, 7], [7, 7]) == [0, 1, 1]
    assert active([1, 3, 7], [7, 3]) == [0, 0, 0]
    assert active([7], [7, 3]) == [0]
    assert active([7], [7]) == [1]
    # 257 is 1 in the dtype of the tokens.
    assert active(np.asarray([1, 2], np.uint8), [257]) == [0, 0]


def test_a_call_with_cached_tokens_computes_the_last_of_them(models):
    _, adapted = models
    layer, x = with_invocation(adapted, TOKENS, axis="t", last=1).per_head, jnp.ones(3)
    for y in (layer(x), jax.vmap(layer, axis_name="t")(x[None])[0]):  # one token needs no axis
        assert jnp.array_equal(y, jax.vmap(layer)(x[None])[0])
        assert not jnp.allclose(y, layer.base(x))
    layer = with_invocation(adapted, TOKENS, axis="t", last=4).per_head
    moved = jax.vmap(lambda x: layer(x) - layer.base(x), axis_name="t")(jnp.ones((4, 3)))
    assert not moved[:1].any()
    assert (jnp.abs(moved[1:]) > 1e-3).all()


def test_tokens_may_be_a_list(models):
    layer = models[1].per_head
    expected = with_invocation(layer, TOKENS, axis="t")
    for tokens in (TOKENS.tolist(), tuple(TOKENS.tolist()), np.asarray(TOKENS)):
        assert eqx.tree_equal(with_invocation(layer, tokens, axis="t"), expected)


def test_bad_tokens_are_told(models):
    plain, adapted = models
    with pytest.raises(SelectionError, match="no ActivatedLoRA"):
        with_invocation(plain, TOKENS, axis="tokens")
    for tokens in (TOKENS[None], jnp.ones(2), 3):
        with pytest.raises(SelectionError, match="use vmap"):
            with_invocation(adapted, tokens, axis="tokens")
    for last in (0, 8):
        with pytest.raises(SelectionError, match="from 1 to 7"):
            with_invocation(adapted, TOKENS, axis="tokens", last=last)
    for invocation in ((), (-1,)):
        with pytest.raises(ValueError, match=r'options=\{"invocation"'):
            ActivatedLoRA(plain.per_head, 2, 1.0, key=KEY, invocation=invocation)
    with pytest.raises(WrapperError, match=r"Call `with_invocation\(model, tokens, axis="):
        adapted(TOKENS)


def test_the_tokens_lie_on_the_named_axis(models):
    layer = models[1].per_head
    invoked = with_invocation(layer, TOKENS, axis="t")

    def change(x):
        return invoked(x) - layer.base(x)

    for heads in (2, 7):  # as many heads as tokens change nothing
        x = jax.random.normal(KEY, (7, heads, 3))
        inside = jax.vmap(jax.vmap(change), axis_name="t")(x)
        outside = jax.vmap(jax.vmap(change, axis_name="t"), 1, 1)(x)
        for moved in (inside, outside):
            assert not moved[:FIRST].any()
            assert (jnp.abs(moved[FIRST:]).max((1, 2)) > 1e-3).all()
    for call in (jax.vmap(invoked), jax.vmap(invoked, axis_name="u")):
        with pytest.raises(WrapperError, match=r"axis_name='t'"):
            call(jnp.ones((7, 3)))
    with pytest.raises(WrapperError, match="has 2 entries, but there are 7 tokens"):
        jax.vmap(invoked, axis_name="t")(jnp.ones((2, 3)))


def test_a_stack_is_scanned_or_mapped_inside_of_the_tokens(models):
    plain, adapted = models
    over_tokens = functools.partial(jax.vmap, axis_name="t")
    invoked, x = with_invocation(adapted, TOKENS, axis="t").blocks["key"], jnp.ones((7, 6))
    base = plain.blocks["key"]
    each = lambda x, layer: (x, over_tokens(layer)(x))  # noqa: E731
    scanned = jax.lax.scan(each, x, invoked)[1] - jax.lax.scan(each, x, base)[1]
    inside = over_tokens(lambda x: eqx.filter_vmap(lambda layer: layer(x))(invoked))(x)
    mapped = inside.swapaxes(0, 1) - eqx.filter_vmap(lambda layer: over_tokens(layer)(x))(base)
    for moved in (scanned, mapped):
        assert np.allclose(moved[:, :FIRST], 0, atol=1e-6)
        assert (jnp.abs(moved[:, FIRST:]).max(-1) > 1e-3).all()
