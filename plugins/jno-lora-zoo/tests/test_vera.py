"""VeRA: the matrices come from a seed that is an array, and from nothing else."""

import hashlib
import os
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo_cases import adapters, assert_close, build, equal_leaves, perturb
from zoo_cases.layers import matrix_of

from jno.lora import lora_trainable_filter
from jno_lora_zoo._random import uniform_matrix


def wrapper_of(adapter, base, seed):
    return adapter.cls(base.layer, 2, 3.0, key=jax.random.key(seed))


def drawn(wrapper, out=5, inputs=6):
    """The matrices A and B of a wrapper."""
    return tuple(np.asarray(x) for x in wrapper.projections(jnp.zeros((out, inputs))))


def wide(out=48, inputs=200, rank=64, seed=0):
    layer = eqx.nn.Linear(inputs, out, key=jax.random.key(0))
    from jno_lora_zoo import VeRALinear

    return drawn(VeRALinear(layer, rank, 1.0, key=jax.random.key(seed)), out, inputs)


def correlation(a, b):
    """The correlation of two samples, in standard deviations of that of independent ones."""
    return np.corrcoef(a.ravel(), b.ravel())[0, 1] * np.sqrt(a.size)


@adapters("VeRA")
def test_the_seed_is_a_frozen_integer_array(adapter, base):
    wrapper = wrapper_of(adapter, base, 0)
    assert isinstance(wrapper.seed, jax.Array)
    assert jnp.issubdtype(wrapper.seed.dtype, jnp.integer)
    assert lora_trainable_filter(wrapper).seed is False


@adapters("VeRA")
def test_the_matrices_are_in_no_tree_and_no_checkpoint(adapter, base):
    wrapper = build(adapter, base, rank=7)
    leaves = jax.tree.leaves(eqx.tree_at(lambda w: w.base, wrapper, None))
    assert sorted(leaf.shape for leaf in leaves) == sorted([(5,), (7,), wrapper.seed.shape])
    assert wrapper.state().keys() == {"b", "d", "seed"}


@adapters("VeRA")
def test_the_constructor_can_be_traced_for_any_key(adapter, base):
    def make(key):
        return adapter.cls(base.layer, 2, 3.0, key=key)

    keys = jax.random.split(jax.random.key(0), 3)
    seeds = {np.asarray(make(key).seed).tobytes() for key in keys}
    assert len(seeds) == 3
    mapped = eqx.filter_vmap(make)(keys).seed
    compiled = eqx.filter_jit(make)
    assert {np.asarray(seed).tobytes() for seed in mapped} == seeds
    assert {np.asarray(compiled(key).seed).tobytes() for key in keys} == seeds
    abstract = eqx.filter_eval_shape(make, keys[0]).seed
    assert (abstract.shape, abstract.dtype) == (mapped[0].shape, mapped.dtype)


@adapters("VeRA")
def test_another_seed_draws_other_matrices_and_traces_nothing_anew(adapter, base):
    traces = []

    @eqx.filter_jit
    def run(wrapper, x):
        traces.append(1)
        return wrapper(x)

    outputs = set()
    for seed in range(3):
        wrapper = perturb(wrapper_of(adapter, base, seed))
        outputs.add(np.asarray(run(wrapper, *base.arguments())).tobytes())
    assert len(outputs) == 3
    assert len(traces) == 1


@adapters("VeRA")
def test_a_and_b_are_drawn_apart(adapter, base):
    square = eqx.nn.Linear(6, 6, key=jax.random.key(0))
    wrapper = build(adapter, square, rank=6) if adapter.kind == "Linear" else build(adapter, base)
    size = 6 if adapter.kind == "Linear" else 5
    A, B = drawn(wrapper, size)
    n = min(A.size, B.size)
    assert np.max(np.abs(A.ravel()[:n] * np.sqrt(6) - B.ravel()[:n])) > 0.1


