"""Promises of all three: every argument of the base's call, training, stacks and precision."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import perturbed

from jno.lora import Net, apply_lora, lora_trainable_filter
from jno_lora_attention import IA3Attention, LoRAAttention, PrefixAttention

ADAPTERS = [LoRAAttention, IA3Attention, PrefixAttention]
every_adapter = pytest.mark.parametrize("cls", ADAPTERS, ids=lambda cls: cls.__name__)


def rotate(q, k, v):
    """Rotary positions, as Equinox documents them."""
    rope = eqx.nn.RotaryPositionalEmbedding(q.shape[-1])
    turn = jax.vmap(rope, in_axes=1, out_axes=1)
    return turn(q), turn(k), v


@every_adapter
def test_every_argument_reaches_the_base(cls, inputs, getkey):
    layer = eqx.nn.MultiheadAttention(2, 8, dropout_p=0.5, key=getkey())
    wrapper = cls(layer, 2, 1.0, key=getkey())
    x, key = inputs(layer), getkey()
    mask = jax.random.bernoulli(getkey(), 0.7, (4, 5)).at[:, 0].set(True)
    calls = {
        "dropout": {"key": key},
        "inference": {"inference": True},
        "mask": {"mask": mask, "key": key},
        "mask per head": {"mask": jnp.stack([mask, ~mask]), "inference": True},
        "heads": {"process_heads": rotate, "inference": True, "key": key},
    }
    outputs = {}
    for name, kwargs in calls.items():
        outputs[name] = layer(*x, **kwargs)
        np.testing.assert_allclose(
            wrapper(*x, **kwargs), outputs[name], rtol=1e-5, atol=1e-6, err_msg=name
        )
    assert not np.allclose(outputs["dropout"], outputs["inference"], atol=1e-2)
    by_keyword = wrapper(query=x[0], key_=x[1], value=x[2], inference=True)
    np.testing.assert_allclose(by_keyword, outputs["inference"], rtol=1e-5, atol=1e-6)
    with pytest.raises(RuntimeError, match="key"):
        wrapper(*x)
    with pytest.warns(UserWarning, match="deprecated"):
        wrapper(*x, deterministic=True)
    silent = eqx.nn.inference_mode(wrapper)
    np.testing.assert_allclose(silent(*x), outputs["inference"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cls", [LoRAAttention, IA3Attention])
def test_merged_and_wrapped_agree_under_masks_dropout_and_positions(cls, inputs, getkey):
    layer = eqx.nn.MultiheadAttention(2, 8, dropout_p=0.3, use_key_bias=True, key=getkey())
    wrapper = perturbed(cls(layer, 2, 1.0, key=getkey()))
    x = inputs(layer)
    mask = jnp.tril(jnp.ones((4, 5), bool))
    kwargs = {"mask": mask, "key": getkey(), "process_heads": rotate}
    np.testing.assert_allclose(
        wrapper(*x, **kwargs), wrapper.merge()(*x, **kwargs), rtol=1e-4, atol=1e-5
    )


@every_adapter
def test_gradients_reach_the_adapter_alone(cls, small, inputs, getkey):
    wrapper = perturbed(cls(small, 2, 1.0, key=getkey()))
    x = inputs(small)
    trainable, frozen = eqx.partition(wrapper, lora_trainable_filter(wrapper))

    @jax.jit
    @jax.grad
    def gradient(trainable):
        return jnp.sum(eqx.combine(trainable, frozen)(*x) ** 2)

    grads = gradient(trainable)
    assert not jax.tree.leaves(grads.base)
    fields = [jax.tree.leaves(getattr(grads, name)) for name in cls.adapter_fields]
    assert all(field for field in fields)
    for g in jax.tree.leaves(fields):
        assert bool(jnp.all(jnp.isfinite(g))) and bool(jnp.any(g != 0))


@every_adapter
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=lambda d: d.__name__)
def test_half_precision(cls, dtype, inputs, getkey):
    layer = eqx.nn.MultiheadAttention(
        2, 8, use_key_bias=True, use_output_bias=True, dtype=dtype, key=getkey()
    )
    x = inputs(layer, dtype)
    wrapper = cls(layer, 2, 1.0, key=getkey())
    adapter = [x for f in cls.adapter_fields for x in jax.tree.leaves(getattr(wrapper, f))]
    assert all(a.dtype == jnp.float32 for a in adapter)
    np.testing.assert_allclose(
        wrapper(*x).astype(jnp.float32), layer(*x).astype(jnp.float32), rtol=2e-2, atol=2e-2
    )
    trained = perturbed(wrapper)
    assert trained(*x).dtype == dtype
    if cls is not PrefixAttention:
        merged = trained.merge()
        assert merged.key_proj.weight.dtype == merged.key_proj.bias.dtype == dtype
        np.testing.assert_allclose(
            trained(*x).astype(jnp.float32), merged(*x).astype(jnp.float32), rtol=5e-2, atol=5e-2
        )
    narrow = cls(layer, 2, 1.0, key=getkey(), adapter_dtype=dtype)
    assert all(
        a.dtype == dtype for f in cls.adapter_fields for a in jax.tree.leaves(getattr(narrow, f))
    )
    with pytest.raises(ValueError, match="`adapter_dtype` must be a floating dtype"):
        cls(layer, 2, 1.0, key=getkey(), adapter_dtype=jnp.int8)


@every_adapter
def test_stacked_layers_in_a_scan(cls, getkey):
    def make(key):
        return eqx.nn.MultiheadAttention(2, 8, use_value_bias=True, key=key)

    stack = eqx.filter_vmap(make)(jax.random.split(getkey(), 3))
    assert cls.applies_to(stack) and cls.stack_ndim(stack) == 1
    wrapped = perturbed(apply_lora(stack, 2, key=getkey(), wrapper=cls))
    x = jax.random.normal(getkey(), (5, 8))

    @eqx.filter_jit
    def run(stack, x):
        dynamic, static = eqx.partition(stack, eqx.is_array)

        def body(x, one):
            layer = eqx.combine(one, static)
            return x + layer(x, x, x), None

        return jax.lax.scan(body, x, dynamic)[0]

    expected = x
    for i in range(3):
        layer = jax.tree.map(lambda a, i=i: a[i] if eqx.is_array(a) else a, wrapped)
        expected = expected + layer(expected, expected, expected)
    np.testing.assert_allclose(run(wrapped, x), expected, rtol=1e-4, atol=1e-5)
    if cls is not PrefixAttention:
        merged = Net(wrapped).merge().module
        assert jax.tree.structure(merged) == jax.tree.structure(stack)
        np.testing.assert_allclose(run(merged, x), expected, rtol=1e-4, atol=1e-5)


class Reader(eqx.Module):
    """Answers which of the tokens carries a flag, from frozen parts it has to bend."""

    attention: eqx.nn.MultiheadAttention

    def __init__(self, key):
        self.attention = eqx.nn.MultiheadAttention(2, 8, use_output_bias=True, key=key)

    def __call__(self, x):
        return self.attention(x, x, x)[0, 0]


@every_adapter
def test_training_reduces_a_loss(cls, getkey):
    net = Net(Reader(getkey())).freeze().lora(rank=4, alpha=4, wrapper=cls)
    before = net.module
    trainable, frozen = net.partition()
    x = jax.random.normal(getkey(), (16, 6, 8))
    y = jnp.mean(x[:, :, 1], axis=1) + 0.5

    @jax.jit
    def step(trainable):
        def loss(trainable):
            return jnp.mean((jax.vmap(eqx.combine(trainable, frozen))(x) - y) ** 2)

        value, grads = jax.value_and_grad(loss)(trainable)
        return value, jax.tree.map(lambda p, g: p - 0.3 * g, trainable, grads)

    first, trainable = step(trainable)
    for _ in range(150):
        last, trainable = step(trainable)
    assert last < 0.8 * first
    after = net.update(trainable).module
    assert eqx.tree_equal(after.attention.base, before.attention.base)
