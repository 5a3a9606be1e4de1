"""The operations of a layer kind, which a plugin's method may use, and their equations."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from zoo_cases import adapters, assert_close, build

from jno_lora_zoo import mixed, rotated, scaled

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
def test_a_kronecker_product_is_added_and_cut(base, wrapper, whole):
    W, (x,) = jnp.asarray(base.matrix(), jnp.float32), base.arguments()
    outputs, inputs = W.shape
    A = jax.random.normal(jax.random.key(1), (RANK, RANK))
    B = jax.random.normal(jax.random.key(2), (-(-outputs // RANK), -(-inputs // RANK)))
    update = jnp.kron(A, B)[:outputs, :inputs]
    assert_close(wrapper.kronecker(x, A, B), whole(W + update), 1e-5)


@everywhere
def test_the_matrix_and_the_end_of_a_call_are_those_of_the_base(base, wrapper):
    (x,) = base.arguments()
    layer = wrapper.base
    assert wrapper.computes(x)
    assert_close(wrapper.finish(wrapper.product(x)), layer(x), 1e-6)
    again = wrapper.with_matrix(layer, wrapper.matrix(layer))
    assert bool(eqx.tree_equal(again, layer))
