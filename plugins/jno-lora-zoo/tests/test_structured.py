"""Structured updates: which way they are computed, and their options."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo_cases import assert_close, perturb, shapes_in_jaxpr
from zoo_cases.layers import matrix_of

import jno_lora_embedding
import jno_lora_zoo


def trained(name, layer, rank, **options):
    """The adapter of that name after some training."""
    cls = getattr(jno_lora_embedding if name.endswith("Embedding") else jno_lora_zoo, name)
    return perturb(cls(layer, rank, 3.0, key=jax.random.key(1), **options))


def linear(inputs, outputs):
    return eqx.nn.Linear(inputs, outputs, key=jax.random.key(0))


def table_or_linear(name, inputs, outputs):
    """A layer with an `(outputs, inputs)` matrix, of the kind that the adapter is for."""
    if name.endswith("Linear"):
        return linear(inputs, outputs)
    return eqx.nn.Embedding(inputs, outputs, key=jax.random.key(0))


def calls_shapes(wrapper):
    """The shapes of all arrays that a call makes."""
    x = jnp.ones(wrapper.base.weight.shape[1])
    return shapes_in_jaxpr(lambda w, x: w(x), wrapper, x)


def assert_computes(wrapper, W):
    """The merged layer's matrix is `W`, and the wrapped layer computes the same as the merged."""
    merged = wrapper.merge()
    assert_close(wrapper.matrix(merged), W, 1e-6)
    if isinstance(wrapper.base, eqx.nn.Embedding):
        x = jnp.arange(W.shape[1])
        assert_close(jax.vmap(wrapper)(x), jax.vmap(merged)(x), 1e-5)
    else:
        x = jnp.linspace(-1, 1, W.shape[1])
        assert_close(wrapper(x), merged(x), 1e-5)


@pytest.mark.parametrize(("rank", "by_matrix"), [(2, False), (3, True)])
def test_loha_takes_the_way_that_costs_less(rank, by_matrix):
    # The product of rank r^2 costs r^2 (in + out), which is to be at most in out / 2.
    wrapper = trained("LoHaLinear", linear(19, 18), rank)
    assert (wrapper.base.weight.shape in calls_shapes(wrapper)) == by_matrix
    x = jnp.linspace(-1, 1, 19)
    assert_close(wrapper(x), wrapper.merge()(x), 1e-5)


def test_the_update_of_loha_is_one_of_rank_r_squared():
    wrapper = trained("LoHaConv", eqx.nn.Conv1d(3, 5, 2, key=jax.random.key(0)), 2)
    A, B = wrapper.low_rank_update()
    assert (A.shape, B.shape) == ((4, 6), (5, 4))
    assert_close(B @ A, matrix_of(wrapper.merge()) - matrix_of(wrapper.base), 1e-5)


def test_miss_sums_the_inputs_before_the_product():
    shapes = calls_shapes(trained("MiSSLinear", linear(7, 5), 3))
    assert (3,) in shapes and (5, 7) not in shapes


@pytest.mark.parametrize("name", ["MiSSLinear", "MiSSEmbedding"])
def test_miss_mini_repeats_over_the_outputs_too(name):
    wrapper = trained(name, table_or_linear(name, 7, 6), 3, mini=2)
    D = np.asarray(wrapper.D, np.float64)
    update = [[D[i % 3, o % 2] for i in range(7)] for o in range(6)]
    assert D.shape == (3, 2)
    assert_computes(wrapper, np.asarray(wrapper.matrix(wrapper.base)) + update)


@pytest.mark.parametrize("name", ["MiSSLinear", "MiSSEmbedding"])
def test_miss_bat_maps_each_block_of_the_weight(name):
    wrapper = trained(name, table_or_linear(name, 6, 4), 2, bat=True)
    W, D = np.asarray(wrapper.matrix(wrapper.base)).astype(np.float64), np.asarray(wrapper.D)
    expected = W.copy()
    for k, n in np.ndindex(2, 3):
        block = np.s_[2 * k : 2 * k + 2, 2 * n : 2 * n + 2]
        expected[block] += W[block] @ D[k] + D[k]
    assert D.shape == (2, 2, 2)
    assert_computes(wrapper, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mini": 2, "bat": True}, "not both"),
        ({"mini": 4}, "divide the number of outputs, 6, but is 4"),
        ({"mini": 0}, "divide the number of outputs, 6, but is 0"),
        ({"bat": True}, r"divide the sizes of the matrix, \(6, 7\), but is 3"),
    ],
)
def test_miss_refuses_blocks_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        trained("MiSSLinear", linear(7, 6), 3, **options)


@pytest.mark.parametrize("options", [{}, {"mini": 2}, {"bat": True}])
def test_the_shapes_of_miss_tell_its_options(options):
    wrapper = trained("MiSSLinear", linear(8, 4), 2, **options)
    again = trained("MiSSLinear", linear(8, 4), 2, **type(wrapper).options_of(wrapper.state()))
    assert again.D.shape == wrapper.D.shape


@pytest.mark.parametrize(("rank", "k"), [(1, 1), (2, 2), (3, 3), (4, 2), (9, 3)])
def test_gralora_has_a_default_grid_for_every_rank(rank, k):
    wrapper = trained("GraLoRALinear", linear(7, 5), rank)
    assert wrapper.A.shape == (k, -(-7 // k), rank)
    assert wrapper.rank == rank


@pytest.mark.parametrize("name", ["GraLoRALinear", "GraLoRAEmbedding"])
def test_gralora_takes_another_grid_which_its_shapes_tell(name):
    wrapper = trained(name, table_or_linear(name, 12, 8), 4, k=4)
    A, B = (np.asarray(x).astype(np.float64) for x in (wrapper.A, wrapper.B))
    blocks = [[np.outer(B[j, n], A[n, :, j]) for n in range(4)] for j in range(4)]
    W = np.asarray(wrapper.matrix(wrapper.base)).astype(np.float64)
    assert_computes(wrapper, W + 3 / 4 * np.block(blocks))
    assert type(wrapper).options_of(wrapper.state()) == {"k": 4}


def test_gralora_multiplies_by_its_blocks():
    wrapper = trained("GraLoRALinear", linear(12, 8), 2)
    assert (8, 12) not in calls_shapes(wrapper)


@pytest.mark.parametrize("k", [0, 3])
def test_gralora_refuses_a_grid_that_does_not_divide_the_rank(k):
    with pytest.raises(ValueError, match=f"`k` is {k} and the rank 4"):
        trained("GraLoRALinear", linear(12, 8), 4, k=k)
