"""VeRA: the matrices come from a seed that is an array, and from nothing else."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo_cases import Adapter, assert_close, build, case, equal_leaves, perturb

from jno.lora import lora_trainable_filter
from jno_lora_zoo import VeRALinear
from jno_lora_zoo._random import uniform_matrix

VERA, BASE = Adapter("VeRA", "Linear"), case("Linear", "plain")


def wrapper_of(seed):
    return VeRALinear(BASE.layer, 2, 3.0, key=jax.random.key(seed))


def drawn(wrapper, out=5, inputs=6):
    """The matrices A and B of a wrapper."""
    return tuple(np.asarray(x) for x in wrapper.projections(jnp.zeros((out, inputs))))


def wide(seed=0):
    layer = eqx.nn.Linear(200, 48, key=jax.random.key(0))
    return drawn(VeRALinear(layer, 64, 1.0, key=jax.random.key(seed)), 48, 200)


def correlation(a, b):
    """The correlation of two samples, in standard deviations of that of independent ones."""
    return np.corrcoef(a.ravel(), b.ravel())[0, 1] * np.sqrt(a.size)


def test_the_seed_is_a_frozen_integer_array_and_the_matrices_are_in_no_tree_or_checkpoint():
    wrapper = build(VERA, BASE, rank=7)
    assert not np.any(wrapper.b) and np.all(np.asarray(wrapper.d) == 1)
    assert isinstance(wrapper.seed, jax.Array)
    assert jnp.issubdtype(wrapper.seed.dtype, jnp.integer)
    assert lora_trainable_filter(wrapper).seed is False
    leaves = jax.tree.leaves(eqx.tree_at(lambda w: w.base, wrapper, None))
    assert sorted(leaf.shape for leaf in leaves) == sorted([(5,), (7,), wrapper.seed.shape])
    assert wrapper.state().keys() == {"b", "d", "seed"}


@pytest.mark.parametrize(
    "dtype", [jnp.float32, jnp.bfloat16, jnp.float16], ids=lambda d: d.__name__
)
def test_the_seed_survives_a_cast_of_every_leaf_and_back(dtype):
    for seed in range(8):
        wrapper = wrapper_of(seed)
        cast = jax.tree.map(lambda x: x.astype(dtype), wrapper)
        assert cast.seed.dtype == dtype
        assert equal_leaves(drawn(cast), drawn(wrapper))
        back = jax.tree.map(lambda x, y: x.astype(y.dtype), cast, wrapper)
        assert equal_leaves(back.seed, wrapper.seed)
    moved, inputs = perturb(cast), BASE.arguments(dtype)
    tolerance = 1e-5 if dtype == jnp.float32 else 8 * float(jnp.finfo(dtype).eps)
    assert_close(moved(*inputs), moved.merge()(*inputs), tolerance)


@pytest.mark.parametrize("seed", range(3))
def test_the_numbers_have_the_moments_of_the_law_and_are_not_correlated(seed):
    A, B = wide(seed)
    assert (A.shape, B.shape) == ((64, 200), (48, 64))
    for sample, variance in ((A, 1 / 200), (B, 1.0)):
        z = sample.astype(np.float64) / np.sqrt(variance)
        n = z.size
        assert abs(np.mean(z)) < 4 / np.sqrt(n)
        # The fourth moment of a uniform distribution of variance 1 is 9/5.
        assert abs(np.mean(z**2) - 1) < 4 * np.sqrt(0.8 / n)
        assert np.max(np.abs(z)) <= np.sqrt(3) * (1 + 1e-6)
        assert abs(np.mean(z**4) - 1.8) < 4 * np.sqrt((9 - 1.8**2) / n)
    other_A, other_B = wide(seed + 100)
    pairs = {
        "rows of A": (A[1:], A[:-1]),
        "columns of A": (A[:, 1:], A[:, :-1]),
        "second columns of A": (A[:, 2:], A[:, :-2]),
        "rows of B": (B[1:], B[:-1]),
        "columns of B": (B[:, 1:], B[:, :-1]),
        "A and B": (A[:48, :64], B),
        "A and the transpose of B": (A[:, :48].T, B),
        "counters of A and B": (A.ravel()[: B.size], B.ravel()),
        "A of two seeds": (A, other_A),
        "B of two seeds": (B, other_B),
    }
    found = {name: correlation(*pair) for name, pair in pairs.items()}
    assert {name: c for name, c in found.items() if abs(c) > 4} == {}


def test_the_matrices_of_a_seed_never_change():
    # A file holds the seed and not the matrices: other ones would be another adapter.
    seed = jnp.array([1, 2, 3, 250], jnp.uint8)
    A = uniform_matrix(seed, 0, (2, 3), 1.0, jnp.float32)
    B = uniform_matrix(seed, 1, (2, 3), 1.0, jnp.float32)
    assert_close(
        A, [[-1.31418943, -0.97564864, 0.20427014], [-0.92542118, 1.02217078, -1.25578117]], 1e-6
    )
    assert_close(
        B, [[-1.31315064, 1.34948862, 1.50826573], [0.31425896, -0.01218945, -1.13610446]], 1e-6
    )
