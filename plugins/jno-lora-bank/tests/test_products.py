"""Products with one of many matrices are those of `vmap`, in values and derivatives."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.experimental.jet import jet

from jno_lora_bank import _products
from jno_lora_bank._products import slot_low_rank, slot_product

SLOTS, BATCH, SIZES = 5, 11, (6, 2, 4)
keys = jr.split(jr.key(0), 4)
x = jr.normal(keys[0], (BATCH, SIZES[0]))
A = jr.normal(keys[1], (SLOTS, SIZES[1], SIZES[0]))
Bt = jr.normal(keys[2], (SLOTS, SIZES[1], SIZES[2]))
slots = jr.randint(keys[3], (BATCH,), 0, SLOTS)


def expected(x, A, Bt, slot):
    return (A[slot] @ x) @ Bt[slot]


def batch(function):
    return lambda x, A, Bt: jax.vmap(function, (0, None, None, 0))(x, A, Bt, slots)


def loss(function):
    return lambda *args: jnp.sum(jnp.sin(batch(function)(*args)))


def hessians(function):
    """For each example, as losses of differential equations need them."""

    def one(x, A, Bt, slot):
        return jax.hessian(lambda x: jnp.sum(jnp.sin(function(x, A, Bt, slot))))(x)

    return batch(one)


def of_a_sequence(function):
    """More rows of one slot than the rank."""
    tokens = jax.vmap(lambda x, A, Bt, slot: function(x, A, Bt, slot), (0, None, None, None))
    return lambda x, A, Bt: batch(tokens)(jnp.stack([x, 2 * x, 3 * x], axis=1), A, Bt)


def of_many_stacks(function):
    """Another set of matrices for each, as in an ensemble."""
    return lambda x, A, Bt: jax.vmap(batch(function), (None, 0, None))(x, jnp.stack([A, -A]), Bt)


def transposes(function):
    """Of the linear function of `x`, as iterative solvers ask for them."""
    return lambda x, A, Bt: jax.linear_transpose(lambda x: batch(function)(x, A, Bt), x)(
        jnp.ones((BATCH, SIZES[2]))
    )


def taylor(function):
    return lambda x, A, Bt: jet(lambda x: batch(function)(jnp.sin(x), A, Bt), (x,), ((x, x),))


CASES = {
    "values": batch,
    "gradients": lambda function: jax.grad(loss(function), (0, 1, 2)),
    "second derivatives": lambda function: jax.hessian(loss(function), (1, 2)),
    "per example": hessians,
    "a sequence": of_a_sequence,
    "gradients of many stacks": lambda function: jax.grad(
        lambda *args: jnp.sum(jnp.sin(of_many_stacks(function)(*args))), (1, 2)
    ),
    "jet": taylor,
    "transposes": transposes,
}


@pytest.mark.parametrize("case", CASES)
def test_they_are_those_of_vmap(case):
    found, wanted = (jax.jit(CASES[case](f))(x, A, Bt) for f in (slot_low_rank, expected))
    for own, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(own, other, atol=2e-5, rtol=1e-5)


def test_one_product():
    found = jax.vmap(lambda x, slot: slot_product(x, A.mT, slot))(x, slots)
    np.testing.assert_allclose(found, jnp.einsum("bri,bi->br", A[slots], x), atol=1e-5)


@pytest.mark.parametrize("rows", [1, 3])
def test_all_platforms_compute_the_same(rows):
    """The loop of CPUs, the copies of GPUs and the ragged product of TPUs."""
    xs = jnp.stack([x] * rows, axis=1)
    for transposed, M in ((True, A), (False, A.mT)):
        wanted = _products._gathered_times(xs, M, slots, transposed=transposed)
        for function in (_products._looped_times, _products._ragged_times):
            found = function(xs, M, slots, transposed=transposed)
            np.testing.assert_allclose(found, wanted, atol=1e-5)
    outers = (_products._gathered_outer, _products._looped_outer)
    sums = [f(xs, xs, slots, count=SLOTS, dtype=np.dtype("float32")) for f in outers]
    np.testing.assert_allclose(*sums, atol=1e-4)


@pytest.mark.parametrize("side", [0, 1])
def test_a_nan_stays_in_its_slot(side):
    """The gradient of one adapter does not depend on the examples of another."""
    sides = [x[:, None], x[:, None]]
    sides[side] = sides[side].at[0].set(jnp.nan)
    for function in (_products._gathered_outer, _products._looped_outer):
        sums = function(*sides, slots, count=SLOTS, dtype=np.dtype("float32"))
        is_nan = np.isnan(sums).any(axis=(1, 2))
        np.testing.assert_array_equal(is_nan, np.arange(SLOTS) == slots[0])
