"""The operations of a layer kind, which a plugin's method may use, and their equations."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from zoo_cases import adapters, assert_close, build

from jno_lora_zoo import Update, mixed, rotated, scaled

RANK = 2
everywhere = adapters("LoRA", linear=("plain",), conv=("plain", "groups"))


@pytest.fixture
def factors(base):
    W = base.matrix()
    keys = jax.random.split(jax.random.key(0), 5)
    shapes = ((RANK, W.shape[1]), (len(W), RANK), (RANK, RANK), (RANK,), (len(W),))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


@pytest.fixture
def wrapper(adapter, base):
    return build(adapter, base)


@pytest.fixture
def whole(adapter, base, wrapper):
    """The layer's product with another matrix, without its bias."""
    (x,) = base.arguments()
    return lambda W: build(adapter, wrapper.with_matrix(wrapper.base, W)).product(x)


@everywhere
def test_a_low_rank_term_is_added(base, wrapper, whole, factors):
    A, B, R, d, v = factors
    W, (x,) = jnp.asarray(base.matrix(), jnp.float32), base.arguments()
    assert_close(wrapper.low_rank(x, A, B), whole(W + B @ A), 1e-5)
    y = wrapper.low_rank(x, A, B, lambda h: mixed(h, R), lambda y: scaled(y, v))
    assert_close(y, whole(W + v[:, None] * (B @ R @ A)), 1e-5)
    y = wrapper.low_rank(x, A, B, lambda h: scaled(h, d))
    assert_close(y, whole(W + B @ (d[:, None] * A)), 1e-5)


@everywhere
def test_a_map_of_the_outputs_is_one_of_the_rows(base, wrapper, whole, factors):
    W, (x,) = jnp.asarray(base.matrix(), jnp.float32), base.arguments()
    v, blocks = factors[-1], jnp.stack([jnp.array([[0.0, 1.0], [-1.0, 0.0]])] * -(-len(W) // 2))
    assert_close(wrapper.on_output(x, scaled, v), whole(scaled(W, v)), 1e-5)
    size = wrapper.group_size(wrapper.base)
    if size is None or size % 2 == 0:
        assert_close(wrapper.on_output(x, rotated, blocks), whole(rotated(W, blocks)), 1e-5)

    def loss(v):
        return jnp.sum(jnp.sin(wrapper.on_output(x, scaled, v)))

    expected = jax.grad(lambda v: jnp.sum(jnp.sin(whole(scaled(W, v)))))(v)
    assert_close(jax.grad(loss)(v), expected, 1e-5)


@everywhere
def test_an_update_is_added_in_each_way_that_it_offers(base, wrapper, whole):
    W, (x,) = jnp.asarray(base.matrix(), jnp.float32), base.arguments()
    U = jax.random.normal(jax.random.key(1), W.shape)
    expected = whole(W + U)
    assert_close(wrapper.plus(x, Update(lambda: U)), expected, 1e-5)
    every_way = Update(lambda: U, lambda v: U @ v, lambda i: U[:, i])
    assert_close(wrapper.plus(x, every_way), expected, 1e-5)


@adapters("LoRA", linear=("plain",), conv=("pointwise",))
def test_a_map_of_the_inputs_is_one_of_the_columns(base, wrapper, whole):
    W, (x,) = jnp.asarray(base.matrix(), jnp.float32), base.arguments()
    F = jax.random.normal(jax.random.key(1), (W.shape[1], W.shape[1]))
    assert wrapper.reads_features()
    assert_close(wrapper.product(x, lambda v: mixed(v, F)), whole(W @ F), 1e-5)


@adapters("LoRA", linear=(), conv=("plain", "groups"))
def test_a_kernel_over_several_places_does_not_read_features(wrapper):
    assert not wrapper.reads_features()


@everywhere
def test_a_bias_is_replaced(base, wrapper):
    layer = wrapper.base
    b = wrapper.bias_of(layer) + jnp.arange(len(base.matrix()), dtype=jnp.float32)
    other = wrapper.replace_bias(layer, b)
    assert bool(jnp.array_equal(wrapper.bias_of(other), b))
    (x,) = base.arguments()
    assert_close(wrapper.finish(wrapper.product(x), b), other(x), 1e-6)


@everywhere
def test_the_matrix_and_the_end_of_a_call_are_those_of_the_base(base, wrapper):
    (x,) = base.arguments()
    layer = wrapper.base
    assert wrapper.computes(x)
    assert_close(wrapper.finish(wrapper.product(x), wrapper.bias_of(layer)), layer(x), 1e-6)
    again = wrapper.with_matrix(layer, wrapper.matrix(layer))
    assert bool(eqx.tree_equal(again, layer))