@pytest.mark.parametrize(
    "dtype", [jnp.float32, jnp.bfloat16, jnp.float16], ids=lambda d: d.__name__
)
@adapters("VeRA")
def test_the_seed_survives_a_cast_of_every_leaf_and_back(adapter, base, dtype):
    for seed in range(8):
        wrapper = wrapper_of(adapter, base, seed)
        cast = jax.tree.map(lambda x: x.astype(dtype), wrapper)
        assert cast.seed.dtype == dtype
        assert equal_leaves(drawn_arrays(cast), drawn_arrays(wrapper))
        back = jax.tree.map(lambda x, y: x.astype(y.dtype), cast, wrapper)
        assert equal_leaves(back.seed, wrapper.seed)
    moved = perturb(cast)
    inputs = base.arguments(dtype)
    tolerance = 1e-5 if dtype == jnp.float32 else 8 * float(jnp.finfo(dtype).eps)
    assert_close(moved(*inputs), moved.merge()(*inputs), tolerance)


def drawn_arrays(wrapper):
    return wrapper.projections(jnp.zeros((5, 6)))


PROGRAM = """
import hashlib
import equinox as eqx, jax, jax.numpy as jnp, numpy as np
from jno.lora import VeRALinear
layer = eqx.nn.Linear(6, 5, key=jax.random.key(3))
wrapper = VeRALinear(layer, 4, 1.0, key=jax.random.key(12))
A, B = wrapper.projections(jnp.zeros((5, 6)))
print(hashlib.sha256(np.asarray(A).tobytes() + np.asarray(B).tobytes()).hexdigest())
"""


def test_another_process_draws_the_same_matrices():
    from jno_lora_zoo import VeRALinear

    layer = eqx.nn.Linear(6, 5, key=jax.random.key(3))
    A, B = drawn(VeRALinear(layer, 4, 1.0, key=jax.random.key(12)))
    digest = hashlib.sha256(A.tobytes() + B.tobytes()).hexdigest()
    environment = {**os.environ, "PYTHONHASHSEED": "123"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == digest


@pytest.mark.parametrize("seed", range(4))
def test_means_and_variances_are_those_of_the_law(seed):
    A, B = wide(seed=seed)
    assert (A.shape, B.shape) == ((64, 200), (48, 64))
    for sample, variance in ((A, 1 / 200), (B, 1.0)):
        z = sample.astype(np.float64) / np.sqrt(variance)
        n = z.size
        assert abs(np.mean(z)) < 4 / np.sqrt(n)
        # The fourth moment of a uniform distribution of variance 1 is 9/5.
        assert abs(np.mean(z**2) - 1) < 4 * np.sqrt(0.8 / n)
        assert np.max(np.abs(z)) <= np.sqrt(3) * (1 + 1e-6)
        assert abs(np.mean(z**4) - 1.8) < 4 * np.sqrt((9 - 1.8**2) / n)


@pytest.mark.parametrize("seed", range(4))
def test_rows_columns_matrices_and_seeds_are_not_correlated(seed):
    A, B = wide(seed=seed)
    other_A, other_B = wide(seed=seed + 100)
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


def test_seeds_that_differ_in_one_bit_are_not_correlated():
    from jno_lora_zoo import VeRALinear

    layer = eqx.nn.Linear(64, 64, key=jax.random.key(0))
    wrapper = VeRALinear(layer, 64, 1.0, key=jax.random.key(0))
    A, _ = drawn(wrapper, 64, 64)
    for place in range(4):
        seed = wrapper.seed.at[place].set(wrapper.seed[place] ^ 1)
        other, _ = drawn(eqx.tree_at(lambda w: w.seed, wrapper, seed), 64, 64)
        assert abs(correlation(A, other)) < 4


@adapters("VeRA")
def test_the_rank_may_exceed_the_sizes(adapter, base):
    wrapper = perturb(build(adapter, base, rank=50))
    assert wrapper.rank == 50
    A, B = drawn(wrapper)
    b, d = (np.asarray(x).astype(np.float64) for x in (wrapper.b, wrapper.d))
    update = 3.0 / 50 * np.diag(b) @ B @ np.diag(d) @ A
    assert_close(matrix_of(wrapper.merge()) - base.matrix(), update, 1e-5)


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
