"""The pieces of a layer that a plugin's method may use, against the matrix they stand for."""

import jax
import jax.numpy as jnp
import pytest
from zoo_cases import adapters, assert_close, build

RANK = 2


@pytest.fixture
def factors(base):
    W = base.matrix()
    keys = jax.random.split(jax.random.key(0), 5)
    shapes = ((RANK, W.shape[1]), (len(W), RANK), (RANK, RANK), (RANK,), (len(W),))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


@adapters("LoRA", linear=("plain",), conv=("plain", "groups"))
def test_a_product_in_pieces_is_the_product_of_the_whole(adapter, base, factors):
    A, B, R, d, v = factors
    wrapper = build(adapter, base)
    (x,) = base.arguments()

    def whole(matrix):
        """What the layer computes with that matrix, without its bias."""
        return build(adapter, wrapper.with_matrix(wrapper.base, matrix)).product(x)

    h = wrapper.down(x, A)
    assert_close(wrapper.up(h, B), whole(B @ A), 1e-5)
    assert_close(wrapper.up(wrapper.mix(h, R), B), whole(B @ R @ A), 1e-5)
    assert_close(wrapper.up(wrapper.scale_rank(h, d), B), whole(B @ (d[:, None] * A)), 1e-5)
    y = wrapper.scale_output(wrapper.product(x), v)
    assert_close(y, whole(v[:, None] * jnp.asarray(base.matrix(), jnp.float32)), 1e-5)
