"""OFT: the weight is rotated, whatever the sizes, and never by a dense matrix."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo_cases import adapters, assert_close, build, each, perturb, shapes_in_jaxpr
from zoo_cases.layers import matrix_of

from jno_lora_zoo import OFTConv


def layer_of(kind, out, inputs, weight=None):
    key = jax.random.key(0)
    if kind == "Linear":
        layer = eqx.nn.Linear(inputs, out, key=key)
    else:
        layer = eqx.nn.Conv1d(inputs, out, 1, key=key)
    if weight is None:
        return layer
    return eqx.tree_at(lambda m: m.weight, layer, jnp.asarray(weight).reshape(layer.weight.shape))


@pytest.mark.parametrize("size", [1.0, 10.0, 100.0, 1000.0])
@pytest.mark.parametrize(("out", "rank"), [(8, 4), (7, 3), (7, 5), (3, 9), (37, 16)])
@each("OFT")
def test_the_blocks_are_rotations(adapter, out, rank, size):
    identity = layer_of(adapter.kind, out, out, np.eye(out, dtype=np.float32))
    R = matrix_of(perturb(build(adapter, identity, rank=rank), size).merge())
    assert_close(R @ R.T, np.eye(out), 1e-5)
    assert np.linalg.det(R) > 0
    assert np.max(np.abs(R - np.eye(out))) > 0.05
    # Nothing leaves its block.
    block = np.arange(out) // min(rank, out)
    assert not np.any(R[block[:, None] != block[None, :]])


@each("OFT")
def test_angles_between_rows_of_a_block_are_kept(adapter):
    wrapper = perturb(build(adapter, layer_of(adapter.kind, 6, 9), rank=6))
    W, new = matrix_of(wrapper.base), matrix_of(wrapper.merge())
    assert_close(new.T @ new, W.T @ W, 1e-5)
    assert np.max(np.abs(new - W)) > 0.05


@pytest.mark.parametrize("rank", [4, 5])
@each("OFT")
def test_no_dense_rotation_is_built(adapter, rank):
    out, inputs = 12, 3
    wrapper = perturb(build(adapter, layer_of(adapter.kind, out, inputs), rank=rank))
    x = jnp.ones((3,) if adapter.kind == "Linear" else (3, 2))
    for compute in (lambda w, x: w(x), lambda w, x: w.merge()(x)):
        shapes = shapes_in_jaxpr(compute, wrapper, x)
        assert (-(-out // rank), rank, rank) in shapes
        assert not [shape for shape in shapes if sum(size >= out for size in shape) >= 2]


@pytest.mark.parametrize("size", [1.0, 100.0])
@adapters("OFT")
def test_large_rotations_have_finite_gradients(adapter, base, size):
    wrapper = perturb(build(adapter, base), size)

    def loss(Q):
        moved = eqx.tree_at(lambda w: w.Q_blocks, wrapper, Q)
        return jnp.sum(jnp.sin(moved(*base.arguments())))

    gradient = np.asarray(jax.grad(loss)(wrapper.Q_blocks))
    assert np.isfinite(gradient).all()
    assert np.any(gradient != 0)
    # Only the antisymmetric part acts, and of the last block (of 5 % 2 outputs) nothing.
    assert_close(gradient, -np.swapaxes(gradient, 1, 2), 1e-6)
    assert not np.any(gradient[-1])


@each("OFT")
def test_a_rank_of_one_is_refused_where_nothing_could_train(adapter):
    with pytest.raises(ValueError, match="a rank of 2 or more"):
        build(adapter, layer_of(adapter.kind, 3, 2), rank=1)
    assert build(adapter, layer_of(adapter.kind, 1, 2), rank=1).Q_blocks.shape == (1, 1, 1)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_small_rotation_of_a_convolution_survives_half_precision(dtype):
    base = eqx.nn.Conv1d(2, 2, 1, use_bias=False, key=jax.random.key(0), dtype=dtype)
    weight = jnp.array([[[1.0], [1.0]], [[1.0], [-1.0]]], dtype)
    base = eqx.tree_at(lambda m: m.weight, base, weight)
    wrapper = OFTConv(base, 2, 1.0, key=jax.random.key(1))
    turn = jnp.array([[[0.0, 1e-4], [-1e-4, 0.0]]])
    wrapper = eqx.tree_at(lambda w: w.Q_blocks, wrapper, turn)
    # The first output is 0 and the second 200, of which a rotation by 2e-4 gives it a little. In
    # the weights, which are 1, it would be rounded away.
    out = wrapper(jnp.array([[100.0], [-100.0]], dtype)).astype(jnp.float32)
    assert abs(float(out[0, 0])) == pytest.approx(0.04, rel=1e-2)
